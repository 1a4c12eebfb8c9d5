"""What a part costs `POST /payments`: the same app with the part and without it.

    python -m bench.accept_cost --of rls --rounds 8 --seconds 3

`rls` is row-level security; `traces` is tracing, each request sampled and sent to a receiver on
this machine; `metrics` is the metrics, with a scraper; `encryption` is the encryption of payers and
of the data that identifies them.
There are two databases on one PostgreSQL, and gunicorn with two workers for each. They take turns, so
that other load on the machine affects both alike. The results are the ratio of requests/s and the
ratio of CPU time per request, of the API and of the PostgreSQL processes that serve it. Other load
disturbs the CPU time less.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import psutil
import psycopg
import requests
from psycopg import sql

from devstack.servers import Servers
from devstack.stack import Stack

ORDER = {"amount": 1000, "currency": "EUR", "payer": "256772123456"}
CONNECTIONS = 16
SCRAPE_EVERY_S = 5.0
SETTINGS = {"RATE_LIMIT_DEFAULT": "100000000 per minute", "LOG_LEVEL": "WARNING"}
# Lua, for wrk; each request without an Idempotency-Key is a new payment.
SCRIPT = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = "{key}"
wrk.body = '{body}'
"""


class _Sink(BaseHTTPRequestHandler):
    """Receives spans and discards them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def sink() -> Iterator[str]:
    """Run a receiver of spans; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def drop_row_security(stack: Stack) -> None:
    """Switch row-level security off on every table of this stack's database."""
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relrowsecurity"
        ).fetchall()
        for (table,) in tables:
            statement = sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY")
            connection.execute(statement.format(sql.Identifier(table)))


# gunicorn's settings file of an app without the part.
_WITHOUT = {"metrics": "uncounted.py", "encryption": "unencrypted.py"}
# The change to the second database.
_UNDONE = {"rls": drop_row_security}
PARTS = ("rls", "traces", "metrics", "encryption")


@dataclass(frozen=True)
class Measured:
    """One round: accepted payments per second, and milliseconds of CPU time for each."""

    per_s: float
    cpu_ms: float
    database_ms: float


def measure(stack: Stack, key: str, seconds: int) -> Measured:
    """Accept as many payments as possible."""
    url = f"{stack.api_url}/api/v1/payments"
    before, started = accepted(stack), time.monotonic()
    cpu_s, database_s = processor_s(stack), backends_s(stack)
    wrk = shutil.which("wrk")
    if wrk is None:
        _send_for(url, key, seconds)
    else:
        script = stack.postgres.home.parent / "accept.lua"
        script.write_text(SCRIPT.format(key=key, body=json.dumps(ORDER)), encoding="ascii")
        options = ("-t", "1", "-c", str(CONNECTIONS), "-d", str(seconds), "-s", str(script))
        subprocess.run([wrk, *options, url], check=True, capture_output=True)
    count = accepted(stack) - before
    spent_s, served_s = processor_s(stack) - cpu_s, backends_s(stack) - database_s
    per_s = count / (time.monotonic() - started)
    return Measured(per_s, spent_s * 1000 / count, served_s * 1000 / count)


def processor_s(stack: Stack) -> float:
    """CPU time of gunicorn's workers so far."""
    used = [psutil.Process(pid).cpu_times() for pid in stack.processes["api"].children()]
    return sum(times.user + times.system for times in used)


def backends_s(stack: Stack) -> float:
    """CPU time so far of the PostgreSQL backends that serve this stack.

    Connections stay open; a backend that ends during the measurement is missing from the sum.
    """
    with psycopg.connect(stack.administrator_url) as connection:
        pids = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        ).fetchall()
    used = [psutil.Process(pid).cpu_times() for (pid,) in pids]
    return sum(times.user + times.system for times in used)


def accepted(stack: Stack) -> int:
    """How many payments the database has."""
    with psycopg.connect(stack.administrator_url) as connection:
        row = connection.execute("SELECT count(*) FROM payments").fetchone()
    return int(row[0]) if row else 0


def _send_for(url: str, key: str, seconds: int) -> None:
    deadline = time.monotonic() + seconds

    def send(_: int) -> None:
        with requests.Session() as session:
            while time.monotonic() < deadline:
                session.post(url, json=ORDER, headers={"X-API-Key": key}, timeout=30)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(send, range(CONNECTIONS)))


@contextmanager
def scraped(stack: Stack) -> Iterator[None]:
    """Read /metrics during the block, at once and then three times as often as Prometheus does."""
    ended = threading.Event()

    def scrape() -> None:
        while True:
            requests.get(f"{stack.api_url}/metrics", timeout=30)
            if ended.wait(SCRAPE_EVERY_S):
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def settings_of(part: str, *, whole: bool, spans_to: str) -> dict[str, str]:
    """Settings of the app with the part, or without it."""
    if part == "traces" and whole:
        return {**SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": spans_to}
    if part in _WITHOUT and not whole:
        lacking = f"--config {Path(__file__).parent / _WITHOUT[part]}"
        return {**SETTINGS, "GUNICORN_CMD_ARGS": lacking}
    return SETTINGS


@click.command()
@click.option("--of", type=click.Choice(PARTS), default="rls", show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--seconds", default=3, show_default=True)
def main(of: str, rounds: int, seconds: int) -> None:
    """Measure and print each round, then the median ratio."""
    with ExitStack() as cleanup:
        servers = cleanup.enter_context(Servers())
        spans_to = cleanup.enter_context(sink())
        stacks = [
            cleanup.enter_context(
                Stack(
                    workers=2,
                    celery_workers=0,
                    beats=0,
                    settings=settings_of(of, whole=whole, spans_to=spans_to),
                    servers=servers,
                )
            )
            for whole in (True, False)
        ]
        if of in _UNDONE:
            _UNDONE[of](stacks[1])
        keys = [stack.issue_key("bench") for stack in stacks]
        pairs = list(zip(stacks, keys, strict=True))
        for stack, key in pairs:
            measure(stack, key, 1)
        rounds_of: list[tuple[Measured, Measured]] = []
        for number in range(rounds):
            # The order changes each round: the machine is warmer for the second stack.
            order = pairs if number % 2 == 0 else pairs[::-1]
            measured = {}
            for stack, key in order:
                is_read = of == "metrics" and stack is stacks[0]
                with scraped(stack) if is_read else nullcontext():
                    measured[id(stack)] = measure(stack, key, seconds)
            having, lacking = (measured[id(stack)] for stack in stacks)
            rounds_of.append((having, lacking))
            print(f"{_shown(having)} with   {_shown(lacking)} without", flush=True)
        tell_all(rounds_of)


def tell_all(rounds: list[tuple[Measured, Measured]]) -> None:
    """Print the ratios: with the part, divided by without it."""
    tell("the rate without", [one.per_s / other.per_s for one, other in rounds])
    tell("the processor time", [one.cpu_ms / other.cpu_ms for one, other in rounds])
    served = [one.database_ms / other.database_ms for one, other in rounds]
    tell("the database's processor time", served)


def _shown(one: Measured) -> str:
    return f"{one.per_s:6.0f} /s {one.cpu_ms:6.2f} ms {one.database_ms:6.2f} ms in the database"


def tell(of_what: str, ratios: list[float]) -> None:
    """Print the median and the range of the rounds."""
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"median {statistics.median(ratios):.3f} of {of_what} ({spread})")


if __name__ == "__main__":
    main()
