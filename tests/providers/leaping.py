"""The clock that the product reads, in a test's hands: it leaps, or it stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

from payments_app.kernel import clock as kernel_clock


class LeapingClock:
    """Replaces the module `time` in kernel.clock: real time, and what a test adds to it."""

    CLOCK_BOOTTIME: Final = 7

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._stands_at: float | None = None

    def clock_gettime(self, _which: int) -> float:
        """The value that the kernel's boot_seconds() returns."""
        at = time.monotonic() if self._stands_at is None else self._stands_at
        return at + self._ahead_s

    def leap(self, seconds: float) -> None:
        """Add so many seconds at once."""
        self._ahead_s += seconds

    def stop(self) -> None:
        """From now on only `leap` moves it."""
        self._stands_at = time.monotonic()


@contextmanager
def leaping() -> Iterator[LeapingClock]:
    """Make the kernel's one source of time read this clock. Sockets and Redis use real time."""
    clock = LeapingClock()
    with patch.object(kernel_clock, "time", clock):
        yield clock
