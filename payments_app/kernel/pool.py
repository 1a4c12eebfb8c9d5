"""The database's connections in this process: so many and no more, and counted."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from payments_app.kernel import metrics

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
            (lambda *_: metrics.database_pool_in_use.inc(), "checkout"),
            (lambda *_: metrics.database_pool_in_use.dec(), "checkin"),
        ],
    }
