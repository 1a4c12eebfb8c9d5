"""The shape of every error (RFC 9457)."""

from __future__ import annotations

import marshmallow as ma


class FieldErrorSchema(ma.Schema):
    """One field that can't be taken."""

    field = ma.fields.String(required=True)
    pointer = ma.fields.String(required=True)
    detail = ma.fields.String(required=True)


class ProblemSchema(ma.Schema):
    """A problem document; docs/errors.md explains each code."""

    type = ma.fields.String(required=True)
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True)
    code = ma.fields.String(required=True)
    detail = ma.fields.String(required=True)
    request_id = ma.fields.String(required=True, allow_none=True)
    errors = ma.fields.List(ma.fields.Nested(FieldErrorSchema))
    fields_ = ma.fields.List(ma.fields.String(), data_key="fields")
    payment_id = ma.fields.UUID()
    payment = ma.fields.String()
