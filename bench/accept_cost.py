"""What row-level security costs `POST /payments`: the same app, policies on against policies off.

    python -m bench.accept_cost --rounds 8 --seconds 3

Two databases on one PostgreSQL, gunicorn with two workers on each, and rounds that take turns, so
that whatever else the machine does meets both alike. The figure is the ratio of requests/s.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import click
import psycopg
import requests
from psycopg import sql

from devstack.servers import Servers
from devstack.stack import Stack

ORDER = {"amount": 1000, "currency": "EUR", "payer": "256772123456"}
CONNECTIONS = 16
SETTINGS = {"RATE_LIMIT_DEFAULT": "100000000 per minute", "LOG_LEVEL": "WARNING"}
# wrk's own language; each request without an Idempotency-Key is a payment of its own.
SCRIPT = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = "{key}"
wrk.body = '{body}'
"""


def open_walls(stack: Stack) -> None:
    """Switch row-level security off on every table of this stack's database."""
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relrowsecurity"
        ).fetchall()
        for (table,) in tables:
            statement = sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY")
            connection.execute(statement.format(sql.Identifier(table)))


def rate(stack: Stack, key: str, seconds: int) -> float:
    """Accepted payments a second."""
    url = f"{stack.api_url}/api/v1/payments"
    before, started = accepted(stack), time.monotonic()
    wrk = shutil.which("wrk")
    if wrk is None:
        _send_for(url, key, seconds)
    else:
        script = stack.postgres.home.parent / "accept.lua"
        script.write_text(SCRIPT.format(key=key, body=json.dumps(ORDER)), encoding="ascii")
        options = ("-t", "1", "-c", str(CONNECTIONS), "-d", str(seconds), "-s", str(script))
        subprocess.run([wrk, *options, url], check=True, capture_output=True)
    return (accepted(stack) - before) / (time.monotonic() - started)


def accepted(stack: Stack) -> int:
    """How many payments the database really has."""
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


@click.command()
@click.option("--rounds", default=8, show_default=True)
@click.option("--seconds", default=3, show_default=True)
def main(rounds: int, seconds: int) -> None:
    """Measure and print each round, then the median ratio."""
    with ExitStack() as cleanup:
        servers = cleanup.enter_context(Servers())
        stacks = [
            cleanup.enter_context(
                Stack(workers=2, celery_workers=0, beats=0, settings=SETTINGS, servers=servers)
            )
            for _ in range(2)
        ]
        open_walls(stacks[1])
        keys = [stack.issue_key("bench") for stack in stacks]
        pairs = list(zip(stacks, keys, strict=True))
        for stack, key in pairs:
            rate(stack, key, 1)
        ratios = []
        for number in range(rounds):
            # Who goes first changes each time: the second finds the machine warmer.
            order = pairs if number % 2 == 0 else pairs[::-1]
            measured = {id(stack): rate(stack, key, seconds) for stack, key in order}
            walled, unwalled = (measured[id(stack)] for stack in stacks)
            ratios.append(walled / unwalled)
            print(f"{walled:7.0f} /s with   {unwalled:7.0f} /s without   {ratios[-1]:.3f}")
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"median {statistics.median(ratios):.3f} of the rate without ({spread})")


if __name__ == "__main__":
    main()
