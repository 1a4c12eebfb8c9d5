"""Schemas and documents for webhooks as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import marshmallow as ma

from payments_app.api.v1.fields import PAGE_MAX
from payments_app.providers.contract import Mode
from payments_app.webhooks.deliveries import DeliveryDetail
from payments_app.webhooks.endpoints import NewEndpoint
from payments_app.webhooks.feed import event_id, words_of
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    PaymentEvent,
    Trigger,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)

_INSTANT: Final = {"format": "date-time", "example": "2026-01-31T09:12:33.482913+00:00"}


class _Strict(ma.Schema):
    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE


class EndpointSchema(_Strict):
    """A webhook endpoint."""

    id = ma.fields.UUID(required=True, metadata={"description": "Its id."})
    url = ma.fields.String(required=True, metadata={"description": "Where events are sent."})
    description = ma.fields.String(required=True, metadata={"description": "Your own note."})
    event_types = ma.fields.List(
        ma.fields.String(metadata={"example": "payment.*"}),
        required=True,
        metadata={"description": "Which events are sent to it."},
    )
    mode = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Mode)),
        metadata={"description": "Events of this mode's payments are sent to it."},
    )
    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(EndpointStatus)),
        metadata={"description": "Nothing is sent to a disabled one."},
    )
    disabled_reason = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "`by_tenant`; `gone`: it answered 410; `failing`: for five days."},
    )
    failing_since = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Since then there were only failures.", **_INSTANT},
    )
    created_at = ma.fields.String(
        required=True, metadata={"description": "When it was made.", **_INSTANT}
    )
    updated_at = ma.fields.String(
        required=True, metadata={"description": "When it last changed.", **_INSTANT}
    )
    missed = ma.fields.Integer(
        metadata={
            "description": "Only when it was enabled again: how many events it was not sent"
            " meanwhile, counted among the first 100,000. `resend` sends them."
        }
    )


class EndpointWithSecretSchema(EndpointSchema):
    """The same, with the secret that verifies deliveries: it is shown only once."""

    secret = ma.fields.String(
        required=True,
        metadata={"description": "Verify with it. Keep it now.", "pattern": "^whsec_"},
    )


class EndpointPageSchema(_Strict):
    """All endpoints of the key's tenant and mode, oldest first."""

    data = ma.fields.List(
        ma.fields.Nested(EndpointSchema), required=True, metadata={"description": "The endpoints."}
    )
    next_cursor = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "Null: they are on one page."}
    )


class AttemptSchema(_Strict):
    """One POST of a delivery."""

    number = ma.fields.Integer(required=True, metadata={"description": "Counts from 1."})
    trigger = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(Trigger)),
        metadata={"description": "Why it was made."},
    )
    url = ma.fields.String(required=True, metadata={"description": "Where it went."})
    outcome = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "`delivered`, `http_error`, or why there was no answer, such as"
            " `timeout`. Null: under way, or nobody knows, for its worker has died.",
        },
    )
    http_status = ma.fields.Integer(
        required=True, allow_none=True, metadata={"description": "What it was answered with."}
    )
    answer = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The answer's first 4096 bytes, read as UTF-8."},
    )
    elapsed_ms = ma.fields.Integer(
        required=True, allow_none=True, metadata={"description": "How long it took."}
    )
    started_at = ma.fields.String(
        required=True, metadata={"description": "When it was written down to be sent.", **_INSTANT}
    )
    finished_at = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "When its outcome was known.", **_INSTANT},
    )


class DeliverySchema(_Strict):
    """The delivery of one event to one endpoint."""

    id = ma.fields.UUID(required=True, metadata={"description": "Its id."})
    message_id = ma.fields.String(
        required=True, metadata={"description": "The `webhook-id` of every attempt."}
    )
    endpoint_id = ma.fields.UUID(required=True, metadata={"description": "Told whom."})
    event_type = ma.fields.String(required=True, metadata={"description": "Told what."})
    payment_id = ma.fields.UUID(
        required=True, allow_none=True, metadata={"description": "About which payment."}
    )
    sequence = ma.fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "The number of the event within its payment."},
    )
    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(list(DeliveryStatus)),
        metadata={"description": "`failed`: given up after the last attempt; resend it."},
    )
    attempts = ma.fields.Integer(
        required=True, metadata={"description": "How many since it was last asked for."}
    )
    next_attempt_at = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "While pending.", **_INSTANT}
    )
    created_at = ma.fields.String(
        required=True, metadata={"description": "When it was made.", **_INSTANT}
    )
    delivered_at = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "When it was taken.", **_INSTANT}
    )


