"""Webhook bodies, as openapi.json describes them. payments/outbox.py builds the payload.

An event keeps the payload that it was published with: fields of later releases are not required.
"""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma

from payments_app.api.v1.payments.documents import CURRENCIES, FailureSchema
from payments_app.payments.states import Stage, Status
from payments_app.providers.contract import Mode
from payments_app.webhooks.feed import API_VERSION, RESTORED_EVENT
from payments_app.webhooks.patterns import TEST_EVENT

_INSTANT: Final = {"format": "date-time", "example": "2026-01-31T09:12:33.482913+00:00"}
# What each event means; docs/webhooks.md has the same rows.
PAYMENT_EVENTS: Final = {
    "payment.accepted": "The order was taken: the payment is stored.",
    "payment.pending": "The provider has it, and waits for the payer.",
    "payment.unknown": "It was sent, and what became of it isn't known yet.",
    "payment.successful": "It has ended, on the provider's word: the money has moved.",
    "payment.failed": "It has ended, on the provider's word: no money has moved.",
    "payment.contradicted": "A late word of the provider says otherwise than the recorded end.",
}


class _Strict(ma.Schema):
    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE


class PaymentNewsSchema(_Strict):
    """A payment at the time of the event."""

    payment_id = ma.fields.UUID(required=True, metadata={"description": "The payment's id."})
    sequence = ma.fields.Integer(
        required=True,
        metadata={
            "description": "The number of the event within its payment, from 1.",
            "minimum": 1,
        },
    )
    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Status)),
        metadata={"description": "The status after it.", "example": Status.SUCCESSFUL},
    )
    stage = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Stage)),
        metadata={"description": "The stage after it.", "example": Stage.FINAL},
    )
    amount = ma.fields.String(
        required=True, metadata={"description": "In major units.", "example": "1000"}
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
            "description": "The payer's number, its last digits only. Null once erased.",
            "example": "*********456",
        },
    )
    external_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Your own reference.", "example": "order-123"},
    )
    provider = ma.fields.String(
        required=True, metadata={"description": "The rail.", "example": "mtn_momo"}
    )
    reference = ma.fields.UUID(
        metadata={
            "description": "What the provider knows the payment by. Absent in events of earlier releases."
        }
    )
    provider_reference = ma.fields.UUID(
        metadata={"description": "`reference`, in events of earlier releases.", "deprecated": True}
    )
    provider_transaction_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The provider's own number for the money's move.",
            "example": "1234567890",
        },
    )
    failure_code = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "`failure.code` again.", "example": None},
    )
    failure = ma.fields.Nested(
        FailureSchema,
        allow_none=True,
        metadata={"description": "Why it failed. Absent in events of earlier releases."},
    )
    metadata = ma.fields.Dict(
        allow_none=True,
        metadata={
            "description": "Your own JSON. Absent in events of earlier releases.",
            "example": {"cart": "c-981", "clerk": 7},
        },
    )


class RestoredNewsSchema(_Strict):
    """The position to which a restore set the feed back."""

    restored_to_position = ma.fields.Integer(
        required=True,
        metadata={"description": "The last position that the backup had.", "minimum": 0},
    )


class NoNewsSchema(_Strict):
    """An empty object."""


class _MessageSchema(_Strict):
    timestamp = ma.fields.String(
        required=True, metadata={"description": "When it happened.", **_INSTANT}
    )
    id = ma.fields.String(
        required=True,
        metadata={
            "description": "The event's id, the same at every endpoint and in `GET /api/v1/events`.",
            "pattern": "^evt_[0-9a-f]{32}$",
        },
    )
    api_version = ma.fields.String(
        required=True,
        validate=ma.validate.Equal(API_VERSION),
        metadata={"description": "Of these words.", "enum": [API_VERSION]},
    )
    tenant_id = ma.fields.UUID(required=True, metadata={"description": "Whose event it is."})
    mode = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Mode)),
        metadata={"description": "The mode of the payment.", "example": Mode.TEST},
    )
    endpoint_id = ma.fields.UUID(
        required=True, metadata={"description": "The endpoint that it is sent to."}
    )
    position = ma.fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Its place in the feed; null for a test.", "minimum": 1},
    )


class PaymentMessageSchema(_MessageSchema):
    """The webhook body for an event of a payment."""

    type = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(PAYMENT_EVENTS)),
        metadata={"description": "What happened.", "example": "payment.successful"},
    )
    data = ma.fields.Nested(
        PaymentNewsSchema, required=True, metadata={"description": "The payment then."}
    )


class RestoredMessageSchema(_MessageSchema):
    """The webhook body after a backup was restored."""

    type = ma.fields.String(
        required=True, metadata={"description": "What happened.", "enum": [RESTORED_EVENT]}
    )
    data = ma.fields.Nested(
        RestoredNewsSchema, required=True, metadata={"description": "Where it goes on from."}
    )


class TestMessageSchema(_MessageSchema):
    """The webhook body of a test event."""

    type = ma.fields.String(
        required=True, metadata={"description": "What happened.", "enum": [TEST_EVENT]}
    )
    data = ma.fields.Nested(NoNewsSchema, required=True, metadata={"description": "Empty."})


MESSAGES: Final[dict[str, type[ma.Schema]]] = {
    "PaymentMessage": PaymentMessageSchema,
    "RestoredMessage": RestoredMessageSchema,
    "TestMessage": TestMessageSchema,
}
_HEADERS: Final = {
    "webhook-id": ("The delivery's id, the same at each attempt.", "^msg_[0-9a-f]{32}$"),
    "webhook-timestamp": ("When this attempt was signed: seconds since 1970.", "^[0-9]+$"),
    "webhook-signature": (
        "Standard Webhooks; two while a secret is rotated.",
        "^v1,[^ ]+( v1,[^ ]+)?$",
    ),
}


def webhooks() -> dict[str, Any]:
    """The `webhooks` section of openapi.json: one entry for each event type."""
    told = {name: ("PaymentMessage", sentence) for name, sentence in PAYMENT_EVENTS.items()}
    told[TEST_EVENT] = ("TestMessage", "You asked for it; it means nothing.")
    told[RESTORED_EVENT] = (
        "RestoredMessage",
        "The operator restored a backup: later events may tell again what you know.",
    )
    return {name: {"post": _operation(name, *of)} for name, of in told.items()}


def _operation(name: str, schema: str, sentence: str) -> dict[str, Any]:
    return {
        "operationId": f"on_{name.replace('.', '_')}",
        "summary": name,
        "description": f"{sentence} Verify the signature before you believe it, and answer 2xx at"
        " once: anything else is sent again, with the same id and bytes.",
        "tags": ["webhooks"],
        "security": [],
        "parameters": [
            {
                "name": header,
                "in": "header",
                "required": True,
                "description": description,
                "schema": {"type": "string", "pattern": pattern},
            }
            for header, (description, pattern) in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": {"2XX": {"description": "Taken"}},
    }
