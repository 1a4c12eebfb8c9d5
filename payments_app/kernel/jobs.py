"""Doorbells: after the commit, tell the workers that there is work. The rows are the queue."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Final

import structlog
from celery import current_app
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from payments_app.kernel.database import after_commit

log = structlog.get_logger(__name__)

# A ring that nobody answered for this long is pointless: the sweep has rung since.
RING_EXPIRES_S: Final = 30
# While the broker is away, don't make every request find that out anew.
DEAF_S: Final = 5.0
_deaf_until = 0.0


class Job(StrEnum):
    """What can be rung for; each has one task in worker/tasks.py."""

    ADVANCE_PAYMENTS = "payments.advance"
    EXPIRE_ANSWERS = "idempotency.expire_answers"
    ERASE_PAYERS = "payers.erase"
    SEAL_EVENTS = "payment_events.seal"
    FORGET_DELIVERIES = "webhook_deliveries.forget"


def enqueue(session: Session, job: Job) -> None:
    """Ring for `job` once this session's transaction has committed."""
    after_commit(session, lambda: ring(job))


def ring(job: Job) -> None:
    """Ring now. A broker that is away costs latency only: the sweep finds the row."""
    global _deaf_until  # noqa: PLW0603  one broker a process, one moment when it was last away
    if time.monotonic() < _deaf_until:
        return
    try:
        current_app.send_task(job.value, ignore_result=True, retry=False, expires=RING_EXPIRES_S)
    except (OperationalError, OSError) as error:
        _deaf_until = time.monotonic() + DEAF_S
        log.warning("doorbell.lost", job=job.value, error=type(error).__name__)
