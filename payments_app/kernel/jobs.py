"""Notifications: after the commit, notify the workers of new work. The rows are the queue."""

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

# Drop an unconsumed notification after this: a worker's poll has found the row by then.
NOTIFICATION_EXPIRES_S: Final = 30
# While the broker is unavailable, try it only once in this time, not in every request.
BROKER_BACKOFF_S: Final = 5.0
# How long a process that ends waits for unsent notifications: a broker's timeout.
FLUSH_S: Final = 2.0
# The message header for a notification's trace.
TRACEPARENT: Final = "traceparent"
_broker_away_until = 0.0


class Job(StrEnum):
    """What a worker can be notified of; each has one task in worker/tasks.py."""

    PROCESS_DUE = "payments.process_due"
    DISPATCH_WEBHOOKS = "webhooks.dispatch"
    PURGE_RESPONSES = "idempotency.expire_answers"
    ERASE_PAYERS = "payers.erase"
    WRITE_CHECKPOINTS = "payment_events.seal"
    CHECK_INVARIANTS = "invariants.check"
    PURGE_DELIVERIES = "webhook_deliveries.forget"


# The least time between two notifications of one job by one process. A single one wakes a worker
# that takes all due work, and a busy worker looks for more anyway; each costs a worker some
# milliseconds of processor time. For webhooks each worker polls every 0.2 s anyway.
NOTIFY_INTERVAL_S: Final = dict.fromkeys(Job, 0.2) | {Job.DISPATCH_WEBHOOKS: 1.0}
for _job in Job:
    metrics.doorbells_lost.labels(_job)


class JobNotifier:
    """Sends from a separate thread: one message for many payments; no request waits for a broker.

    If the process is killed before it sends, the workers' polls find the rows.
    """

    def __init__(self) -> None:
        self._wanted: dict[Job, str | None] = {}
        self._not_before: dict[Job, float] = {}
        self._is_sending = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def notify_soon(self, job: Job, traceparent: str | None) -> None:
        """Notify of `job` within its interval. Calls until then share one message, in one trace."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._wanted.setdefault(job, traceparent)
            self._changed.notify_all()

    def flush(self) -> None:
        """Send what waits, and wait until all is sent, for FLUSH_S at most."""
        with self._changed:
            self._not_before.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._wanted or self._is_sending), FLUSH_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_sending = False
                self._changed.notify_all()
                while not (due := self._take_due()):
                    self._changed.wait(self._pause_s())
                # The workers may poll before the work of a later call, so that one is sent too.
                self._is_sending = True
            for job, traceparent in due.items():
                try:
                    notify(job, traceparent=traceparent)
                except Exception:
                    # Such as a permission that the broker refuses; another job's may be accepted.
                    metrics.doorbells_lost.labels(job).inc()
                    log.exception("notification.failed", job=job.value)

    def _take_due(self) -> dict[Job, str | None]:
        now = time.monotonic()
        due = [job for job in self._wanted if self._not_before.get(job, now) <= now]
        self._not_before.update({job: now + NOTIFY_INTERVAL_S[job] for job in due})
        return {job: self._wanted.pop(job) for job in due}

    def _pause_s(self) -> float | None:
        """Seconds until the first waiting notification may be sent; None if none is waiting."""
        if not self._wanted:
            return None
        return max(0.0, min(self._not_before[job] for job in self._wanted) - time.monotonic())


_notifier = JobNotifier()


def notify_soon(job: Job) -> None:
    """Have workers notified of `job`, whose work is committed already.

    Payments are processed in the caller's trace. Other jobs get none: they are for many payments.
    """
    _notifier.notify_soon(job, tracing.here() if job is Job.PROCESS_DUE else None)


def enqueue(session: Session, job: Job) -> None:
    """Notify of `job` once this session's transaction has committed: see `notify_soon`."""
    after_commit(session, lambda: notify_soon(job))


def notify(job: Job, *, traceparent: str | None = None) -> None:
    """Notify now. An unavailable broker costs latency only: the polls find the row.

    `traceparent`: the trace that caused it. A worker that notifies another one gives none: a whole
    backlog would become part of one payment's trace.
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
