"""This process's database connections: a limited number, counted, and none waits for ever."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg.abc import PQGen
from psycopg.errors import DeadlockDetected
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from payments_app.kernel import metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")
_LENT: Final = "lent"
# Connections beyond the pool's size, for short peaks when all are in use.
OVERFLOW_MAX: Final = 8
WAIT_MAX_S: Final = 5
# Detect a dead peer (a crashed machine, a pulled cable), which no timeout of PostgreSQL's does. The
# kernel closes the connection when the peer has acknowledged no byte for this long. A busy server
# still acknowledges, so a slow statement is not affected. Milliseconds for tcp_user_timeout.
DEAD_PEER: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# How much of a statement is logged. Its values are not in its text.
LOGGED_CHARS: Final = 120

# The limits above do not detect a suspended server: its kernel still acknowledges, but no response
# arrives. This does. A healthy server ends a statement earlier itself (STATEMENT_TIMEOUT_MS).
SILENCE_MAX_S: Final = 20.0


class BoundedConnection(psycopg.Connection[Any]):
    """Waits SILENCE_MAX_S for a response, then closes: the statement's result is unknown.

    `silence_max_s` None: wait without a limit, until the connection returns to the pool.
    """

    silence_max_s: float | None = SILENCE_MAX_S

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """See psycopg.Connection. Raises OperationalError."""
        longest_s = timeout or self.silence_max_s
        try:
            return super().wait(gen, interval, longest_s)
        except psycopg.OperationalError as error:
            # A wait that took too long: the server's own errors have a code, and after a lost
            # connection nothing is under way.
            is_active = self.info.transaction_status is TransactionStatus.ACTIVE
            if longest_s is None or error.sqlstate is not None or not is_active:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the server has said nothing for too long") from None


def _bounded(_dialect: Any, _entry: Any, arguments: Any, options: Any) -> BoundedConnection:
    return BoundedConnection.connect(*arguments, **options)


def _as_usual(connection: BoundedConnection | None, _entry: Any) -> None:
    if connection is not None:
        connection.silence_max_s = SILENCE_MAX_S


def _count_out(_connection: Any, entry: Any, _proxy: Any) -> None:
    entry.record_info[_LENT] = True
    metrics.database_pool_in_use.inc()


def _count_in(_connection: Any, entry: Any) -> None:
    # SQLAlchemy also fires "checkin" if the server was unavailable and there was no checkout.
    if entry.record_info.pop(_LENT, False):
        metrics.database_pool_in_use.dec()


class CountedPool(QueuePool):
    """Counts the timeouts of waits for a connection."""

    def connect(self) -> PoolProxiedConnection:
        """See QueuePool."""
        try:
            return super().connect()
        except PoolTimeout:
            metrics.database_pool_timeouts.inc()
            raise


def counted_pool(size: int) -> dict[str, Any]:
    """The engine's options for a CountedPool of this size."""
    metrics.database_pool_size.set(size + OVERFLOW_MAX)
    return {
        "poolclass": CountedPool,
        "pool_size": size,
        "max_overflow": OVERFLOW_MAX,
        "pool_timeout": WAIT_MAX_S,
        "pool_pre_ping": False,
        "pool_events": [
            (_count_out, "checkout"),
            (_count_in, "checkin"),
            (_as_usual, "checkin"),
        ],
    }


def _count_deadlock(context: ExceptionContext) -> None:
    """PostgreSQL ended a transaction after `deadlock_timeout`, a second."""
    error = context.original_exception
    if isinstance(error, DeadlockDetected):
        metrics.database_deadlocks.inc()
        statement = (context.statement or "")[:LOGGED_CHARS]
        log.error("database.deadlock", statement=statement, where=error.diag.context)


def bound(engine: Engine) -> None:
    """Have the engine open BoundedConnections, and count the deadlocks that PostgreSQL ends."""
    event.listen(engine, "do_connect", _bounded)
    event.listen(engine, "handle_error", _count_deadlock)


def wait_without_end(connection: Connection) -> None:
    """Remove this connection's limit on waits for a response, until it returns to the pool."""
    raw: Any = connection.connection.driver_connection
    raw.silence_max_s = None
