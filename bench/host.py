"""What one host does: payments accepted a second, brought to their end a second, bytes for each.

    python -m bench.host --seconds 8 --rounds 3

gunicorn with two workers, two Celery workers, PostgreSQL that waits for its disk, Redis, the simulator
and the load generator, all on this machine. The figures are this machine's; only ratios travel.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import click
import psycopg

from bench.accept_cost import SETTINGS, accepted, measure
from devstack.servers import Servers
from devstack.stack import Stack

# What isn't at its end by then isn't counted.
DRAIN_MAX_S = 300.0
_OPEN = "SELECT count(*) FROM payments WHERE status = 'PENDING'"
_BYTES = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
"""


@dataclass(frozen=True)
class Drained:
    """How many came to their end, and in which time."""

    payments: int
    seconds: float


def ask(stack: Stack, question: str) -> int:
    """One number from the database."""
    with psycopg.connect(stack.administrator_url) as connection:
        row = connection.execute(question.encode()).fetchone()
    return int(row[0]) if row else 0


def drain(stack: Stack) -> Drained:
    """Start the workers on what was accepted, and wait until all of it has ended."""
    open_at_first, started = ask(stack, _OPEN), time.monotonic()
    for name, process in stack.processes.items():
        if name.startswith("worker-"):
            process.cont()
    while (left := ask(stack, _OPEN)) and time.monotonic() - started < DRAIN_MAX_S:
        time.sleep(0.5)
    return Drained(open_at_first - left, time.monotonic() - started)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=8, show_default=True)
def main(rounds: int, seconds: int) -> None:
    """Measure each in turn, and print the medians."""
    settings = {**SETTINGS, "PUBLIC_BASE_URL": ""}
    with (
        Servers(durable=True) as servers,
        Stack(workers=2, celery_workers=2, settings=settings, servers=servers) as stack,
    ):
        key = stack.issue_key("bench")
        accept, drained = [], []
        for number in range(1, rounds + 1):
            for name, process in stack.processes.items():
                if name.startswith("worker-"):
                    process.stop()
            accept.append(measure(stack, key, seconds))
            drained.append(drain(stack))
            click.echo(
                f"{number}: accepted {accept[-1].per_s:.0f}/s ({accept[-1].cpu_ms:.2f} ms of the"
                f" API's processor each), ended {drained[-1].payments / drained[-1].seconds:.0f}/s"
            )
        count = accepted(stack)
        click.echo(f"accepted/s: {statistics.median(one.per_s for one in accept):.0f}")
        rate = statistics.median(one.payments / one.seconds for one in drained)
        click.echo(f"ended/s: {rate:.0f}")
        click.echo(f"bytes for each ended payment: {ask(stack, _BYTES) / count:.0f} ({count})")


if __name__ == "__main__":
    main()
