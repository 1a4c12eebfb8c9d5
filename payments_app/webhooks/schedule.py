"""When a delivery is tried again, and for how long an endpoint may fail. Pure."""

from __future__ import annotations

import random
from typing import Final

_MINUTE, _HOUR = 60.0, 3600.0
# Seconds from one attempt to the next; some 76 hours in all (the example of Standard Webhooks,
# with one more early attempt).
PAUSES_S: Final = (
    5.0,
    30.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)
ATTEMPTS_MAX: Final = len(PAUSES_S) + 1
# A pause is up to a tenth longer, so that deliveries that failed together are spread out.
JITTER: Final = 0.1
RETRY_AFTER_MAX_S: Final = 24 * _HOUR
# After a claim that made no attempt, because no DNS lookup slot was free.
BUSY_PAUSE_S: Final = 15.0
DAY_S: Final = 24 * _HOUR
# Days with only failures, after which the tenant is warned, and the endpoint disabled.
WARN_AFTER_DAYS: Final = (1, 3)
DISABLE_AFTER_DAYS: Final = 5


def pause_s(attempts: int, *, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after so many; None if there is no next attempt.

    A Retry-After can only make it later, by a day at most.
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    pause = PAUSES_S[attempts - 1] * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311  no secret
    return max(pause, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


def busy_pause_s() -> float:
    """Seconds until a delivery is claimed again that found no free lookup slot of ours."""
    return BUSY_PAUSE_S * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311  no secret
