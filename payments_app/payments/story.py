"""A payment's story: one line for each change, in the transaction of the change."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.orm import Session

from payments_app.payments.model import Payment, PaymentEvent
from payments_app.payments.states import Event

# Who made it happen, when it was no request.
ENGINE: Final = "engine"


def record_event(
    session: Session,
    payment: Payment,
    event: Event,
    *,
    actor: str,
    request_id: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add the next line. `data` holds no number, no secret, no text of the tenant's."""
    payment.sequence += 1
    session.add(
        PaymentEvent(
            tenant_id=payment.tenant_id,
            payment_id=payment.id,
            sequence=payment.sequence,
            type=event,
            status=payment.status,
            stage=payment.stage,
            actor=actor,
            request_id=request_id,
            data=data or {},
        )
    )
