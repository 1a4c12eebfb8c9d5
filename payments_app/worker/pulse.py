"""The sign of life of a process that answers nobody: when its clock last ticked."""

from __future__ import annotations

import time
from typing import Final

# Ticks come each second or more often. One that is refused by the database or the broker is a tick
# too: no new process would fare better. Silent is where all hang, as on a server that is frozen.
SILENT_MAX_S: Final = 30.0


class Pulse:
    """Any thread may beat it, any may feel it."""

    def __init__(self, *, silent_max_s: float = SILENT_MAX_S) -> None:
        """Counts as a beat: who has just started is alive."""
        self._silent_max_s = silent_max_s
        self._beat_at = time.monotonic()

    def beat(self) -> None:
        """The clock has ticked."""
        self._beat_at = time.monotonic()

    def is_felt(self) -> bool:
        """Whether it has ticked lately."""
        return time.monotonic() - self._beat_at <= self._silent_max_s
