"""Reads: one payment, a page of them, its events. Always of one tenant and mode."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import defer

from payments_app.kernel.cursors import cursor_at, time_and_id
from payments_app.kernel.database import transaction
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.errors import PaymentNotFound
from payments_app.payments.model import Payment
from payments_app.payments.payers import payer_index
from payments_app.tenants.caller import Caller
from payments_app.webhooks.model import PaymentEvent

PAGE_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class PaymentFilter:
    """The filter; None matches any. Times of creation: `created_from` <= time < `created_to`."""

    status: str | None = None
    payer: Msisdn | None = None
    external_id: str | None = None
    money: Money | None = None
    currency: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class PaymentPage:
    """Some payments, newest first, and the cursor of the next page if there is one."""

    payments: list[Payment]
    next_cursor: str | None


def find_payment(caller: Caller, payment_id: UUID) -> Payment:
    """Raises PaymentNotFound, also for a payment of another tenant or mode."""
    # Compared so that no index of all the tenant's payments fits, however few there are.
    own = (
        Payment.tenant_id.is_not_distinct_from(caller.tenant_id),
        Payment.mode.is_not_distinct_from(str(caller.mode)),
    )
    with transaction(caller.tenant_id, by_index=True) as session:
        payment = session.scalars(select(Payment).where(Payment.id == payment_id, *own)).first()
    if payment is None:
        raise PaymentNotFound("There is no such payment.")
    return payment


def find_id(tenant_id: UUID, mode: str, external_id: str | None) -> UUID | None:
    """The payment that has this external_id in this mode."""
    wanted = select(Payment.id).where(
        Payment.tenant_id == tenant_id, Payment.mode == mode, Payment.external_id == external_id
    )
    with transaction(tenant_id) as session:
        return session.scalars(wanted).first()


def find_events(caller: Caller, payment_id: UUID, *, after: int, limit: int) -> list[PaymentEvent]:
    """The payment's events in order, after sequence `after`. Raises PaymentNotFound."""
    find_payment(caller, payment_id)
    with transaction(caller.tenant_id) as session:
        return list(
            session.scalars(
                select(PaymentEvent)
                .where(
                    PaymentEvent.tenant_id == caller.tenant_id,
                    PaymentEvent.payment_id == payment_id,
                    PaymentEvent.sequence > after,
                )
                .options(defer(PaymentEvent.feed_data, raiseload=True))
                .order_by(PaymentEvent.sequence)
                .limit(limit)
            )
        )


def list_payments(
    caller: Caller, wanted: PaymentFilter, *, limit: int, cursor: str | None, keyring: TenantKeyring
) -> PaymentPage:
    """A page, newest first. Raises CursorInvalid, DataKeyUnreadable."""
    query = _filtered(_own(caller), wanted)
    if wanted.payer is not None:
        query = query.where(
            Payment.payer_index == payer_index(keyring, caller.tenant_id, wanted.payer)
        )
    if cursor is not None:
        query = query.where(tuple_(Payment.created_at, Payment.id) < time_and_id(cursor))
    query = query.order_by(Payment.created_at.desc(), Payment.id.desc()).limit(limit + 1)
    with transaction(caller.tenant_id) as session:
        found = list(session.scalars(query))
    page = found[:limit]
    return PaymentPage(
        page, cursor_at(page[-1].created_at, page[-1].id) if len(found) > limit else None
    )


def _own(caller: Caller) -> Select[Payment]:
    return select(Payment).where(Payment.tenant_id == caller.tenant_id, Payment.mode == caller.mode)


def _filtered(query: Select[Payment], wanted: PaymentFilter) -> Select[Payment]:
    exact = {
        Payment.status: wanted.status,
        Payment.external_id: wanted.external_id,
        Payment.currency: wanted.currency,
        Payment.amount_minor: wanted.money.minor if wanted.money else None,
    }
    for column, value in exact.items():
        if value is not None:
            query = query.where(column == value)
    if wanted.created_from is not None:
        query = query.where(Payment.created_at >= wanted.created_from)
    if wanted.created_to is not None:
        query = query.where(Payment.created_at < wanted.created_to)
    return query
