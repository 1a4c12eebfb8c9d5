"""The rows as work: those that are due, and those that came home, under their locks."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, func, literal, select
from sqlalchemy.orm import Session

from payments_app.payments.model import Payment
from payments_app.payments.states import Status
from payments_app.tenants.model import Tenant


class Due(NamedTuple):
    """A payment that is due, the database's time, and since when its tenant's brake is on."""

    payment: Payment
    now: datetime
    held_at: datetime | None


def due_payments(session: Session, limit: int) -> list[Due]:
    """Those that are due longest, locked. What another has in hand or under a lock is left out."""
    now = func.statement_timestamp()
    query = (
        select(Payment, now, Tenant.held_at)
        .join(Tenant, Tenant.id == Payment.tenant_id)
        .where(
            Payment.status == Status.PENDING,
            Payment.next_action_at <= now,
            func.coalesce(Payment.lease_until, Payment.next_action_at) <= now,
        )
        .order_by(Payment.next_action_at)
        .limit(limit)
        .with_for_update(of=Payment, skip_locked=True)
    )
    return [Due(*row) for row in session.execute(query)]


def locked_payments(
    session: Session, payment_ids: Collection[UUID]
) -> tuple[dict[UUID, Payment], datetime]:
    """These, and the database's time. In one order for all: so no two wait for each other."""
    rows = session.execute(
        select(Payment, func.statement_timestamp())
        .where(Payment.id == any_(literal(list(payment_ids), ARRAY(Uuid))))
        .order_by(Payment.id)
        .with_for_update(of=Payment)
    ).all()
    return {payment.id: payment for payment, _ in rows}, rows[0][1]
