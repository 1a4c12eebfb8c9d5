"""The schema of every error (RFC 9457)."""

from __future__ import annotations

from typing import Final

import marshmallow as ma

from payments_app.tenants.scopes import Scope

_CODE: Final = {"pattern": "^[a-z][a-z0-9_]*$"}


class FieldErrorSchema(ma.Schema):
    """One invalid field."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    location = ma.fields.String(
        required=True,
        data_key="in",
        validate=ma.validate.OneOf(["body", "query"]),
        metadata={"description": "Where the field is.", "example": "body"},
    )
    field = ma.fields.String(
        required=True,
        metadata={
            "description": "The field's name; empty when it is about the whole.",
            "example": "amount",
        },
    )
    pointer = ma.fields.String(
        metadata={
            "description": "The place in the body, as a JSON pointer (RFC 6901).",
            "example": "/amount",
        }
    )
    detail = ma.fields.String(
        required=True,
        metadata={"description": "What is wrong.", "example": "EUR takes at most 2 decimals here"},
    )


class ProblemSchema(ma.Schema):
    """A problem document (RFC 9457). Clients rely on `code`; the sentences are for people."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    type = ma.fields.String(
        required=True,
        metadata={
            "description": "Where the problem is described: an address on this host.",
            "format": "uri-reference",
            "example": "/problems/validation_failed",
        },
    )
    title = ma.fields.String(
        required=True, metadata={"description": "The kind of problem, in a few words."}
    )
    status = ma.fields.Integer(
        required=True,
        metadata={"description": "The HTTP status again.", "minimum": 400, "maximum": 599},
    )
    code = ma.fields.String(
        required=True,
        metadata={"description": "The kind of problem, for programs; never changes.", **_CODE},
    )
    detail = ma.fields.String(
        required=True, metadata={"description": "What happened, or what to do."}
    )
    request_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The request's id; tell the operator this one."},
    )
    errors = ma.fields.List(
        ma.fields.Nested(FieldErrorSchema),
        metadata={"description": "With `validation_failed`: each field that can't be taken."},
    )
    fields_ = ma.fields.List(
        ma.fields.String(),
        data_key="fields",
        metadata={
            "description": "With `idempotency_key_reused`: the fields in which the two requests"
            " differ, never their values.",
        },
    )
    payment_id = ma.fields.UUID(
        metadata={
            "description": "With `idempotency_key_expired`: the key's payment. With"
            " `external_id_taken`: the earlier payment."
        }
    )
    payment = ma.fields.String(
        metadata={
            "description": "With `payment_id`: the payment's address.",
            "format": "uri-reference",
        }
    )
    resource = ma.fields.String(
        metadata={
            "description": "With `idempotency_key_expired` of a key that made no payment: the"
            " address of what was made or changed.",
            "format": "uri-reference",
        }
    )
    until = ma.fields.String(
        metadata={
            "description": "With `webhook_rotation_running`: how long the earlier secret signs.",
            "format": "date-time",
        }
    )
    scope = ma.fields.String(
        validate=ma.validate.OneOf(list(Scope)),
        metadata={
            "description": "With `scope_missing`: the one that the key lacks.",
            "example": Scope.PAYMENTS_READ,
        },
    )
    external_id = ma.fields.String(
        metadata={"description": "With `external_id_taken`: the one that was sent."}
    )
