"""Errors with a stable code. Their HTTP status is set elsewhere."""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """An error that the caller can act on.

    `code` is stable and documented in docs/errors.md; `detail` is one sentence for a person;
    `extra` are further members for the problem document. None of them may hold a secret
    or a full phone number.
    """

    code: ClassVar[str] = "error"

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class FieldsInvalid(GatewayError):
    """One or more fields of the request are invalid; `errors` says which and why."""

    code = "validation_failed"

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("The request has fields that can't be taken: see errors.", errors=errors)
        self.errors = errors
