"""A payment's history: one event for each change that concerns the tenant, in its transaction."""

from __future__ import annotations

from typing import Any, Final

import structlog
from sqlalchemy.orm import Session

from payments_app.payments.model import Payment
from payments_app.payments.states import Event, Status
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Verdict
from payments_app.webhooks.model import PaymentEvent

log = structlog.get_logger(__name__)

# The actor when no request caused it.
ENGINE: Final = "engine"


def append_event(
    session: Session,
    payment: Payment,
    event: Event,
    *,
    actor: str,
    request_id: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add the next event. `data` has no number, no secret, no text of the tenant's."""
    session.add(PaymentEvent(**_line(payment, event, actor, request_id, data)))


def append_to_batch(
    batch: WriteBatch, payment: Payment, event: Event, *, data: dict[str, Any]
) -> None:
    """The same for a write batch, with the engine as actor."""
    batch.events.append(_line(payment, event, ENGINE, None, data))


def note_contradiction(batch: WriteBatch, payment: Payment, verdict: Verdict) -> None:
    """Record a late answer that contradicts the recorded end. It changes nothing else."""
    ends = {Verdict.SUCCESSFUL: Status.SUCCESSFUL, Verdict.FAILED: Status.FAILED}
    if payment.is_final and ends.get(verdict, payment.status) != payment.status:
        log.error("payment.contradicted", verdict=verdict)
        append_to_batch(batch, payment, Event.CONTRADICTED, data={"verdict": verdict})


def _line(
    payment: Payment,
    event: Event,
    actor: str,
    request_id: str | None,
    data: dict[str, Any] | None,
) -> dict[str, Any]:
    payment.sequence += 1
    return {
        "tenant_id": payment.tenant_id,
        "mode": payment.mode,
        "payment_id": payment.id,
        "sequence": payment.sequence,
        "type": event,
        "status": payment.status,
        "stage": payment.stage,
        "actor": actor,
        "request_id": request_id,
        "data": data or {},
    }
