"""Doorbells: after the commit, tell the workers that there is work. The rows are the queue."""

from __future__ import annotations

import atexit
import threading
import time
from enum import StrEnum
from typing import Final

import structlog
from celery import current_app
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import after_commit

log = structlog.get_logger(__name__)

# A ring that nobody answered for this long is pointless: the sweep has rung since.
RING_EXPIRES_S: Final = 30
# While the broker is away, don't make every request find that out anew.
DEAF_S: Final = 5.0
# Between two rings: one wakes a worker that takes all there is.
REST_S: Final = 0.05
# What the end of a process waits for a ring: a broker's timeout.
SETTLE_S: Final = 2.0
# The header of a ring.
TRACEPARENT: Final = "traceparent"
_deaf_until = 0.0


class Job(StrEnum):
    """What can be rung for; each has one task in worker/tasks.py."""

    ADVANCE_PAYMENTS = "payments.advance"
    EXPIRE_ANSWERS = "idempotency.expire_answers"
    ERASE_PAYERS = "payers.erase"
    SEAL_EVENTS = "payment_events.seal"
    CHECK_INVARIANTS = "invariants.check"
    FORGET_DELIVERIES = "webhook_deliveries.forget"


for _job in Job:
    metrics.doorbells_lost.labels(_job)


class Bell:
    """Rings from a thread of its own: many payments, one ring, and no request waits for a broker.

    What a process that is killed leaves unrung the sweep finds.
    """

    def __init__(self) -> None:
        self._wanted: dict[Job, str | None] = {}
        self._is_ringing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, job: Job, traceparent: str | None) -> None:
        """Ring for `job` within REST_S. Of several who ask meanwhile, the first one's trace."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._ring_on, name="bell", daemon=True)
                self._thread.start()
                atexit.register(self.settle)
            self._wanted.setdefault(job, traceparent)
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until all is rung, not longer than a broker may take."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._wanted or self._is_ringing), SETTLE_S)

    def _ring_on(self) -> None:
        while True:
            with self._changed:
                self._is_ringing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted)
                self._is_ringing = True
                # Whoever asks from here on may have come after the workers looked.
                wanted, self._wanted = self._wanted, {}
            for job, traceparent in wanted.items():
                ring(job, traceparent=traceparent)
            time.sleep(REST_S)


_bell = Bell()


def ring_soon(job: Job) -> None:
    """Have `job` rung for, in the caller's trace; what it is to find has been committed."""
    _bell.ask(job, tracing.here())


def enqueue(session: Session, job: Job) -> None:
    """Ring for `job` once this session's transaction has committed; in the caller's trace."""
    after_commit(session, lambda: ring_soon(job))


def ring(job: Job, *, traceparent: str | None = None) -> None:
    """Ring now. A broker that is away costs latency only: the sweep finds the row.

    `traceparent`: whose doing this ring is. One worker calling another is nobody's: it would string
    a whole backlog onto one payment's trace.
    """
    global _deaf_until  # noqa: PLW0603  one broker a process, one moment when it was last away
    if time.monotonic() < _deaf_until:
        metrics.doorbells_lost.labels(job).inc()
        return
    try:
        current_app.send_task(
            job.value,
            ignore_result=True,
            retry=False,
            expires=RING_EXPIRES_S,
            headers={TRACEPARENT: traceparent} if traceparent else None,
        )
    except (OperationalError, OSError) as error:
        _deaf_until = time.monotonic() + DEAF_S
        metrics.doorbells_lost.labels(job).inc()
        log.warning("doorbell.lost", job=job.value, error=type(error).__name__)
