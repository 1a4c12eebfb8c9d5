"""Logs a repeated failure once, and then less and less often. Pure, except for the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.postgres import is_transient

log = structlog.get_logger(__name__)

# The pause after a log line is as long as the failures have lasted so far, and at most this.
GAP_MAX_S: Final = 60.0


class FailuresInARow:
    """The failures in a row of one repeated action, such as a poll of the database.

    It logs the first failure, then after 1, 2, 4 … 60 s, each time with the count, and the end of
    the failures. The traceback is left out if the database is unavailable.
    """

    def __init__(self, seconds: Callable[[], float] = boot_seconds, **names: str) -> None:
        """`names`: log fields that name the action."""
        self._seconds = seconds
        self._names = names
        self._count = 0
        self._first_at = self._next_line_at = 0.0

    def failed(self, error: Exception) -> None:
        """Count one more failure. Call it where the error is handled."""
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
        """The action succeeded: log the end of the failures, if there were any."""
        if self._count:
            lasted_s = round(self._seconds() - self._first_at, 1)
            log.info("poller.works_again", **self._names, failures=self._count, for_s=lasted_s)
            self._count = 0
