"""When to act next. Pure: ages and counts in, seconds out."""

from __future__ import annotations

import random
from typing import Final

# After an accepted or unknown submission: a payer needs seconds; a lost answer is found fast.
FIRST_CHECK_S: Final = 1.0
# (age of the submission below, seconds to the next status check). A payer approves within minutes;
# MTN's window is five. After that the provider still decides.
CHECK_TABLE: Final = (
    (10.0, 1.0),
    (60.0, 3.0),
    (300.0, 10.0),
    (900.0, 30.0),
    (3_600.0, 60.0),
    (86_400.0, 300.0),
)
CHECK_MAX_S: Final = 1_800.0
# A submission that proved without effect is sent again: quickly at first, slower in an outage.
SUBMIT_FIRST_S: Final = 1.0
SUBMIT_MAX_S: Final = 15.0
# The account can't be opened: an operator must act, so don't retry often.
ACCOUNT_MISSING_S: Final = 60.0
# The longest Retry-After that we obey.
RETRY_AFTER_MAX_S: Final = 300.0
RESEND_MAX_S: Final = 600.0
JITTER: Final = 0.2


def first_check_s(retry_after_s: float | None = None) -> float:
    """Seconds until the first status check of a submission."""
    return max(FIRST_CHECK_S, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


def check_delay_s(age_s: float) -> float:
    """Seconds until the next status check of a submission that is `age_s` old."""
    for limit, delay in CHECK_TABLE:
        if age_s < limit:
            return jittered(delay)
    return jittered(CHECK_MAX_S)


def submit_delay_s(submissions: int, retry_after_s: float | None = None) -> float:
    """Seconds until the next submission, after `submissions` without effect."""
    exponent = min(max(submissions - 1, 0), 10)
    delay = jittered(min(SUBMIT_FIRST_S * 2**exponent, SUBMIT_MAX_S))
    return max(delay, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


def resend_after_s(first_s: float, submissions: int) -> float:
    """How long "not found" must have lasted before the same reference is sent again."""
    return min(first_s * 2.0 ** min(max(submissions - 1, 0), 10), RESEND_MAX_S)


def jittered(delay_s: float) -> float:
    """Vary by a fifth, so that payments that failed together aren't retried together."""
    return delay_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  not a secret
