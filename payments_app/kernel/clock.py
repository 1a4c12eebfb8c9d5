"""Time is aware and comes from here; what several machines must agree on comes from the database."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The wall clock of this machine, aware, in UTC."""
    return datetime.now(UTC)


def boot_seconds() -> float:
    """Seconds that have passed since some fixed instant, suspended time included.

    A process that was stopped or a machine that slept must see that the time has passed
    without it, which CLOCK_MONOTONIC on Linux doesn't count while suspended.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
