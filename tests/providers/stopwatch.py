"""Measures a block, and how long the machine did not run this process meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Final, Self

_STEP_S: Final = 0.01
# A thread that wakes up later than that was not run; less is the switch from thread to thread.
_LATE_S: Final = 0.05


class Stopwatch:
    """`elapsed_s`: real time. `stood_s`: how much too late a sleeping thread was woken in it.

    `awake_s` is the rest, by which a bound holds on a machine that stands still for a while too.
    """

    def __init__(self) -> None:
        self.elapsed_s = self.stood_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def awake_s(self) -> float:
        return self.elapsed_s - self.stood_s

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s = time.monotonic() - self._started
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(_STEP_S):
            now = time.monotonic()
            late_s = now - before - _STEP_S
            self.stood_s += late_s if late_s > _LATE_S else 0.0
            before = now
