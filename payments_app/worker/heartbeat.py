"""The heartbeat of a worker or of beat: when its loop last ran."""

from __future__ import annotations

import time
from typing import Final

# The loops run each second or more often. A pass that the database or the broker refuses counts
# too: a new process would not do better. The heartbeat stops if all loops hang (a frozen server).
SILENT_MAX_S: Final = 30.0


class Heartbeat:
    """Any thread may touch it, and any thread may read it."""

    def __init__(self, *, silent_max_s: float = SILENT_MAX_S) -> None:
        """Counts as a touch: a process that has just started is alive."""
        self._silent_max_s = silent_max_s
        self._touched_at = time.monotonic()

    def touch(self) -> None:
        """A loop has made a pass."""
        self._touched_at = time.monotonic()

    def is_fresh(self) -> bool:
        """Whether a loop has made a pass within `silent_max_s`."""
        return time.monotonic() - self._touched_at <= self._silent_max_s
