"""Schemas of requests about webhooks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import marshmallow as ma

from payments_app.api.request_schema import RequestSchema
from payments_app.api.v1.fields import Cursor, Flag, Instant, Limit, Text, whole
from payments_app.webhooks import endpoints, patterns
from payments_app.webhooks.deliveries import ResendRange
from payments_app.webhooks.endpoints import EndpointChanges, SecretRotation
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
)

URL_MAX: Final = 2048
# The host is checked later, with its own message. A scheme ignores case (RFC 3986, 3.1).
_URL_PATTERN: Final = r"^[Hh][Tt][Tt][Pp][Ss]?:[!-~]{3,2040}$"
_URL: Final = {
    "pattern": _URL_PATTERN,
    "maxLength": URL_MAX,
    # `make run` accepts it. An example with an unknown host would show a refusal in /docs.
    "example": "http://localhost:3000/webhooks",
}
_URL_FORM: Final = whole(_URL_PATTERN)
_INSTANT: Final = {"format": "date-time", "example": "2026-01-31T09:12:33.482913+00:00"}
_ID: Final = {"format": "uuid", "example": "01a209ad-4164-7047-9850-453984927403"}


def _check_url(value: str) -> None:
    if len(value) > URL_MAX:
        raise ma.ValidationError(f"must be at most {URL_MAX} characters")
    if not _URL_FORM.fullmatch(value):
        raise ma.ValidationError("must be an address such as https://…")


def _types(**options: Any) -> ma.fields.List[str]:
    return ma.fields.List(
        ma.fields.String(
            validate=ma.validate.OneOf(
                patterns.PATTERNS, error=f"must be one of {', '.join(patterns.PATTERNS)}"
            ),
            metadata={"example": "payment.*"},
        ),
        validate=ma.validate.Length(min=1, max=patterns.PATTERNS_MAX),
        metadata={
            "description": "Which events are sent to it; a star stands for the rest of a name."
        },
        **options,
    )


class NewEndpointSchema(RequestSchema):
    """A new webhook endpoint."""

    url = ma.fields.String(
        required=True,
        validate=_check_url,
        metadata={
            "description": "Where events are sent: https, at a public address. `make run` takes an"
            " address of your own machine too, such as this one.",
            **_URL,
        },
    )
    description = Text(
        load_default=None,
        longest=endpoints.DESCRIPTION_MAX,
        metadata={"description": "Your own note.", "example": "The shop's ledger"},
    )
    event_types = _types(load_default=None)

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> EndpointChanges:
        """Return our own type."""
        return EndpointChanges(**data)


class EndpointChangeSchema(RequestSchema):
    """Changes to an endpoint; absent fields keep their values."""

    url = ma.fields.String(
        validate=_check_url,
        metadata={"description": "Where events are sent.", **_URL},
    )
    description = Text(
        longest=endpoints.DESCRIPTION_MAX, metadata={"description": "Your own note."}
    )
    event_types = _types()
    status = ma.fields.String(
        validate=ma.validate.OneOf(list(EndpointStatus)),
        metadata={"description": "`enabled` again after mending, or `disabled` for a while."},
    )

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> EndpointChanges:
        """Return our own type."""
        status = data.pop("status", None)
        return EndpointChanges(**data, status=EndpointStatus(status) if status else None)


class RotationSchema(RequestSchema):
    """How long the old secret signs beside the new one."""

    overlap_hours = ma.fields.Integer(
        load_default=24,
        strict=True,
        validate=ma.validate.Range(min=0, max=72),
        metadata={"description": "Hours; 0 ends the old secret at once."},
    )

    discard_current = Flag(
        load_default=False,
        metadata={
            "description": "While an earlier rotation is in its overlap: drop the secret that it"
            " gave, and let the one before it go on signing. For a secret that you never got."
        },
    )

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> SecretRotation:
        """Return our own type."""
        return SecretRotation(timedelta(hours=data["overlap_hours"]), data["discard_current"])


class SpanSchema(RequestSchema):
    """Selects the events to send again."""

    since = Instant(
        load_default=None, metadata={"description": "From then on, itself included.", **_INSTANT}
    )
    until = Instant(
        load_default=None, metadata={"description": "Up to then, itself not.", **_INSTANT}
    )
    failed_only = Flag(
        load_default=False,
        metadata={"description": "Only those that were given up, not all of the span."},
    )

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> ResendRange:
        """Return our own type. An empty request must not resend the whole history: refuse it."""
        span = ResendRange(**data)
        if span == ResendRange():
            raise ma.ValidationError("Say what: since, until, or failed_only: true.", "since")
        return span


class DeliveryQuerySchema(RequestSchema):
    """A page of deliveries."""

    status = ma.fields.String(
        load_default=None,
        allow_none=False,
        validate=ma.validate.OneOf(list(DeliveryStatus)),
        metadata={"description": "Only those that are so."},
    )
    limit = Limit(metadata={"description": "How many a page has."})
    cursor = Cursor(metadata={"description": "`next_cursor` of the page before."})


class FeedQuerySchema(RequestSchema):
    """A page of the feed."""

    limit = Limit(metadata={"description": "How many events to look at."})
    cursor = Cursor(
        metadata={"description": "The position behind which to read on: `last_position`."}
    )
