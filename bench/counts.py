"""Round trips and statements per payment: counts, which no other load disturbs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import requests

from bench.accept import PAYMENTS
from bench.drain import SILENT
from bench.load import ORDER
from bench.sites import Rivals, await_port
from bench.tap import Tap, tapped
from devstack.places import free_port
from devstack.programs import ROOT, Programs
from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Command

# Enough for psycopg to prepare each statement, which it does at the sixth execution.
WARM = 12
COUNTED = 10
TRIES = 3
_NOT_YET_DUE = "SELECT count(*) FROM payments WHERE next_action_at > clock_timestamp()"
_OPEN = "SELECT count(*) FROM payments WHERE status = 'PENDING'"
DRAIN_MAX_S = 60.0


@dataclass(frozen=True)
class Count:
    """Per payment: round trips to PostgreSQL, syncs, statements; Redis's reads.

    `took_s`: the seconds for all of them.
    """

    trips: float
    syncs: float
    statements: float
    redis_reads: float
    texts: tuple[str, ...]
    took_s: float


class Counter:
    """Counts during a piece of work, divided by how much was done in it."""

    def __init__(self, tap: Tap, redis: RedisServer) -> None:
        self._tap, self._redis = tap, redis

    def over(self, work: Callable[[], None], *, done: int) -> Count:
        """Run the work and return its counts, divided by `done`."""
        earlier = self._reads()
        before = self._reads()
        self._tap.clear()
        started = time.monotonic()
        work()
        took_s = time.monotonic() - started
        tap = self._tap
        counts = tap.trips / done, tap.syncs / done, tap.statements / done
        # Reading the counter itself costs some reads.
        reads = self._reads() - before - (before - earlier)
        return Count(*counts, reads / done, tuple(tap.texts), took_s)

    def _reads(self) -> int:
        with self._redis.client() as client:
            return int(client.info("stats").get("total_reads_processed", 0))


def count_ours(servers: Servers) -> dict[str, Count]:
    """Count an accepted payment, its replay, its processing to the end, and an idle worker pass."""
    ours = Stack(workers=1, celery_workers=0, beats=0, settings=SILENT, servers=servers)
    with ours as stack, tapped(stack.database_url) as tap:
        return _of_ours(stack, servers, tap)


def count_rivals(servers: Servers) -> dict[str, Count]:
    """Count an accepted payment, for each rival."""
    with Rivals(servers) as rivals, tapped(rivals.addresses()["DATABASE_URL"]) as tap:
        return _of_rivals(rivals, servers, tap)


def _of_ours(stack: Stack, servers: Servers, tap: Tap) -> dict[str, Count]:
    environment = {**stack.environment, "DATABASE_URL": tap.url(stack.database_url)}
    counter = Counter(tap, stack.redis)
    headers = {"X-API-Key": stack.issue_key("bench")}
    with serving(servers, lambda port: Programs(environment).api(port=port, workers=1)) as url:
        caller = Caller(f"{url}{PAYMENTS}", headers)
        caller.accept(WARM)
        accept = counter.over(lambda: caller.accept(COUNTED), done=COUNTED)
        caller.replay(WARM)
        replay = counter.over(lambda: caller.replay(COUNTED), done=COUNTED)
        with looking(environment) as look:
            drain(stack, look)
            tries = []
            for _ in range(TRIES):
                caller.accept(COUNTED)
                tries.append(counter.over(lambda: drain(stack, look), done=COUNTED))
            # On a slow machine some are due again before the first pass ends, which costs more passes.
            drained = min(tries, key=lambda count: count.syncs)
            idle = counter.over(lambda: _discard(look(COUNTED)), done=COUNTED)
    return {"accept": accept, "replay": replay, "drain": drained, "look": idle}


def _of_rivals(rivals: Rivals, servers: Servers, tap: Tap) -> dict[str, Count]:
    counter = Counter(tap, rivals.redis)
    environment = {"DATABASE_URL": tap.url(rivals.addresses()["DATABASE_URL"])}
    found = {}
    for name, module, path in (
        ("floor", "floor", "/payments"),
        ("floor, one statement", "floor", "/payments-in-one-statement"),
        ("plain", "plain", "/payments"),
    ):

        def command(port: int, module: str = module) -> Command:
            return rivals.command(module, port=port, workers=1, environment=environment)

        with serving(servers, command) as url:
            caller = Caller(f"{url}{path}", {"X-API-Key": "bench"})
            caller.accept(WARM)
            found[name] = counter.over(lambda: caller.accept(COUNTED), done=COUNTED)  # noqa: B023
    return found


class Caller:
    """Sends one request after the other over one connection."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._session = url, requests.Session()
        self._session.headers.update(headers)
        self._last = ""

    def accept(self, times: int) -> None:
        """Create new payments."""
        for _ in range(times):
            self._last = str(uuid4())
            self._post()

    def replay(self, times: int) -> None:
        """Send the last payment's request again."""
        for _ in range(times):
            self._post()

    def _post(self) -> None:
        headers = {"Idempotency-Key": self._last}
        self._session.post(self._url, json=ORDER, headers=headers, timeout=30).raise_for_status()


@contextmanager
def serving(servers: Servers, command: Callable[[int], Command]) -> Iterator[str]:
    """Run a separate gunicorn for the block."""
    port = free_port()
    described = command(port)
    process = servers.supervisor.start(described)
    try:
        await_port(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()


@contextmanager
def looking(environment: Mapping[str, str]) -> Iterator[Callable[[int], list[float]]]:
    """Run a worker; gives a function that makes it run so many passes and returns their seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.steps"],
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  as asked for
    speak, hear = process.stdin, process.stdout
    hear.readline()

    def look(times: int) -> list[float]:
        speak.write(f"{times}\n")
        speak.flush()
        took: list[float] = json.loads(hear.readline())
        return took

    try:
        yield look
    finally:
        speak.close()
        process.wait()
        hear.close()


def drain(stack: Stack, look: Callable[[int], list[float]]) -> None:
    """Process every payment to its end; each pass starts only once something is due."""
    deadline = time.monotonic() + DRAIN_MAX_S
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:

        def number(question: str) -> int:
            row = connection.execute(question.encode()).fetchone()
            return int(row[0]) if row else 0

        while number(_OPEN):
            if time.monotonic() > deadline:
                raise TimeoutError("payments are still open: is the simulator well?")
            if number(_NOT_YET_DUE):
                time.sleep(0.05)
                continue
            look(1)


def _discard(_took: list[float]) -> None: ...


def table(found: Mapping[str, Count], *, texts: bool = False) -> str:
    """A Markdown table; with `texts` also the statements that were sent."""
    lines = [
        "| for each payment or request | round trips to PostgreSQL | syncs | statements | Redis reads |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {count.trips:g} | {count.syncs:g} | {count.statements:g} | {count.redis_reads:g} |"
        for name, count in found.items()
    ]
    for name, count in found.items() if texts else ():
        lines.append(f"\n{name}, {COUNTED} times:\n")
        lines += [f"    {' '.join(text.split())}" for text in count.texts]
    return "\n".join(lines)
