"""Purges expired responses from idempotency keys; the keys stay."""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import func, select

from payments_app.kernel import stored_answers
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.idempotency import IdempotencyKey
from payments_app.payments.model import Payment
from payments_app.payments.states import Status

log = structlog.get_logger(__name__)

BATCH: Final = 500


def purge_responses() -> int:
    """Delete responses that have expired and whose payment, if any, has ended; how many.

    A batch per transaction, so that no lock is held for long.
    """
    dropped = 0
    while batch := _expire_batch():
        dropped += batch
    if dropped:
        log.info("idempotency.answers_dropped", count=dropped)
    return dropped


def _expire_batch() -> int:
    with transaction(EVERY_TENANT) as session:
        keys = session.execute(
            select(IdempotencyKey.tenant_id, IdempotencyKey.mode, IdempotencyKey.key)
            .outerjoin(Payment, Payment.id == IdempotencyKey.resource_id)
            .where(
                IdempotencyKey.expires_at <= func.statement_timestamp(),
                IdempotencyKey.body.is_not(None),
                func.coalesce(Payment.status, "") != Status.PENDING,
            )
            .limit(BATCH)
            .with_for_update(of=IdempotencyKey, skip_locked=True, key_share=True)
        ).all()
        stored_answers.drop_answers(session, [(row[0], row[1], row[2]) for row in keys])
        return len(keys)
