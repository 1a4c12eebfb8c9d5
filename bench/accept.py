"""Accepting payments: requests/s, latency and CPU time of ours and of its rivals, in one run.

The rows take turns, round by round, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import click
import requests

from bench.load import ORDER, Load, Shot, fire
from bench.meters import Rows, Site, Spent
from bench.sites import SETTINGS, WORKERS, Rivals, durable_servers, site_of
from devstack.servers import Servers
from devstack.stack import Stack

CONNECTIONS = (1, 16, 64)
# An idle PostgreSQL backend reports its statistics within ten seconds.
STATISTICS_S = 11.0
PAYMENTS = "/api/v1/payments"
# All floors: the fastest of them at each number of connections is the floor.
FLOORS = ("floor", "floor, sync workers")
# Enough to keep the API busy.
_THREADS = 8
_SENT = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Effort:
    """How much is measured. `known`: how many keys to replay and payments to read, more than run at once."""

    rounds: int = 4
    seconds: float = 4.0
    connections: Sequence[int] = CONNECTIONS
    warm_s: float = 1.0
    known: int = 500
    settle_s: float = STATISTICS_S


@dataclass(frozen=True)
class Row:
    """One line of the table: the site and the request."""

    name: str
    site: Site
    shot: Shot
    makes_payments: bool = True


@dataclass(frozen=True)
class Taken:
    """One measurement."""

    load: Load
    spent: Spent

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.load.requests / self.load.seconds

    @property
    def processor_ms(self) -> float:
        """CPU time of the app, PostgreSQL and Redis together, per request."""
        return self.ms_of(self.spent.app_s + self.spent.postgres_s + self.spent.redis_s)

    def ms_of(self, seconds: float) -> float:
        """Milliseconds per request."""
        return seconds * 1000 / max(1, self.load.requests)


@dataclass
class Accepting:
    """All measurements by row and connections, one per round; and the rows written."""

    rounds: dict[tuple[str, int], list[Taken]] = field(default_factory=dict)
    written: dict[str, Rows] = field(default_factory=dict)

    def median(self, name: str, connections: int) -> float:
        """Median of the requests per second."""
        return statistics.median(one.per_s for one in self.rounds[name, connections])

    def floor(self, connections: int) -> str | None:
        """The fastest of the floors that were measured."""
        measured = [name for name in FLOORS if (name, connections) in self.rounds]
        return max(measured, key=lambda name: self.median(name, connections), default=None)

    def ratio(self, name: str, other: str | None, connections: int) -> float | None:
        """Ratio of their requests/s: within each round, then the median over the rounds."""
        return self._ratio(name, other, connections, lambda one: one.per_s)

    def processor_ratio(self, name: str, other: str | None, connections: int) -> float | None:
        """Ratio of their CPU time, which other load on the machine disturbs less."""
        return self._ratio(name, other, connections, lambda one: one.processor_ms)

    def _ratio(
        self, name: str, other: str | None, connections: int, of: Callable[[Taken], float]
    ) -> float | None:
        if other is None or not {(name, connections), (other, connections)} <= set(self.rounds):
            return None
        pairs = zip(self.rounds[name, connections], self.rounds[other, connections], strict=True)
        return statistics.median(of(ours) / of(theirs) for ours, theirs in pairs)


def measure(row: Row, *, connections: int, seconds: float) -> Taken:
    """Send load to the row's site once."""
    before = row.site.spent()
    load = fire(row.shot, connections=connections, seconds=seconds)
    return Taken(load, row.site.spent() - before)


def run(effort: Effort, *, only: str = "", servers: Servers | None = None) -> Accepting:
    """Measure the rows whose names are in `only`, separated by |, or all rows."""
    with durable_servers(servers) as running, contestants(running, effort.known) as rows:
        chosen = [row for row in rows if not only or row.name in only.split("|")]
        before = {row.name: row.site.rows() for row in chosen}
        done = in_turn(chosen, effort)
        time.sleep(effort.settle_s)
        done.written = {row.name: row.site.rows() - before[row.name] for row in chosen}
    return done


