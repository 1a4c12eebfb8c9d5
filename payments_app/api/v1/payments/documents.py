"""Payments as the API shows them: functions build the documents, and the schemas describe them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import marshmallow as ma

from payments_app.api.v1.fields import PAGE_MAX
from payments_app.kernel.money import EXPONENTS
from payments_app.payments.accept import PaymentInsert
from payments_app.payments.model import Payment
from payments_app.payments.routing import NewPayment
from payments_app.payments.states import Event, Stage, Status
from payments_app.providers.contract import FailureCode, Mode
from payments_app.providers.failures import FAILURES, Actor, failure_document
from payments_app.webhooks.model import PaymentEvent


def payment_document(payment: Payment, *, payer: str | None) -> dict[str, Any]:
    """A payment as the API shows it. `payer`: as the caller may see it; None if erased."""
    return _document(
        payment, amount=str(payment.money), payer=payer, metadata=payment.tenant_metadata
    )


def accepted_document(payment: PaymentInsert, order: NewPayment) -> dict[str, Any]:
    """The same document for a payment that is being accepted."""
    return _document(
        payment, amount=str(order.money), payer=order.payer.digits, metadata=order.metadata
    )


def _document(
    payment: Payment | PaymentInsert,
    *,
    amount: str,
    payer: str | None,
    metadata: dict[str, Any] | None,
) -> dict[str, Any]:
    """The fields of PaymentSchema, in its order."""
    stored = payment if isinstance(payment, Payment) else None
    return {
        "id": str(payment.id),
        "status": payment.status,
        "stage": payment.stage,
        "amount": amount,
        "currency": payment.currency,
        "payer": payer,
        "provider": payment.provider,
        "mode": payment.mode,
        "external_id": payment.external_id,
        "payer_message": payment.payer_message,
        "payee_note": payment.payee_note,
        "description": payment.description,
        "metadata": metadata,
        "reference": str(payment.reference),
        "provider_transaction_id": stored.provider_transaction_id if stored else None,
        "failure": _failure(stored) if stored else None,
        "created_at": _instant(payment.created_at),
        "updated_at": _instant(payment.updated_at),
        "final_at": _instant(stored.final_at if stored else None),
    }


def _failure(payment: Payment) -> dict[str, Any] | None:
    return failure_document(payment.failure_code, payment.failure_provider_code)


def event_document(event: PaymentEvent) -> dict[str, Any]:
    """One event of a payment's history."""
    return {
        "sequence": event.sequence,
        "type": event.type,
        "status": event.status,
        "stage": event.stage,
        "data": event.data,
        "created_at": _instant(event.created_at),
    }


def _instant(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="microseconds")


CURRENCIES = sorted(EXPONENTS)
# Changes of the engine's own that no event tells.
_WITHOUT_EVENT = {Event.SUBMITTING, Event.NOT_SENT}
_NEXT = {"description": "The cursor of the next page; null on the last one."}
_INSTANT = {"format": "date-time", "example": "2026-01-31T09:12:33.482913+00:00"}


