"""What fails again and again is logged once, and then ever more rarely. Pure, but for the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.postgres import is_transient

log = structlog.get_logger(__name__)

# Seconds after a line until the next one: as long as it has failed so far, and at most this.
GAP_MAX_S: Final = 60.0


class FailuresInARow:
    """Of one thing that is tried over and over, such as a poll of the database.

    A line for the first failure, then after 1, 2, 4 … 60 s, each with how many there were; and one
    for the end. Only what says nothing of a database that is away comes with its traceback.
    """

    def __init__(self, seconds: Callable[[], float] = boot_seconds, **names: str) -> None:
        """`names`: what it is that fails, as the lines say it."""
        self._seconds = seconds
        self._names = names
        self._count = 0
        self._first_at = self._next_line_at = 0.0

    def failed(self, error: Exception) -> None:
        """Once more. Call it where the error is handled."""
        now = self._seconds()
        if not self._count:
            self._first_at = self._next_line_at = now
        self._count += 1
        if now < self._next_line_at:
            return
        lasted_s = now - self._first_at
        self._next_line_at = now + min(max(1.0, lasted_s), GAP_MAX_S)
        told = {**self._names, "failures": self._count, "for_s": round(lasted_s, 1)}
        if is_transient(error):
            log.error("poller.database_unavailable", error=type(error).__name__, **told)
        else:
            log.error("poller.failed", exc_info=error, **told)

    def went_well(self) -> None:
        """Whatever had failed is over."""
        if self._count:
            lasted_s = round(self._seconds() - self._first_at, 1)
            log.info("poller.works_again", **self._names, failures=self._count, for_s=lasted_s)
            self._count = 0
