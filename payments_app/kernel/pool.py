"""The database's connections in this process: so many and no more, counted, none waits for ever."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from payments_app.kernel import metrics

T = TypeVar("T")
_LENT: Final = "lent"
# Beyond the pool's size, for a moment when all are lent out.
OVERFLOW_MAX: Final = 8
WAIT_MAX_S: Final = 5
# A server whose machine died, or behind a cable that was pulled, says nothing for ever: no timeout of
# PostgreSQL's own ends that wait. The kernel does, when nobody there has confirmed a byte for so long.
# A server that is busy confirms; so a statement may take its time.
DEAD_PEER: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# A server that is suspended confirms each byte, and says nothing: only we can end that wait. One
# that is well ends a statement itself before this (STATEMENT_TIMEOUT_MS).
SILENCE_MAX_S: Final = 20.0


class BoundedConnection(psycopg.Connection[Any]):
    """Waits SILENCE_MAX_S for an answer, and is closed then: what came of the question is unknown.

    `silence_max_s` None: as long as it takes, until the connection goes back into the pool.
    """

    silence_max_s: float | None = SILENCE_MAX_S

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """See psycopg's. Raises OperationalError."""
        try:
            return super().wait(gen, interval, timeout or self.silence_max_s)
        except _WaitTimeout:
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
    # Who got none, as the server was away, gives none back; SQLAlchemy says so all the same.
    if entry.record_info.pop(_LENT, False):
        metrics.database_pool_in_use.dec()


class CountedPool(QueuePool):
    """Says how often somebody has waited in vain."""

    def connect(self) -> PoolProxiedConnection:
        """See QueuePool."""
        try:
            return super().connect()
        except PoolTimeout:
            metrics.database_pool_timeouts.inc()
            raise


def counted_pool(size: int) -> dict[str, Any]:
    """The engine's options for it."""
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


def bound(engine: Engine) -> None:
    """Have the engine make connections that don't wait for ever."""
    event.listen(engine, "do_connect", _bounded)


def wait_without_end(connection: Connection) -> None:
    """Until it goes back into the pool, this connection waits as long as an answer takes."""
    raw: Any = connection.connection.driver_connection
    raw.silence_max_s = None
