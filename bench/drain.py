"""Processing payments from accepted to SUCCESSFUL, through workers and the simulator.

The workers are frozen while payments are accepted, then continued; the time is from there to the last
payment's end. The CPU time of each kind of process is measured over the same time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from bench.accept import known_payments
from bench.meters import Site, ask, processor_s, resident_mb
from bench.sites import SETTINGS, WORKERS, durable_servers, site_of
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Process

CELERY_WORKERS = 2
# Without callbacks: the engine polls the provider's status, which costs more.
SILENT = {**SETTINGS, "PUBLIC_BASE_URL": ""}
# Payments that have not ended by then are not counted.
DRAIN_MAX_S = 600.0
LOOK_EVERY_S = 0.25
_OPEN = "SELECT count(*) FROM payments WHERE status = 'PENDING'"
_LAST_END = "SELECT extract(epoch FROM max(final_at)) FROM payments"
_BYTES = (
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
)
_ENDED = "SELECT count(*) FROM payments WHERE status = 'SUCCESSFUL'"
_KINDS = ("worker", "simulator", "api", "beat")


@dataclass(frozen=True)
class Drained:
    """One round."""

    payments: int
    seconds: float
    # CPU time per payment in milliseconds, by kind of process.
    cpu_ms: dict[str, float]
    wal_bytes: float

    @property
    def per_s(self) -> float:
        """Payments per second."""
        return self.payments / self.seconds


@dataclass(frozen=True)
class Draining:
    """All rounds, and the bytes that an ended payment takes on disk."""

    rounds: list[Drained]
    bytes_each: float


@dataclass(frozen=True)
class Plant:
    """A running stack whose workers can be frozen."""

    stack: Stack
    site: Site
    key: str

    def hold(self) -> None:
        """Freeze the workers and beat."""
        for process in self._workers():
            process.stop()

    def go(self) -> None:
        """Continue the workers and beat."""
        for process in self._workers():
            process.cont()

    def _workers(self) -> list[Process]:
        named = self.stack.processes.items()
        return [process for name, process in named if name.startswith(("worker-", "beat-"))]

    def accept(self, payments: int) -> None:
        """Create so many more open payments."""
        known_payments(self.site.url, self.key, payments)

    def processor_s(self) -> dict[str, float]:
        """CPU time so far, by kind of process."""
        used = dict.fromkeys(_KINDS, 0.0)
        for name, process in self.stack.processes.items():
            used[name.partition("-")[0]] += processor_s(process.pid)
        used["postgres"] = processor_s(self.stack.postgres.process.pid)
        used["redis"] = processor_s(self.stack.redis.process.pid)
        return used

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the largest process of each kind."""
        sizes = dict.fromkeys(_KINDS, 0.0)
        for name, process in self.stack.processes.items():
            kind = name.partition("-")[0]
            sizes[kind] = max(sizes[kind], *resident_mb(process.pid))
        sizes["postgres"] = max(resident_mb(self.stack.postgres.process.pid))
        sizes["redis"] = max(resident_mb(self.stack.redis.process.pid))
        return sizes


@contextmanager
def plant(servers: Servers | None = None) -> Iterator[Plant]:
    """Start the stack and issue an API key."""
    with (
        durable_servers(servers) as running,
        Stack(
            workers=WORKERS, celery_workers=CELERY_WORKERS, settings=SILENT, servers=running
        ) as stack,
    ):
        yield Plant(stack, site_of(stack), stack.issue_key("bench"))


def run(*, payments: int, rounds: int, servers: Servers | None = None) -> Draining:
    """Accept and drain in each round."""
    done = []
    with plant(servers) as running:
        # Warm up: fetch tokens, open connections, prepare statements.
        drain(running, min(payments, 100))
        for number in range(rounds):
            done.append(drain(running, payments))
            click.echo(f"drain {number + 1} of {rounds}: {done[-1].per_s:.0f}/s", err=True)
        size = ask(running.site, _BYTES) / ask(running.site, _ENDED)
    return Draining(done, size)


def drain(running: Plant, payments: int) -> Drained:
    """Accept so many with the workers frozen, and measure how long their processing takes."""
    site = running.site
    running.hold()
    running.accept(payments)
    open_at_first, wal = ask(site, _OPEN), site.spent().wal_bytes
    used, started = running.processor_s(), time.time()
    running.go()
    while ask(site, _OPEN) and time.time() - started < DRAIN_MAX_S:
        time.sleep(LOOK_EVERY_S)
    ended = int(open_at_first - ask(site, _OPEN))
    spent = {kind: now - used[kind] for kind, now in running.processor_s().items()}
    return Drained(
        payments=ended,
        seconds=ask(site, _LAST_END) - started,
        cpu_ms={kind: seconds * 1000 / ended for kind, seconds in spent.items()},
        wal_bytes=(site.spent().wal_bytes - wal) / ended,
    )


def memory(*, payments: int, steps: int = 10) -> list[tuple[int, dict[str, float]]]:
    """Resident memory of each kind of process over time: (payments so far, MB)."""
    seen = []
    with plant() as running:
        drain(running, 100)
        seen.append((int(ask(running.site, _ENDED)), running.resident_mb()))
        for _ in range(steps):
            drain(running, payments // steps)
            seen.append((int(ask(running.site, _ENDED)), running.resident_mb()))
            click.echo(f"memory: {seen[-1][0]} payments", err=True)
    return seen


def table(done: Draining) -> str:
    """A Markdown table."""
    rates = sorted(one.per_s for one in done.rounds)
    kinds = done.rounds[0].cpu_ms
    cpu = {kind: statistics.median(one.cpu_ms[kind] for one in done.rounds) for kind in kinds}
    lines = [
        "| drain | |",
        "|---|---|",
        (
            f"| payments/s to SUCCESSFUL, {CELERY_WORKERS} worker processes |"
            f" {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f};"
            f" at least 150 is asked) |"
        ),
        f"| rounds, payments in each | {len(rates)}, {done.rounds[0].payments} |",
        f"| CPU ms for each payment, all | {sum(cpu.values()):.2f} |",
        *(f"| … {kind} | {used:.2f} |" for kind, used in cpu.items()),
        (
            f"| WAL bytes for each, from accepted to ended |"
            f" {statistics.median(one.wal_bytes for one in done.rounds):.0f} |"
        ),
        f"| bytes on the disk for each ended payment | {done.bytes_each:.0f} |",
    ]
    return "\n".join(lines)


def memory_table(seen: list[tuple[int, dict[str, float]]]) -> str:
    """A Markdown table."""
    kinds = list(seen[0][1])
    lines = [f"| RSS in MB after payments | {' | '.join(kinds)} |", f"|--:{'|--:' * len(kinds)}|"]
    lines += [
        f"| {payments} | {' | '.join(f'{sizes[kind]:.0f}' for kind in kinds)} |"
        for payments, sizes in seen
    ]
    return "\n".join(lines)
