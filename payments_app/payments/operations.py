"""What the operator may see and do, for a payment of any tenant. The API never calls this."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session, defer

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.jobs import Job, enqueue
from payments_app.payments.errors import PaymentNotFound
from payments_app.payments.model import Callback, Payment, ProviderExchange
from payments_app.payments.states import Status
from payments_app.providers.contract import Mode
from payments_app.tenants.errors import ProviderAccountMoved
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import as_id
from payments_app.webhooks.model import PaymentEvent

# How many payments an error names if several match.
_NAMED_MAX: Final = 5


class PaymentAmbiguous(GatewayError):
    """More than one payment has this external_id."""

    code = "payment_ambiguous"


class PaymentEnded(GatewayError):
    """The payment has ended: no status check is left to make."""

    code = "payment_ended"


@dataclass(frozen=True, slots=True)
class Story:
    """All that is stored about a payment, each list in order of time."""

    payment: Payment
    events: list[PaymentEvent]
    exchanges: list[ProviderExchange]
    callbacks: list[Callback]


@dataclass(frozen=True, slots=True)
class PaymentFilter:
    """Which payments; None matches any. Times are of acceptance: `since` <= time < `until`."""

    tenant_id: UUID | None = None
    mode: Mode | None = None
    status: Status | None = None
    payer_index: bytes | None = None
    external_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def payment_called(name: str) -> Payment:
    """The payment with this id, or the only one with this external_id, of any tenant.

    Raises PaymentNotFound, PaymentAmbiguous.
    """
    payment_id = as_id(name)
    if payment_id is not None:
        with transaction(EVERY_TENANT) as session:
            if (found := session.get(Payment, payment_id)) is not None:
                return found
    called = latest_payments(PaymentFilter(external_id=name), limit=_NAMED_MAX)
    if not called:
        raise PaymentNotFound("No payment has this id or external_id.")
    if len(called) > 1:
        ids = ", ".join(f"{one.id} ({one.mode})" for one in called)
        raise PaymentAmbiguous(
            f"Several payments have this external_id: {ids}. Name one by its id."
        )
    return called[0]


def latest_payments(wanted: PaymentFilter, *, limit: int) -> list[Payment]:
    """The newest payments that match."""
    newest_first = (Payment.created_at.desc(), Payment.id.desc())
    query = select(Payment).where(*_conditions(wanted)).order_by(*newest_first).limit(limit)
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(query))


def _conditions(wanted: PaymentFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.external_id is not None and wanted.tenant_id is None:
        # The index on external_id begins with the tenant.
        conditions.append(Payment.tenant_id.in_(select(Tenant.id)))
    conditions += [
        getattr(Payment, column) == value
        for column in ("tenant_id", "mode", "status", "payer_index", "external_id")
        if (value := getattr(wanted, column)) is not None
    ]
    if wanted.since is not None:
        conditions.append(Payment.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(Payment.created_at < wanted.until)
    return conditions


def story_of(payment_id: UUID, *, with_bodies: bool = False) -> Story:
    """The payment with its events, exchanges and callbacks. Raises PaymentNotFound.

    Bodies are loaded only on request, and are still encrypted.
    """
    events = (
        select(PaymentEvent)
        .where(PaymentEvent.payment_id == payment_id)
        .options(defer(PaymentEvent.feed_data, raiseload=True))
    )
    exchanges = select(ProviderExchange).where(ProviderExchange.payment_id == payment_id)
    callbacks = select(Callback).where(Callback.payment_id == payment_id)
    if not with_bodies:
        exchanges = exchanges.options(defer(ProviderExchange.body, raiseload=True))
        callbacks = callbacks.options(defer(Callback.body, raiseload=True))
    with transaction(EVERY_TENANT) as session:
        return Story(
            payment=_one(session, payment_id),
            events=list(session.scalars(events.order_by(PaymentEvent.sequence))),
            exchanges=list(session.scalars(exchanges.order_by(ProviderExchange.generation))),
            callbacks=list(session.scalars(callbacks.order_by(Callback.id))),
        )


def refuse_other_merchant(session: Session, account_id: UUID, *, merchant: str) -> None:
    """Raises ProviderAccountMoved if the account has open payments for another merchant."""
    others = select(func.count()).where(
        Payment.account_id == account_id,
        Payment.status == Status.PENDING,
        Payment.merchant != merchant,
    )
    if count := session.scalar(others):
        raise ProviderAccountMoved(
            f"The account would be another merchant's, and for {count} open payments of the one it"
            " is now nothing could be sent or asked. Let them end, or say that it may move."
        )


def recheck_payment(payment_id: UUID, *, actor: str) -> datetime:
    """Make the open payment's next step due now, if it isn't; returns when it is due.

    Like a callback, it changes no status and sends nothing itself, so it may be repeated at any
    time. Raises PaymentNotFound, PaymentEnded.
    """
    due_now = (
        update(Payment)
        .where(Payment.id == payment_id, Payment.status == Status.PENDING)
        .values(
            next_action_at=func.least(Payment.next_action_at, func.clock_timestamp()), hinted=True
        )
        .returning(Payment.tenant_id, Payment.next_action_at)
    )
    with transaction(EVERY_TENANT) as session:
        row = session.execute(due_now).one_or_none()
        if row is None:
            ended = _one(session, payment_id)
            raise PaymentEnded(f"The payment is {ended.status}: there is nothing left to ask.")
        record(
            session,
            tenant_id=row.tenant_id,
            actor=actor,
            action="payment.recheck_asked",
            subject_type="payment",
            subject_id=payment_id,
        )
        enqueue(session, Job.PROCESS_DUE)
        due: datetime = row.next_action_at
        return due


def _one(session: Session, payment_id: UUID) -> Payment:
    payment = session.get(Payment, payment_id)
    if payment is None:
        raise PaymentNotFound("There is no such payment.")
    return payment
