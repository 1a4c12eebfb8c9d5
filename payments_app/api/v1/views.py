"""What is shown of a payment. The documents are built by hand, and the schemas describe them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import marshmallow as ma

from payments_app.kernel.money import EXPONENTS
from payments_app.payments.model import Payment, PaymentEvent
from payments_app.payments.states import Event, Stage, Status
from payments_app.providers.contract import FailureCode, Mode
from payments_app.providers.failures import FAILURES, Actor


def payment_document(payment: Payment) -> dict[str, Any]:
    """A payment as the API shows it."""
    return {
        "id": str(payment.id),
        "status": payment.status,
        "stage": payment.stage,
        "amount": str(payment.money),
        "currency": payment.currency,
        "payer": payment.payer,
        "provider": payment.provider,
        "mode": payment.mode,
        "external_id": payment.external_id,
        "payer_message": payment.payer_message,
        "payee_note": payment.payee_note,
        "description": payment.description,
        "metadata": payment.tenant_metadata,
        "provider_reference": str(payment.reference),
        "provider_transaction_id": payment.provider_transaction_id,
        "failure": _failure_document(payment),
        "created_at": _instant(payment.created_at),
        "updated_at": _instant(payment.updated_at),
        "final_at": _instant(payment.final_at),
    }


def event_document(event: PaymentEvent) -> dict[str, Any]:
    """One line of a payment's story."""
    return {
        "sequence": event.sequence,
        "type": event.type,
        "status": event.status,
        "stage": event.stage,
        "data": event.data,
        "created_at": _instant(event.created_at),
    }


def _failure_document(payment: Payment) -> dict[str, Any] | None:
    if payment.failure_code is None:
        return None
    failure = FAILURES[FailureCode(payment.failure_code)]
    return {
        "code": payment.failure_code,
        "provider_code": payment.failure_provider_code,
        "message": failure.description,
        "who_must_act": failure.actor,
        "new_payment_may_help": failure.new_payment_may_help,
    }


def _instant(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="microseconds")


_CURRENCIES = sorted(EXPONENTS)
_INSTANT = {"format": "date-time"}


class FailureSchema(ma.Schema):
    """Why a payment failed. docs/errors.md explains each code."""

    code = ma.fields.String(required=True, validate=ma.validate.OneOf(list(FailureCode)))
    provider_code = ma.fields.String(required=True, allow_none=True)
    message = ma.fields.String(required=True)
    who_must_act = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Actor)))
    new_payment_may_help = ma.fields.Boolean(required=True)


class PaymentSchema(ma.Schema):
    """A payment. `status` is the promise; `stage` tells where it is on its way."""

    id = ma.fields.UUID(required=True)
    status = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Status)))
    stage = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Stage)))
    amount = ma.fields.String(required=True, metadata={"description": "Major units, decimal."})
    currency = ma.fields.String(required=True, validate=ma.validate.OneOf(_CURRENCIES))
    payer = ma.fields.String(required=True, metadata={"description": "MSISDN, no plus sign."})
    provider = ma.fields.String(required=True)
    mode = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Mode)))
    external_id = ma.fields.String(required=True, allow_none=True)
    payer_message = ma.fields.String(required=True, allow_none=True)
    payee_note = ma.fields.String(required=True, allow_none=True)
    description = ma.fields.String(required=True, allow_none=True)
    metadata = ma.fields.Dict(required=True, allow_none=True)
    provider_reference = ma.fields.UUID(
        required=True, metadata={"description": "What the provider knows the payment by."}
    )
    provider_transaction_id = ma.fields.String(required=True, allow_none=True)
    failure = ma.fields.Nested(FailureSchema, required=True, allow_none=True)
    created_at = ma.fields.String(required=True, metadata=_INSTANT)
    updated_at = ma.fields.String(required=True, metadata=_INSTANT)
    final_at = ma.fields.String(required=True, allow_none=True, metadata=_INSTANT)


class PaymentPageSchema(ma.Schema):
    """A page of payments, newest first."""

    data = ma.fields.List(ma.fields.Nested(PaymentSchema), required=True)
    next_cursor = ma.fields.String(required=True, allow_none=True)


class EventSchema(ma.Schema):
    """One line of a payment's story; `sequence` has no gaps."""

    sequence = ma.fields.Integer(required=True)
    type = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Event)))
    status = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Status)))
    stage = ma.fields.String(required=True, validate=ma.validate.OneOf(list(Stage)))
    data = ma.fields.Dict(required=True)
    created_at = ma.fields.String(required=True, metadata=_INSTANT)


class EventPageSchema(ma.Schema):
    """A part of a payment's story, from its beginning."""

    data = ma.fields.List(ma.fields.Nested(EventSchema), required=True)
    next_cursor = ma.fields.String(required=True, allow_none=True)