def in_turn(rows: Sequence[Row], effort: Effort) -> Accepting:
    """Measure the rows, round by round."""
    done = Accepting()
    for row in rows if effort.warm_s else ():
        measure(row, connections=max(effort.connections), seconds=effort.warm_s)
    for number in range(effort.rounds):
        # The order changes each round: the machine is warmer for the second row.
        for row in rows if number % 2 == 0 else rows[::-1]:
            for many in effort.connections:
                taken = measure(row, connections=many, seconds=effort.seconds)
                done.rounds.setdefault((row.name, many), []).append(taken)
        click.echo(f"round {number + 1} of {effort.rounds}", err=True)
    return done


@contextmanager
def contestants(servers: Servers, known: int) -> Iterator[list[Row]]:
    """Start all rows' sites."""
    ours = Stack(workers=WORKERS, celery_workers=0, beats=0, settings=SETTINGS, servers=servers)
    with Rivals(servers) as rivals, ours as stack:
        yield [*rival_rows(rivals), *our_rows(stack, stack.issue_key("bench"), known)]


def rival_rows(rivals: Rivals) -> list[Row]:
    """The rows that ours is compared with."""
    floor = rivals.start("floor")
    listed = (
        ("bare Flask view", rivals.start("bare"), "/payments"),
        ("floor", floor, "/payments"),
        ("floor, sync workers", rivals.start("floor", worker_class="sync"), "/payments"),
        ("floor, one statement", floor, "/payments-in-one-statement"),
        ("plain", rivals.start("plain"), "/payments"),
    )
    return [
        Row(name, site, accept_shot(site.url, "bench", path=path), name != "bare Flask view")
        for name, site, path in listed
    ]


def our_rows(stack: Stack, key: str, known: int) -> list[Row]:
    """Our rows: a new payment, its replay, a read of one payment, a read of a page."""
    site = site_of(stack)
    keys, paths = known_payments(site.url, key, known)
    accept = accept_shot(site.url, key)
    replay = Shot(
        url=site.url,
        method="POST",
        paths=(PAYMENTS,),
        headers=accept.headers,
        body=accept.body,
        keys=keys,
    )
    asks = {"X-API-Key": key}
    return [
        Row("accept", site, accept),
        Row("replay", site, replay, makes_payments=False),
        Row("get", site, Shot(site.url, "GET", paths, asks), makes_payments=False),
        Row("list", site, Shot(site.url, "GET", (PAYMENTS,), asks), makes_payments=False),
    ]


def accept_shot(url: str, key: str, *, path: str = PAYMENTS) -> Shot:
    """A new payment each time."""
    return Shot(
        url=url,
        method="POST",
        paths=(path,),
        headers={**_SENT, "X-API-Key": key},
        body=json.dumps(ORDER),
        fresh_keys=True,
    )


def known_payments(
    url: str, key: str, count: int, *, order: Mapping[str, object] = ORDER
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Create exactly `count` payments; return their keys and paths."""
    keys = tuple(str(uuid4()) for _ in range(count))

    def accept(some: Sequence[str]) -> list[str]:
        with requests.Session() as session:
            session.headers["X-API-Key"] = key
            return [_accepted(session, url, one, order) for one in some]

    with ThreadPoolExecutor(_THREADS) as threads:
        paths = threads.map(accept, (keys[part::_THREADS] for part in range(_THREADS)))
        return keys, tuple(path for some in paths for path in some)


def _accepted(session: requests.Session, url: str, key: str, order: Mapping[str, object]) -> str:
    answer = session.post(
        f"{url}{PAYMENTS}", json=order, headers={"Idempotency-Key": key}, timeout=30
    )
    answer.raise_for_status()
    return f"{PAYMENTS}/{answer.json()['id']}"
