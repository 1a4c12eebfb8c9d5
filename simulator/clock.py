"""The simulator's time: real time plus an offset that the admin API moves forward."""

import time
from datetime import UTC, datetime


class Clock:
    """A clock that can be moved ahead, never back."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s

    def now(self) -> float:
        """Seconds since the epoch, in the simulator's time."""
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Move the clock ahead."""
        self.offset_s += seconds


def as_text(at: float) -> str:
    """Format an instant as the admin API shows it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
