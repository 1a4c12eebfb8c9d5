"""What tenants are told of their payments' events: thin, and nothing that could be another's.

The number is masked, and texts that the tenant wrote stay where they are: whoever wants more asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, RowMapping, any_, bindparam, select
from sqlalchemy.orm import Session

from payments_app.kernel.money import Money
from payments_app.payments.model import Payment, PaymentEvent
from payments_app.payments.states import Status
from payments_app.webhooks import feed
from payments_app.webhooks.model import WebhookEvent

# Columns and no objects: three lines for each payment are read here.
_LINES: Final = (
    select(
        WebhookEvent.number,
        PaymentEvent.payment_id,
        PaymentEvent.sequence,
        PaymentEvent.status,
        PaymentEvent.stage,
        Payment.amount_minor,
        Payment.currency,
        Payment.payer_masked,
        Payment.external_id,
        Payment.provider,
        Payment.reference,
        Payment.failure_code,
        Payment.provider_transaction_id,
    )
    .join(
        PaymentEvent,
        (PaymentEvent.payment_id == WebhookEvent.payment_id)
        & (PaymentEvent.sequence == WebhookEvent.sequence),
    )
    .join(Payment, Payment.id == PaymentEvent.payment_id)
    .where(WebhookEvent.number == any_(bindparam("numbers", type_=ARRAY(BigInteger))))
)


def publish_news() -> int:
    """Publish what has happened to payments since; how many events."""
    return feed.publish_events(_describe)


def _describe(session: Session, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    rows = session.execute(_LINES, {"numbers": list(numbers)}).mappings()
    return {row["number"]: _words(row) for row in rows}


def _words(row: RowMapping) -> dict[str, Any]:
    return {
        "payment_id": str(row["payment_id"]),
        "sequence": row["sequence"],
        "status": row["status"],
        "stage": row["stage"],
        "amount": str(Money(row["amount_minor"], row["currency"])),
        "currency": row["currency"],
        "payer": row["payer_masked"],
        "external_id": row["external_id"],
        "provider": row["provider"],
        "provider_reference": str(row["reference"]),
        # Both are known from the end on, which is the only event that tells them.
        "failure_code": row["failure_code"] if row["status"] == Status.FAILED else None,
        "provider_transaction_id": (
            row["provider_transaction_id"] if row["status"] == Status.SUCCESSFUL else None
        ),
    }
