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
    What the measured thread computes meanwhile is no standing still, even if it lets no other run.
    """

    def __init__(self) -> None:
        self.elapsed_s = self.stood_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def awake_s(self) -> float:
        return self.elapsed_s - self.stood_s

    def __enter__(self) -> Self:
        self._used = time.pthread_getcpuclockid(threading.get_ident())
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s = time.monotonic() - self._started
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before, used_before_s = time.monotonic(), time.clock_gettime(self._used)
        while not self._over.wait(_STEP_S):
            now, used_s = time.monotonic(), time.clock_gettime(self._used)
            late_s = now - before - _STEP_S - (used_s - used_before_s)
            self.stood_s += late_s if late_s > _LATE_S else 0.0
            before, used_before_s = now, used_s