class DeliveryPageSchema(_Strict):
    """A page of deliveries, newest first."""

    data = ma.fields.List(
        ma.fields.Nested(DeliverySchema),
        required=True,
        validate=ma.validate.Length(max=PAGE_MAX),
        metadata={"description": "The page."},
    )
    next_cursor = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "Null on the last page."}
    )


class WholeDeliverySchema(DeliverySchema):
    """A delivery with the sent body and the responses."""

    body = ma.fields.String(
        required=True, metadata={"description": "The bytes of every attempt, as text."}
    )
    attempt_log = ma.fields.List(
        ma.fields.Nested(AttemptSchema),
        required=True,
        metadata={"description": "Every attempt, in its order."},
    )


class ResentSchema(_Strict):
    """How many deliveries are sent again."""

    deliveries = ma.fields.Integer(required=True, metadata={"description": "How many."})


class FeedEventSchema(_Strict):
    """One event of the feed, the same for all endpoints."""

    id = ma.fields.String(required=True, metadata={"description": "As in a webhook's body."})
    position = ma.fields.Integer(
        required=True, metadata={"description": "Counts from 1 without gaps.", "minimum": 1}
    )
    type = ma.fields.String(
        required=True, metadata={"description": "What happened.", "example": "payment.successful"}
    )
    timestamp = ma.fields.String(
        required=True, metadata={"description": "When it happened.", **_INSTANT}
    )
    data = ma.fields.Dict(
        required=True,
        metadata={
            "description": "As in a webhook's body.",
            "anyOf": [
                {"$ref": "#/components/schemas/PaymentNews"},
                {"$ref": "#/components/schemas/RestoredNews"},
            ],
        },
    )


class FeedPageSchema(_Strict):
    """A page of the feed, oldest first."""

    data = ma.fields.List(
        ma.fields.Nested(FeedEventSchema),
        required=True,
        validate=ma.validate.Length(max=PAGE_MAX),
        metadata={"description": "The page."},
    )
    next_cursor = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Null when there is no more for now."},
    )
    last_position = ma.fields.Integer(
        required=True,
        metadata={"description": "Keep it: as `cursor` it reads on from here, later too."},
    )


def endpoint_document(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """An endpoint as the API shows it."""
    return {
        "id": str(endpoint.id),
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": list(endpoint.event_types),
        "mode": endpoint.mode,
        "status": endpoint.status,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": _instant(endpoint.failing_since),
        "created_at": _instant(endpoint.created_at),
        "updated_at": _instant(endpoint.updated_at),
    }


def endpoint_with_secret(new: NewEndpoint) -> dict[str, Any]:
    """An endpoint with its secret, which is shown only once."""
    return {**endpoint_document(new.endpoint), "secret": new.secret}


def delivery_document(delivery: WebhookDelivery) -> dict[str, Any]:
    """A delivery as lists show it."""
    pending = delivery.status == DeliveryStatus.PENDING
    return {
        "id": str(delivery.id),
        "message_id": delivery.message_id,
        "endpoint_id": str(delivery.endpoint_id),
        "event_type": delivery.event_type,
        "payment_id": _text(delivery.payment_id),
        "sequence": delivery.sequence,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_attempt_at": _instant(delivery.next_attempt_at) if pending else None,
        "created_at": _instant(delivery.created_at),
        "delivered_at": _instant(delivery.delivered_at),
    }


def whole_delivery_document(told: DeliveryDetail) -> dict[str, Any]:
    """A delivery with its body and attempts."""
    return {
        **delivery_document(told.delivery),
        "body": told.delivery.body.decode(),
        "attempt_log": [attempt_document(one) for one in told.attempts],
    }


def attempt_document(attempt: WebhookAttempt) -> dict[str, Any]:
    """One POST."""
    answer = attempt.answer
    return {
        "number": attempt.generation,
        "trigger": attempt.trigger,
        "url": attempt.url,
        "outcome": attempt.outcome,
        "http_status": attempt.http_status,
        "answer": None if answer is None else answer.decode(errors="replace"),
        "elapsed_ms": attempt.elapsed_ms,
        "started_at": _instant(attempt.started_at),
        "finished_at": _instant(attempt.finished_at),
    }


def feed_document(event: PaymentEvent) -> dict[str, Any]:
    """One event of the feed."""
    return {
        "id": event_id(event),
        "position": event.position,
        "type": event.type,
        "timestamp": _instant(event.created_at),
        "data": words_of(event),
    }


def _instant(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="microseconds")


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
