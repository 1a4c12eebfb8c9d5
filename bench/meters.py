"""Use of resources during a run: CPU time by kind of process, write-ahead log, rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil
import psycopg

from devstack.postgres_server import PostgresServer
from devstack.redis_server import RedisServer
from devstack.supervisor import Process


@dataclass(frozen=True)
class Spent:
    """Resources used: the difference of two readings."""

    app_s: float
    postgres_s: float
    redis_s: float
    wal_bytes: int

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(
            self.app_s - earlier.app_s,
            self.postgres_s - earlier.postgres_s,
            self.redis_s - earlier.redis_s,
            self.wal_bytes - earlier.wal_bytes,
        )


@dataclass(frozen=True)
class Rows:
    """Rows written, and the payments among them."""

    written: int
    payments: int

    def __sub__(self, earlier: Rows) -> Rows:
        return Rows(self.written - earlier.written, self.payments - earlier.payments)


@dataclass(frozen=True)
class Site:
    """A service that accepts payments: its processes, its database, its Redis, its address."""

    name: str
    processes: tuple[Process, ...]
    postgres: PostgresServer
    database: str
    redis: RedisServer
    url: str

    def spent(self) -> Spent:
        """Resources used so far."""
        return Spent(
            sum(processor_s(process.pid) for process in self.processes),
            processor_s(self.postgres.process.pid),
            processor_s(self.redis.process.pid),
            int(ask(self, "SELECT pg_current_wal_insert_lsn() - '0/0'")),
        )

    def rows(self) -> Rows:
        """From PostgreSQL's statistics, which backends report after one to ten seconds."""
        written = "sum(n_tup_ins + n_tup_upd + n_tup_del)"
        payments = "sum(n_tup_ins) FILTER (WHERE relname = 'payments')"
        return Rows(
            int(ask(self, f"SELECT {written} FROM pg_stat_user_tables")),  # noqa: S608  constants
            int(ask(self, f"SELECT {payments} FROM pg_stat_user_tables")),  # noqa: S608
        )


def ask(site: Site, question: str) -> float:
    """Query one number from the database, as superuser."""
    with psycopg.connect(site.postgres.administrator_url(site.database)) as connection:
        row = connection.execute(question.encode()).fetchone()
    return float(row[0] or 0) if row else 0.0


def processor_s(pid: int) -> float:
    """CPU time of a process and its descendants, also of those that have ended."""
    root = psutil.Process(pid)
    return sum(_own_s(process) for process in (root, *root.children(recursive=True)))


def resident_mb(pid: int) -> list[float]:
    """Resident memory of a process and of each of its descendants."""
    root = psutil.Process(pid)
    return [one.memory_info().rss / 1e6 for one in (root, *root.children(recursive=True))]


def _own_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        used = process.cpu_times()
        # Its counters include its ended children's CPU time.
        return float(used.user + used.system + used.children_user + used.children_system)
    return 0.0
