"""Load on one address: by wrk if it is on the PATH, else by bench/client.py."""

from __future__ import annotations

import json
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from devstack.programs import ROOT

ORDER = {"amount": 1000, "currency": "EUR", "payer": "256772123456"}
# A response that takes longer is an error.
ANSWER_MAX_S = 10
# A generator that uses more than this share of one core may itself limit the result.
BUSY = 0.7
# Lua, for wrk. LuaJIT's random numbers have 32 bits, and a UUID's last part has 48.
_SCRIPT = """local spec = {{
  method = "{method}", body = {body}, fresh = {fresh},
  paths = {{{paths}}}, keys = {{{keys}}}
}}
math.randomseed({seed})
local number = 0
local function fresh()
  return string.format("%08x-%04x-4%03x-8%03x-%06x%06x", math.random(0, 0x7fffffff),
    math.random(0, 0xffff), math.random(0, 0xfff), math.random(0, 0xfff),
    math.random(0, 0xffffff), math.random(0, 0xffffff))
end
local headers = {{{headers}}}
function request()
  number = number + 1
  if spec.fresh then
    headers["Idempotency-Key"] = fresh()
  elseif #spec.keys > 0 then
    headers["Idempotency-Key"] = spec.keys[(number - 1) % #spec.keys + 1]
  end
  return wrk.format(spec.method, spec.paths[(number - 1) % #spec.paths + 1], headers, spec.body)
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Shot:
    """A request to repeat. `fresh_keys`: a new Idempotency-Key each time; else `keys` in turn."""

    url: str
    method: str = "GET"
    paths: tuple[str, ...] = ("/",)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    fresh_keys: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """The result. `errors` are responses that are not 2xx, and connections that broke."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    # The share of one core that the generator used.
    busy: float = 0.0


def generator() -> str:
    """The load generator's name, for the report."""
    return "wrk" if shutil.which("wrk") else "the Python client in bench/client.py"


def fire(shot: Shot, *, connections: int, seconds: float) -> Load:
    """Keep so many connections busy for so long."""
    spent_s, started = _children_s(), time.monotonic()
    wrk = shutil.which("wrk")
    told = _by_wrk(wrk, shot, connections, seconds) if wrk else _by_us(shot, connections, seconds)
    busy = (_children_s() - spent_s) / (time.monotonic() - started)
    return Load(**json.loads(told), busy=busy)


def _by_wrk(wrk: str, shot: Shot, connections: int, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "shot.lua"
        script.write_text(_script(shot), encoding="ascii")
        load = ("-t", "1", "-c", str(connections))
        timing = ("-d", f"{max(1, round(seconds))}s", "--timeout", f"{ANSWER_MAX_S}s")
        done = subprocess.run(
            [wrk, *load, *timing, "-s", str(script), shot.url],
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stdout.strip().splitlines()[-1]


def _by_us(shot: Shot, connections: int, seconds: float) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench.client", str(connections), str(seconds)],
        cwd=ROOT,
        input=json.dumps(asdict(shot)),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def _script(shot: Shot) -> str:
    def listed(words: tuple[str, ...]) -> str:
        return ", ".join(json.dumps(word) for word in words)

    headers = ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in shot.headers.items())
    return _SCRIPT.format(
        method=shot.method,
        body=json.dumps(shot.body) if shot.body else "nil",
        fresh="true" if shot.fresh_keys else "false",
        paths=listed(shot.paths),
        keys=listed(shot.keys),
        headers=headers,
        seed=secrets.randbits(31),
    )


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
