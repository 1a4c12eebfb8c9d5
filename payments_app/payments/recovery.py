"""Recovery after a restore: nothing is sent until the provider was asked about open payments.

What was accepted or sent since the backup isn't in it. So each open payment counts as possibly
sent, and no tenant's payments are submitted until the provider has answered about all of its open
ones. A key used since the backup gives the same reference when it is used again: see accept.py.
So for some days a new payment's only request may not be the only one: see evidence.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from payments_app.audit.comparison import words_of
from payments_app.audit.record import record
from payments_app.kernel.database import database_now, transaction
from payments_app.payments.errors import RecoveryUnfinished
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.payment_events import append_event
from payments_app.payments.states import Event, Stage, Status, Step
from payments_app.providers.contract import Verdict
from payments_app.tenants.holds import RESTORED, held_tenants, hold_in, release_in
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import list_tenants
from payments_app.webhooks.feed import leave_gap

log = structlog.get_logger(__name__)

BATCH: Final = 500
# Verdicts that are no answer about the payment.
_NO_ANSWER: Final = (Verdict.UNKNOWN, Verdict.NOT_SENT)


@dataclass(frozen=True, slots=True)
class Progress:
    """A tenant that is held for a restore. `waiting`: open payments without an answer yet."""

    tenant: Tenant
    open: int
    waiting: int


def begin_recovery(*, actor: str) -> list[Progress]:
    """Hold every tenant, and treat each open payment as possibly sent.

    Before the first worker starts. A second call checks all payments again. A tenant that was held
    before, or is held for another reason meanwhile, stays held afterwards.
    """
    for tenant in list_tenants():
        with transaction(tenant.id) as session:
            hold_in(session, tenant.id, why=RESTORED, actor=actor)
            restored = (
                update(Tenant).where(Tenant.id == tenant.id).values(restored_at=database_now())
            )
            restored_at = session.scalar(restored.returning(Tenant.restored_at))
            detail = {"restored_at": words_of(restored_at)}
            _record(session, tenant.id, actor=actor, action="recovery.begun", detail=detail)
            leave_gap(session, tenant.id)
        after: UUID | None = None
        while ids := _batch(tenant.id, after):
            _doubt(tenant.id, ids)
            after = ids[-1]
    return progress()


def progress() -> list[Progress]:
    """The progress of each tenant that is held for a restore."""
    return [_progress(tenant) for tenant in held_tenants(RESTORED)]


def finish_recovery(*, actor: str) -> list[Progress]:
    """Release the tenants whose open payments were all checked; returns them.

    Raises RecoveryUnfinished when some have to wait; the others are released all the same.
    """
    before = progress()
    ready = [one for one in before if not one.waiting]
    for one in ready:
        with transaction(one.tenant.id) as session:
            release_in(session, one.tenant.id, actor=actor)
            _record(session, one.tenant.id, actor=actor, action="recovery.finished")
    waiting = [one for one in before if one.waiting]
    if waiting:
        counts = ", ".join(f"{one.tenant.slug} ({one.waiting})" for one in waiting)
        raise RecoveryUnfinished(
            f"The provider hasn't answered yet about payments of {counts}. Are the workers up?"
            f" {len(ready)} other tenants go on."
        )
    return ready


def _batch(tenant_id: UUID, after: UUID | None) -> list[UUID]:
    wanted = (
        select(Payment.id)
        .where(Payment.tenant_id == tenant_id, Payment.status == Status.PENDING)
        .order_by(Payment.id)
        .limit(BATCH)
    )
    if after is not None:
        wanted = wanted.where(Payment.id > after)
    with transaction(tenant_id) as session:
        return list(session.scalars(wanted))


def _doubt(tenant_id: UUID, ids: list[UUID]) -> None:
    with transaction(tenant_id) as session:
        rows = session.execute(
            select(Payment, func.statement_timestamp())
            .where(Payment.id.in_(ids), Payment.status == Status.PENDING)
            .order_by(Payment.id)
            .with_for_update(of=Payment, key_share=True)
        )
        for payment, now in rows:
            _take_for_sent(session, payment, now)


def _take_for_sent(session: Session, payment: Payment, now: datetime) -> None:
    if payment.stage == Stage.ACCEPTED:
        payment.apply(Event.UNKNOWN, now)
        append_event(session, payment, Event.UNKNOWN, actor="recovery", data={"reason": "restored"})
    payment.next_step = Step.CHECK
    payment.next_action_at = now
    payment.lease_until = None
    # A claim from the time of the backup is no longer valid.
    payment.generation += 1
    # It may have been sent just now: a provider that doesn't know it yet is asked again.
    payment.submitted_at = now


def _progress(tenant: Tenant) -> Progress:
    is_open = (Payment.tenant_id == tenant.id) & (Payment.status == Status.PENDING)
    answered = exists().where(
        ProviderExchange.payment_id == Payment.id,
        ProviderExchange.kind == Step.CHECK,
        ProviderExchange.finished_at >= tenant.held_at,
        ProviderExchange.verdict.not_in(_NO_ANSWER),
    )
    with transaction(tenant.id) as session:
        counts = session.execute(
            select(func.count(), func.count().filter(~answered)).select_from(Payment).where(is_open)
        ).one()
    return Progress(tenant, *counts)


def _record(
    session: Session,
    tenant_id: UUID,
    *,
    actor: str,
    action: str,
    detail: Mapping[str, object] | None = None,
) -> None:
    record(
        session,
        tenant_id=tenant_id,
        actor=actor,
        action=action,
        subject_type="tenant",
        subject_id=tenant_id,
        detail=detail,
    )
