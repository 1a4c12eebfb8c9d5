"""Notifications: after the commit, tell the workers that there is work. The rows are the queue."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import structlog
from celery import current_app
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import after_commit

log = structlog.get_logger(__name__)

# Drop an unconsumed notification after this: the poll of a worker has found the row by then.
NOTIFICATION_EXPIRES_S: Final = 30
# While the broker is away, do not make every request find that out anew.
BROKER_BACKOFF_S: Final = 5.0
# How long the end of a process waits for what is not sent yet: a broker's timeout.
FLUSH_S: Final = 2.0
# The header of a notification.
TRACEPARENT: Final = "traceparent"
_broker_away_until = 0.0


class Job(StrEnum):
    """What a worker can be notified of; each has one task in worker/tasks.py."""

    PROCESS_DUE = "payments.process_due"
    DISPATCH_WEBHOOKS = "webhooks.dispatch"
    EXPIRE_ANSWERS = "idempotency.expire_answers"
    ERASE_PAYERS = "payers.erase"
    SEAL_EVENTS = "payment_events.seal"
    CHECK_INVARIANTS = "invariants.check"
    FORGET_DELIVERIES = "webhook_deliveries.forget"


# Between two notifications of one job by one process: one wakes a worker that takes all there is.
# A webhook is one of several for its payment, and no request waits for it.
NOTIFY_INTERVAL_S: Final[Mapping[Job, float]] = {
    **dict.fromkeys(Job, 0.05),
    Job.DISPATCH_WEBHOOKS: 0.2,
}
for _job in Job:
    metrics.doorbells_lost.labels(_job)


class JobNotifier:
    """Sends from a thread of its own: many payments, one message, and no request waits for a broker.

    What a process that is killed leaves unsent the workers' polls find.
    """

    def __init__(self) -> None:
        self._wanted: dict[Job, str | None] = {}
        self._not_before: dict[Job, float] = {}
        self._is_sending = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def notify_soon(self, job: Job, traceparent: str | None) -> None:
        """Notify of `job` within its interval. Of several calls meanwhile, the first one's trace."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._wanted.setdefault(job, traceparent)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is sent, not longer than a broker may take."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._wanted or self._is_sending), FLUSH_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_sending = False
                self._changed.notify_all()
                while not (due := self._take_due()):
                    self._changed.wait(self._pause_s())
                # A call from here on may come after the workers looked: it is sent too.
                self._is_sending = True
            for job, traceparent in due.items():
                try:
                    notify(job, traceparent=traceparent)
                except Exception:
                    # Such as a right that the broker refuses us: the next one may be taken.
                    metrics.doorbells_lost.labels(job).inc()
                    log.exception("notification.failed", job=job.value)

    def _take_due(self) -> dict[Job, str | None]:
        now = time.monotonic()
        due = [job for job in self._wanted if self._not_before.get(job, now) <= now]
        self._not_before.update({job: now + NOTIFY_INTERVAL_S[job] for job in due})
        return {job: self._wanted.pop(job) for job in due}

    def _pause_s(self) -> float | None:
        """Until the first that is wanted may be sent; None while none is."""
        if not self._wanted:
            return None
        return max(0.0, min(self._not_before[job] for job in self._wanted) - time.monotonic())


_notifier = JobNotifier()


def notify_soon(job: Job) -> None:
    """Have workers notified of `job`; its work has been committed.

    Payments are processed in the caller's trace. A dispatch of webhooks is about many payments.
    """
    _notifier.notify_soon(job, tracing.here() if job is Job.PROCESS_DUE else None)


def enqueue(session: Session, job: Job) -> None:
    """Notify of `job` once this session's transaction has committed; in the caller's trace."""
    after_commit(session, lambda: notify_soon(job))


def notify(job: Job, *, traceparent: str | None = None) -> None:
    """Notify now. A broker that is away costs latency only: the polls find the row.

    `traceparent`: the trace that caused it. A worker that calls another has none: it would put a
    whole backlog into one payment's trace.
    """
    global _broker_away_until  # noqa: PLW0603  one broker a process, one moment when it was last away
    if time.monotonic() < _broker_away_until:
        metrics.doorbells_lost.labels(job).inc()
        return
    try:
        current_app.send_task(
            job.value,
            ignore_result=True,
            retry=False,
            expires=NOTIFICATION_EXPIRES_S,
            headers={TRACEPARENT: traceparent} if traceparent else None,
        )
    except (OperationalError, OSError) as error:
        _broker_away_until = time.monotonic() + BROKER_BACKOFF_S
        metrics.doorbells_lost.labels(job).inc()
        log.warning("notification.lost", job=job.value, error=type(error).__name__)
