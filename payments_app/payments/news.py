"""What tenants are told of their payments' events: thin, and nothing that could be another's.

The number is masked, and texts that the tenant wrote stay where they are: whoever wants more asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from payments_app.payments.model import Payment, PaymentEvent
from payments_app.payments.states import Status
from payments_app.webhooks import feed
from payments_app.webhooks.model import WebhookEvent


def publish_news() -> int:
    """Publish what has happened to payments since; how many events."""
    return feed.publish_events(_describe)


def _describe(session: Session, events: Sequence[WebhookEvent]) -> dict[int, dict[str, Any]]:
    numbers = [event.number for event in events]
    rows = session.execute(
        select(WebhookEvent.number, PaymentEvent, Payment)
        .join(
            PaymentEvent,
            (PaymentEvent.payment_id == WebhookEvent.payment_id)
            & (PaymentEvent.sequence == WebhookEvent.sequence),
        )
        .join(Payment, Payment.id == PaymentEvent.payment_id)
        .where(WebhookEvent.number.in_(numbers))
    )
    return {number: _words(event, payment) for number, event, payment in rows}


def _words(event: PaymentEvent, payment: Payment) -> dict[str, Any]:
    return {
        "payment_id": str(payment.id),
        "sequence": event.sequence,
        "status": event.status,
        "stage": event.stage,
        "amount": str(payment.money),
        "currency": payment.currency,
        "payer": payment.payer_masked,
        "external_id": payment.external_id,
        "provider": payment.provider,
        "provider_reference": str(payment.reference),
        # Both are known from the end on, which is the only event that tells them.
        "failure_code": payment.failure_code if event.status == Status.FAILED else None,
        "provider_transaction_id": (
            payment.provider_transaction_id if event.status == Status.SUCCESSFUL else None
        ),
    }
