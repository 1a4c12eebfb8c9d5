"""This machine's clocks. Times that several machines must agree on come from the database."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time of this machine, timezone-aware, in UTC."""
    return datetime.now(UTC)


def boot_seconds() -> float:
    """Seconds since some fixed instant, time in suspension included.

    After a machine's suspension, deadlines and leases must have run on. CLOCK_MONOTONIC on Linux
    doesn't count time in suspension; CLOCK_BOOTTIME does.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