class FailureSchema(ma.Schema):
    """Why a payment failed. docs/errors.md explains each code."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    code = ma.fields.String(
        required=True,
        metadata={
            "description": "Our word for it, the same for every rail; more may come.",
            "examples": [str(code) for code in FailureCode],
        },
    )
    provider_code = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The provider's own code, as it came; `unreadable` if what it gave is no"
            " code, but text that may name the payer.",
            "example": "APPROVAL_REJECTED",
        },
    )
    message = ma.fields.String(
        required=True,
        metadata={
            "description": "A sentence for a person.",
            "example": FAILURES[FailureCode.PAYER_REJECTED].description,
        },
    )
    who_must_act = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Actor)),
        metadata={"description": "Who can do something about it.", "example": Actor.PAYER},
    )
    new_payment_may_help = ma.fields.Boolean(
        required=True,
        metadata={
            "description": "Whether a new payment under a new Idempotency-Key may succeed"
            " without anybody changing a setting first.",
            "example": True,
        },
    )


class PaymentSchema(ma.Schema):
    """A payment. `status` is what tenants rely on; `stage` is the step that it has reached."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    id = ma.fields.UUID(required=True, metadata={"description": "The payment's id."})
    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Status)),
        metadata={
            "description": "PENDING until the provider has said how it ended; then for good.",
            "example": Status.PENDING,
        },
    )
    stage = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Stage)),
        metadata={
            "description": "`accepted`: nothing that can move money has gone to the provider. `submitting`: it may"
            " have arrived. `awaiting_payer`: the provider has it. `unknown`: sent, and we ask"
            " what became of it. `final`: ended.",
            "example": Stage.ACCEPTED,
        },
    )
    amount = ma.fields.String(
        required=True,
        metadata={
            "description": "In major units, with all decimals that the currency has.",
            "pattern": r"^(0|[1-9][0-9]*)(\.[0-9]{2})?$",
            "example": "1000",
        },
    )
    currency = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(CURRENCIES),
        metadata={"description": "ISO 4217.", "example": "UGX"},
    )
    payer = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The payer's number, international, without a plus sign. A key"
            " without the scope `payers:read` is shown its last digits only. Null once the payer has been erased.",
            "pattern": r"^([1-9][0-9]{7,14}|\*{5,12}[0-9]{3})$",
            "example": "256772123456",
        },
    )
    provider = ma.fields.String(
        required=True,
        metadata={
            "description": "The rail that takes it.",
            "pattern": "^[a-z][a-z0-9_]{0,39}$",
            "example": "mtn_momo",
        },
    )
    mode = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Mode)),
        metadata={"description": "The mode of the key that asked for it.", "example": Mode.LIVE},
    )
    external_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Your own reference.", "maxLength": 128, "example": "order-123"},
    )
    payer_message = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "What the payer reads.", "maxLength": 160, "example": "Order 123"},
    )
    payee_note = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "What stands in your statement at the provider.",
            "maxLength": 160,
            "example": "Shop 7",
        },
    )
    description = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Your own note.", "maxLength": 500, "example": "2 shirts"},
    )
    metadata = ma.fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "Your own JSON.", "example": {"cart": "c-981", "clerk": 7}},
    )
    reference = ma.fields.UUID(
        required=True, metadata={"description": "What the provider knows the payment by."}
    )
    provider_transaction_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The provider's own number for the money's move.",
            "example": "1234567890",
        },
    )
    failure = ma.fields.Nested(
        FailureSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Why it failed; null unless it has."},
    )
    created_at = ma.fields.String(
        required=True, metadata={"description": "When it was accepted.", **_INSTANT}
    )
    updated_at = ma.fields.String(
        required=True, metadata={"description": "When its stage last changed.", **_INSTANT}
    )
    final_at = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "When it ended.", **_INSTANT}
    )


class PaymentPageSchema(ma.Schema):
    """A page of payments, newest first."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    data = ma.fields.List(
        ma.fields.Nested(PaymentSchema),
        required=True,
        validate=ma.validate.Length(max=PAGE_MAX),
        metadata={"description": "The payments."},
    )
    next_cursor = ma.fields.String(required=True, allow_none=True, metadata=_NEXT)


class EventSchema(ma.Schema):
    """One event of a payment's history."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    sequence = ma.fields.Integer(
        required=True, metadata={"description": "Counts from 1 without gaps.", "minimum": 1}
    )
    type = ma.fields.String(
        required=True,
        metadata={
            "description": "What happened; more may come.",
            "examples": [str(event) for event in Event if event not in _WITHOUT_EVENT],
        },
    )
    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Status)),
        metadata={"description": "The payment's status after it.", "example": Status.PENDING},
    )
    stage = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Stage)),
        metadata={"description": "The payment's stage after it.", "example": Stage.ACCEPTED},
    )
    data = ma.fields.Dict(
        required=True,
        metadata={
            "description": "More about it, by type: a `reason`, for example.",
            "example": {"reason": "accepted"},
        },
    )
    created_at = ma.fields.String(
        required=True, metadata={"description": "When it happened.", **_INSTANT}
    )


class EventPageSchema(ma.Schema):
    """A page of a payment's events, oldest first."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    data = ma.fields.List(
        ma.fields.Nested(EventSchema),
        required=True,
        validate=ma.validate.Length(max=PAGE_MAX),
        metadata={"description": "The events."},
    )
    next_cursor = ma.fields.String(required=True, allow_none=True, metadata=_NEXT)
