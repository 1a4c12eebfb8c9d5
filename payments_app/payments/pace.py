"""Questions to a provider stay under its limit, over all workers of the installation."""

from __future__ import annotations

import random
import time
from typing import Final

from redis import Redis, RedisError

from payments_app.providers.contract import ProviderAccount

WINDOW_S: Final = 1.0
# Those that are held back come again spread over this long, not all in the next second.
SPREAD_S: Final = 4.0


class SharedPace:
    """A count for each second in Redis; while Redis is away, a count in this process.

    The count is approximate at a second's edge: the limits are advice (MTN: about 10 status
    questions a second), and going over costs a 429 that we obey.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._own: tuple[int, int] = (0, 0)

    def wait_s(self, account: ProviderAccount, checks_per_s: float | None) -> float:
        """0 when a question may leave now, else the seconds to wait."""
        if checks_per_s is None:
            return 0.0
        second = int(time.time())
        name = f"pace:{account.provider}:{account.id or 'platform'}:{second}"
        if self._count(name, second) <= checks_per_s * WINDOW_S:
            return 0.0
        return WINDOW_S + random.uniform(0, SPREAD_S)  # noqa: S311  not a secret

    def _count(self, name: str, second: int) -> int:
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.incr(name)
                pipe.expire(name, 5)
                count: int = pipe.execute()[0]
                return count
        except RedisError:
            then, count = self._own
            self._own = (second, count + 1 if then == second else 1)
            return self._own[1]
