"""A provider's callback: kept, and a reason to ask now. What it says is never believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import snapshot, transaction
from payments_app.kernel.jobs import Job, enqueue
from payments_app.kernel.vault import Vault
from payments_app.payments.model import Callback, Payment
from payments_app.payments.payers import Payer, payer_of
from payments_app.payments.states import Status, Step

log = structlog.get_logger(__name__)

# One payment's callbacks beyond this many different ones are answered and not stored.
CALLBACKS_MAX: Final = 50
_CALLBACK: Final = "callback"


class Came(StrEnum):
    """What is made of a callback. The last three are said before it gets here."""

    KEPT = "kept"
    # Kept, and about a payment that had ended: nobody asks any more.
    LATE = "late"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    ERASED = "erased"
    TOO_MANY = "too_many"
    MALFORMED = "malformed"
    FOREIGN = "foreign"
    LIMITED = "limited"


_NEW: Final = frozenset({Came.KEPT, Came.LATE})
for _came in Came:
    metrics.callbacks.labels(_came)


@dataclass(frozen=True, slots=True)
class ReceivedCallback:
    """A callback as it came in, for whatever payment `reference` is."""

    provider: str
    reference: UUID
    method: str
    body: bytes = field(repr=False)
    source: str | None


def note_callback(received: ReceivedCallback, vault: Vault) -> bool:
    """Keep the callback and have the provider asked now. True if it was new.

    It proves nothing: whoever sent it, the payment's end comes from our own question.
    Raises VaultClosed.
    """
    came = _note(received, vault)
    count_callback(came)
    return came in _NEW


def count_callback(came: Came) -> None:
    """One more that came to this."""
    metrics.callbacks.labels(came).inc()


def _note(received: ReceivedCallback, vault: Vault) -> Came:
    tenant_id = _tenant_of(received)
    if tenant_id is None:
        log.warning(
            "callback.unknown_reference",
            provider=received.provider,
            reference=str(received.reference),
        )
        return Came.UNKNOWN
    with transaction(tenant_id) as session:
        payment = session.scalars(
            select(Payment).where(
                Payment.reference == received.reference, Payment.provider == received.provider
            )
        ).one()
        tracing.current().link(payment.traceparent)
        tracing.current().note({tracing.PAYMENT: str(payment.id)})
        came = _keep_callback(session, payment, received, vault)
        if came not in _NEW:
            return came
        session.execute(
            update(Payment)
            .where(
                Payment.id == payment.id,
                Payment.status == Status.PENDING,
                Payment.next_step == Step.CHECK,
            )
            .values(next_action_at=func.least(Payment.next_action_at, func.clock_timestamp()))
        )
        enqueue(session, Job.ADVANCE_PAYMENTS)
        log.info("callback.received", payment_id=str(payment.id), late=payment.is_final)
        return came


def opened_callback(payer: Payer | None, body: bytes) -> bytes | None:
    """What a callback said; None once the payer has been erased. Raises VaultClosed."""
    return payer and payer.box.open(body, about=_CALLBACK)


def _tenant_of(received: ReceivedCallback) -> UUID | None:
    """Whose payment the reference is; the function opens the wall for this and no more."""
    door = select(func.tenant_of_reference(received.provider, received.reference))
    with snapshot() as connection:
        found: UUID | None = connection.scalar(door)
    return found


def _keep_callback(
    session: Session, payment: Payment, received: ReceivedCallback, vault: Vault
) -> Came:
    payer = payer_of(vault, payment)
    if payer is None:
        log.info("callback.payer_erased", payment_id=str(payment.id))
        return Came.ERASED
    kept = session.scalar(
        select(func.count()).select_from(Callback).where(Callback.payment_id == payment.id)
    )
    if kept is not None and kept >= CALLBACKS_MAX:
        log.warning("callback.too_many", payment_id=str(payment.id))
        return Came.TOO_MANY
    stored = session.execute(
        insert(Callback)
        .values(
            tenant_id=payment.tenant_id,
            payment_id=payment.id,
            digest=payer.box.digest(received.body, about=_CALLBACK),
            method=received.method,
            body=payer.box.seal(received.body, about=_CALLBACK),
            source=received.source,
        )
        .on_conflict_do_nothing()
        .returning(Callback.id)
    ).first()
    if stored is None:
        return Came.REPEATED
    return Came.LATE if payment.is_final else Came.KEPT
