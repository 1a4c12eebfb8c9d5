"""`make run`: from nothing to a payment that is charged once, and back to nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from devstack.environment import surroundings
from devstack.orphans import PidDirectory
from devstack.places import free_port, temporary_home
from devstack.programs import ROOT
from devstack.servers import Servers
from devstack.supervisor import GRACE_MAX_S
from devstack.users import server_user

UP_MAX_S = 200.0
LAST_WORDS = "Ctrl-C ends it all"
# As /docs shows it: the example is in openapi.json.
EXAMPLE = json.loads((ROOT / "openapi.json").read_text())["components"]["schemas"]["NewEndpoint"]
AN_ENDPOINT = (
    'curl -sS -i "$MARAMOJA_URL/api/v1/webhook-endpoints" -H "X-API-Key: $MARAMOJA_KEY"'
    ' -H "Content-Type: application/json"'
    f""" -d '{{"url": "{EXAMPLE["properties"]["url"]["example"]}"}}'"""
)
# The six processes end one after the other, each with its own grace time.
DOWN_MAX_S = 6 * GRACE_MAX_S
# The last step of a start without the demo.
LAST_STEP = "worker and beat"


@dataclass
class Terminal:
    """A terminal: runs `python -m devstack` on a var/ of its own."""

    var: Path
    port: int = field(default_factory=free_port)
    settings: Mapping[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "devstack", "--var", str(self.var), *arguments],
            cwd=ROOT,
            env={**surroundings(), "PORT": str(self.port), **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        return process

    def output_of(self, *arguments: str) -> tuple[int, str]:
        process = self.run(*arguments)
        output, _ = process.communicate(timeout=UP_MAX_S)
        return process.returncode, output

    def up(self) -> subprocess.Popen[str]:
        """Start without the demo, and wait for the last step, and until the API answers."""
        process = self.run("up", "--no-demo")
        self.await_up(process)
        return process

    def await_up(self, process: subprocess.Popen[str]) -> None:
        # A signal that comes earlier would interrupt the start.
        printed_until(process, LAST_STEP)
        assert in_time(lambda: answers(self.port) or process.poll() is not None, UP_MAX_S)

    def pids(self) -> dict[str, int]:
        directory = self.var / "pids"
        return {path.name: int(path.read_text().split()[0]) for path in directory.iterdir()}

    def await_end(self, process: subprocess.Popen[str]) -> int:
        """Its exit code. On a timeout: what still runs, and the ends of the logs."""
        try:
            return process.wait(timeout=DOWN_MAX_S)
        except subprocess.TimeoutExpired:
            tails = [
                f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}"
                for path in sorted((self.var / "log").iterdir())
            ]
            raise AssertionError("\n".join([f"still there: {self.pids()}", *tails])) from None

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=DOWN_MAX_S)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(temporary_home(server_user()))
    yield opened
    opened.close()
    Terminal(opened.var).output_of("reset")
    for path in (opened.var / "log", opened.var / "pids"):
        path.rmdir() if path.exists() else None
    (opened.var / "lock").unlink(missing_ok=True)
    opened.var.rmdir()


@pytest.mark.timeout(600)
def test_a_payment_is_charged_once_and_a_second_start_keeps_it(terminal: Terminal) -> None:
    code, first = terminal.output_of("up", "--once")
    assert code == 0, first
    assert "Idempotent-Replayed: true, the same bytes" in first
    assert "once, says the simulator's own ledger" in first
    assert f"http://127.0.0.1:{terminal.port}/docs" in first

    code, second = terminal.output_of("up", "--once")
    assert code == 0, second
    assert "with the keys of an earlier start" in second
    assert key_in(second) == key_in(first)
    assert terminal.pids() == {}
    assert (terminal.var / "demo.json").stat().st_mode & 0o077 == 0
    assert (terminal.var / "secret-key").stat().st_mode & 0o077 == 0


@pytest.mark.timeout(600)
def test_each_market_takes_its_own_money_and_refuses_another(terminal: Terminal) -> None:
    # A payment that takes long is asked for more often than the usual limit allows.
    terminal.settings = {"RATE_LIMIT_DEFAULT": "100000 per minute"}
    process = terminal.run("up")
    kept = terminal.var / "demo.json"
    assert in_time(kept.exists, 2 * UP_MAX_S), process.poll()
    access = json.loads(kept.read_text())
    keys = {"sandbox": access["key"], **access["live"]}
    orders = {
        "sandbox": {"amount": "12.50", "currency": "EUR", "payer": "256772123456"},
        "mtnuganda": {"amount": 5000, "currency": "UGX", "payer": "256772123456"},
        "mtnzambia": {"amount": "12.50", "currency": "ZMW", "payer": "260966123456"},
    }
    assert set(keys) == set(orders)
    url = f"http://127.0.0.1:{terminal.port}/api/v1/payments"

    def post(market: str, order: Mapping[str, object]) -> requests.Response:
        return requests.post(url, json=order, headers={"X-API-Key": keys[market]}, timeout=30)

    def ended(market: str, payment: Mapping[str, str]) -> dict[str, Any]:
        place, headers = f"{url}/{payment['id']}", {"X-API-Key": keys[market]}
        seen = lambda: requests.get(place, headers=headers, timeout=30).json()  # noqa: E731
        assert in_time(lambda: seen()["status"] != "PENDING", UP_MAX_S)
        found: dict[str, Any] = seen()
        return found

    for market, order in orders.items():
        assert ended(market, post(market, order).json())["status"] == "SUCCESSFUL"
        for other in orders.values():
            if other["currency"] != order["currency"]:
                refused = post(market, other).json()
                assert refused["code"] == "validation_failed"
                assert "currency" in [error["field"] for error in refused["errors"]]
    rejecting = {**orders["mtnuganda"], "payer": "256770012351"}
    failed = ended("mtnuganda", post("mtnuganda", rejecting).json())
    assert failed["failure"]["code"] == "payer_rejected"


@pytest.mark.timeout(600)
def test_what_is_printed_is_pasted_and_each_key_is_of_the_market_it_is_said_to_be(
    terminal: Terminal,
) -> None:
    printed = printed_until(terminal.run("up"), LAST_WORDS)
    said = dict(re.findall(r"# (.+)\n  export (\w+)=", printed))
    assert {variable: words.split(":")[0] for words, variable in said.items()} == {
        "MARAMOJA_URL": "where the API is",
        "MARAMOJA_KEY": "MTN sandbox, EUR",
        "MARAMOJA_KEY_UGANDA": "MTN Uganda, UGX",
        "MARAMOJA_KEY_ZAMBIA": "MTN Zambia, ZMW",
    }
    pasted = printed[printed.index("# where the API is") :].partition("\n\n")[0]
    done = subprocess.run(
        ["bash", "-euc", f"{pasted}\n{AN_ENDPOINT}"],
        env=surroundings(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HTTP/1.1 201") == 4
    # The demo's payment, and one for each market.
    currencies = re.findall(r'"currency":"(...)"', done.stdout)
    assert set(currencies) == {"EUR", "UGX", "ZMW"}
    assert '"url":"http://localhost:3000/webhooks"' in done.stdout


@pytest.mark.timeout(600)
def test_databases_that_are_given_are_used_and_ours_not_started(
    terminal: Terminal, servers: Servers
) -> None:
    addresses = servers.addresses(servers.new_database(), servers.redis)
    terminal.settings = addresses.settings()
    code, output = terminal.output_of("up", "--once", "--no-demo")
    assert code == 0, output
    assert "DATABASE_URL is given: ours is not started" in output
    assert "REDIS_URL is given: ours is not started" in output
    assert not (terminal.var / "postgres").exists()


@pytest.mark.timeout(600)
def test_ctrl_c_ends_all_and_one_checkout_runs_once(terminal: Terminal) -> None:
    first = terminal.up()
    pids = terminal.pids()
    assert set(pids) == {"postgres", "redis", "simulator", "api", "worker-1", "beat"}

    code, refusal = terminal.output_of("up")
    assert code == 1
    assert f"this checkout's stack runs already (process {first.pid})" in refusal

    code, listed = terminal.output_of("flask", "tenants", "list", "--json")
    assert code == 0, listed

    first.send_signal(signal.SIGINT)
    assert terminal.await_end(first) == 0
    assert not [name for name, pid in pids.items() if runs(pid)]
    assert terminal.pids() == {}


@pytest.mark.timeout(600)
def test_a_process_that_dies_is_named_and_ends_the_run(terminal: Terminal) -> None:
    process = terminal.up()
    pids = terminal.pids()
    os.kill(pids["beat"], signal.SIGKILL)
    output, _ = process.communicate(timeout=DOWN_MAX_S)
    assert process.returncode == 1
    assert "beat was ended by SIGKILL. The end of its log:" in output
    assert not [name for name, pid in pids.items() if runs(pid)]


@pytest.mark.timeout(600)
def test_nothing_outlives_a_killed_run_for_long(terminal: Terminal) -> None:
    first = terminal.up()
    left = terminal.pids()
    guardian_of(first).kill()
    first.kill()
    first.wait()
    assert [name for name, pid in left.items() if runs(pid)]

    second = terminal.run("up", "--no-demo")  # ends what the first has left running
    assert in_time(lambda: not [name for name, pid in left.items() if runs(pid)], UP_MAX_S)
    terminal.await_up(second)
    pids = terminal.pids()
    second.kill()  # and its guardian ends the rest
    assert in_time(lambda: not [name for name, pid in pids.items() if runs(pid)], DOWN_MAX_S)


def test_what_an_earlier_run_left_alive_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as orphan:
        PidDirectory(tmp_path).add("worker-1", orphan.pid)
        PidDirectory(tmp_path)
        assert orphan.wait(timeout=DOWN_MAX_S) == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        (tmp_path / "worker-1").write_text(f"{stranger.pid} 12345.0")
        PidDirectory(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_that_is_taken_is_said_before_anything_starts(terminal: Terminal) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        terminal.port = other.getsockname()[1]
        code, output = terminal.output_of("up")
    assert code == 1
    assert f"port {terminal.port} is taken by another program" in output
    assert f"make run PORT={terminal.port + 1}" in output
    assert not (terminal.var / "postgres").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = Terminal(tmp_path / "file" / "var").output_of("up")
    assert code != 0
    assert "cannot be written" in output
    assert "Traceback" not in output


def printed_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints up to the line with these words."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def key_in(output: str) -> str:
    found = re.search(r"MARAMOJA_KEY=(\S+)", output)
    assert found is not None
    return found[1]


def guardian_of(process: subprocess.Popen[str]) -> psutil.Process:
    started = psutil.Process(process.pid).children()
    (guardian,) = [child for child in started if "guardian.py" in " ".join(child.cmdline())]
    return guardian


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health/live", timeout=2).ok
    except requests.RequestException:
        return False


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_time(happened: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.1)
    return happened()
