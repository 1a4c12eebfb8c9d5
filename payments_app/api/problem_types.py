"""The table of all errors: the HTTP status of each, and what the caller can do about it.

docs/errors.md is checked against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from payments_app.kernel import errors, idempotency
from payments_app.kernel.cursors import CursorInvalid
from payments_app.kernel.encryption import DataKeyUnreadable
from payments_app.kernel.http.egress import AddressRefused
from payments_app.payments import errors as payments
from payments_app.payments import routing
from payments_app.providers import registry
from payments_app.tenants import errors as tenants
from payments_app.webhooks import errors as webhooks


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of error. `advice`: what the caller can do."""

    code: str
    status: HTTPStatus
    title: str
    advice: str


def _of(
    error: type[errors.GatewayError], status: HTTPStatus, title: str, advice: str
) -> ProblemType:
    return ProblemType(error.code, status, title, advice)


class Unauthenticated(errors.GatewayError):
    """There is no key, or it has the wrong form, or it is not accepted."""

    code = "unauthenticated"


class TenantMismatch(errors.GatewayError):
    """X-Tenant-Id isn't the tenant of the key."""

    code = "tenant_mismatch"


class ScopeMissing(errors.GatewayError):
    """The key is valid, but lacks the scope for this."""

    code = "scope_missing"


class UnsupportedMediaType(errors.GatewayError):
    """The body isn't declared as JSON."""

    code = "unsupported_media_type"


class BodyMalformed(errors.GatewayError):
    """The body isn't one JSON object, or not the same one for every reader."""

    code = "body_malformed"


class ProblemUnknown(errors.GatewayError):
    """No problem has this code."""

    code = "problem_unknown"


_S = HTTPStatus
PROBLEMS: Final[dict[type[errors.GatewayError], ProblemType]] = {
    Unauthenticated: _of(
        Unauthenticated,
        _S.UNAUTHORIZED,
        "No valid API key",
        "Send a valid key in X-API-Key, or as a Bearer token in Authorization.",
    ),
    tenants.ApiKeyExpired: _of(
        tenants.ApiKeyExpired,
        _S.UNAUTHORIZED,
        "API key expired",
        "Use a newer key; the operator issues one with flask keys issue or rotate.",
    ),
    tenants.NetworkNotAllowed: _of(
        tenants.NetworkNotAllowed,
        _S.FORBIDDEN,
        "Address not allowed",
        "Use the key from the networks that it is for, or ask the operator for another.",
    ),
    ScopeMissing: _of(
        ScopeMissing,
        _S.FORBIDDEN,
        "Scope missing",
        "Use a key that has the scope named in `scope`.",
    ),
    TenantMismatch: _of(
        TenantMismatch,
        _S.FORBIDDEN,
        "Key and tenant differ",
        "Leave X-Tenant-Id out, or send the id or slug of the key's own tenant.",
    ),
    tenants.TenantSuspended: _of(
        tenants.TenantSuspended,
        _S.FORBIDDEN,
        "Tenant suspended",
        "Ask the operator of this installation. Open payments go on to their end.",
    ),
    tenants.TenantHeld: _of(
        tenants.TenantHeld,
        _S.SERVICE_UNAVAILABLE,
        "Tenant held",
        "Send the same request again with the same key after Retry-After. Nothing was done.",
    ),
    UnsupportedMediaType: _of(
        UnsupportedMediaType,
        _S.UNSUPPORTED_MEDIA_TYPE,
        "Not plain JSON",
        "Send the body as JSON with Content-Type: application/json and no Content-Encoding.",
    ),
    BodyMalformed: _of(
        BodyMalformed,
        _S.BAD_REQUEST,
        "Malformed body",
        "Send one JSON object, in UTF-8, with each name once. Nothing was done and no key was"
        " spent.",
    ),
    errors.FieldsInvalid: _of(
        errors.FieldsInvalid,
        _S.UNPROCESSABLE_ENTITY,
        "Invalid fields",
        "Mend the fields named in errors. Nothing was done and no key was spent.",
    ),
    CursorInvalid: _of(
        CursorInvalid,
        _S.BAD_REQUEST,
        "Invalid cursor",
        "Use next_cursor as it was given, or start again without a cursor.",
    ),
    payments.PaymentNotFound: _of(
        payments.PaymentNotFound,
        _S.NOT_FOUND,
        "No such payment",
        "Check the id, and that the key is of the payment's tenant and mode.",
    ),
    payments.ExternalIdTaken: _of(
        payments.ExternalIdTaken,
        _S.CONFLICT,
        "external_id already used",
        "Read the payment that is linked; a new one needs another.",
    ),
    routing.ProviderAmbiguous: _of(
        routing.ProviderAmbiguous,
        _S.UNPROCESSABLE_ENTITY,
        "Provider not clear",
        "Name one of the providers in `provider`.",
    ),
    registry.ProviderUnknown: _of(
        registry.ProviderUnknown,
        _S.UNPROCESSABLE_ENTITY,
        "No such provider",
        "Use a provider that this installation has, such as mtn_momo.",
    ),
    tenants.ProviderNotEnabled: _of(
        tenants.ProviderNotEnabled,
        _S.UNPROCESSABLE_ENTITY,
        "Provider not enabled",
        "Use a provider that the operator has set up for this tenant and mode.",
    ),
    tenants.ProviderAccountUnreadable: _of(
        tenants.ProviderAccountUnreadable,
        _S.SERVICE_UNAVAILABLE,
        "Provider account unreadable",
        "Tell the operator: a key is missing from SECRET_KEYS. Nothing was done.",
    ),
    DataKeyUnreadable: _of(
        DataKeyUnreadable,
        _S.SERVICE_UNAVAILABLE,
        "Data key unreadable",
        "Tell the operator: a key is missing from SECRET_KEYS. Nothing was done.",
    ),
    AddressRefused: _of(
        AddressRefused,
        _S.UNPROCESSABLE_ENTITY,
        "Webhook address refused",
        "Give an https address of a public host.",
    ),
    webhooks.EndpointNotFound: _of(
        webhooks.EndpointNotFound,
        _S.NOT_FOUND,
        "No such webhook endpoint",
        "Check the id, and that the key is of the endpoint's tenant and mode.",
    ),
    webhooks.DeliveryNotFound: _of(
        webhooks.DeliveryNotFound,
        _S.NOT_FOUND,
        "No such webhook delivery",
        "Check the id. Deliveries that have ended are kept for 30 days.",
    ),
    webhooks.EndpointsTooMany: _of(
        webhooks.EndpointsTooMany,
        _S.CONFLICT,
        "Too many webhook endpoints",
        "Remove one that is needed no longer, or widen the event types of another.",
    ),
    webhooks.EndpointDisabled: _of(
        webhooks.EndpointDisabled,
        _S.CONFLICT,
        "Webhook endpoint disabled",
        "Enable it first: PATCH it with status enabled.",
    ),
    webhooks.RotationRunning: _of(
        webhooks.RotationRunning,
        _S.CONFLICT,
        "Secret was rotated a while ago",
        "Wait until the time in `until`; or, if nobody has the secret that the last rotation gave,"
        " send discard_current; or overlap_hours 0, which ends all old secrets at once.",
    ),
    ProblemUnknown: _of(
        ProblemUnknown,
        _S.NOT_FOUND,
        "No such code",
        "Use the `type` of an error as it was given. openapi.json lists all codes.",
    ),
    idempotency.KeyMissing: _of(
        idempotency.KeyMissing,
        _S.BAD_REQUEST,
        "Idempotency-Key missing",
        "Send an Idempotency-Key: a UUID that is kept with the order and sent at each retry.",
    ),
    idempotency.KeyInvalid: _of(
        idempotency.KeyInvalid,
        _S.BAD_REQUEST,
        "Idempotency-Key invalid",
        "Send one UUID, bare or in double quotes, in one header named Idempotency-Key.",
    ),
    idempotency.KeyReused: _of(
        idempotency.KeyReused,
        _S.UNPROCESSABLE_ENTITY,
        "Idempotency-Key used for another request",
        "Send the first request again unchanged, or use a new key for a new payment or change.",
    ),
    idempotency.KeyInProgress: _of(
        idempotency.KeyInProgress,
        _S.CONFLICT,
        "First request still running",
        "Send the same request again after Retry-After. It charges nothing twice.",
    ),
    idempotency.KeyExpired: _of(
        idempotency.KeyExpired,
        _S.CONFLICT,
        "Answer no longer kept",
        "Read what is linked. This key never makes another payment, nor another change.",
    ),
}
# Refusals of the HTTP layer itself, by status.
HTTP_PROBLEMS: Final[dict[int, ProblemType]] = {
    problem.status: problem
    for problem in (
        ProblemType("bad_request", _S.BAD_REQUEST, "Bad request", "Mend the request."),
        ProblemType("not_found", _S.NOT_FOUND, "Not found", "Check the address. See /docs."),
        ProblemType(
            "method_not_allowed",
            _S.METHOD_NOT_ALLOWED,
            "Method not allowed",
            "Use one of the methods that the Allow header names.",
        ),
        ProblemType(
            "not_acceptable", _S.NOT_ACCEPTABLE, "Not acceptable", "Accept application/json."
        ),
        ProblemType(
            "body_too_large",
            _S.REQUEST_ENTITY_TOO_LARGE,
            "Body too large",
            "Send at most 64 KiB. Nothing was done.",
        ),
        ProblemType(
            "rate_limited",
            _S.TOO_MANY_REQUESTS,
            "Too many requests",
            "Wait for Retry-After, then send the same request with the same key.",
        ),
        ProblemType(
            "internal_error",
            _S.INTERNAL_SERVER_ERROR,
            "Internal error",
            "Send the same request again with the same Idempotency-Key; it charges nothing twice."
            " If it stays, tell the operator the request_id.",
        ),
        ProblemType(
            "temporarily_unavailable",
            _S.SERVICE_UNAVAILABLE,
            "Temporarily unavailable",
            "Send the same request again with the same key after Retry-After.",
        ),
    )
}


def all_problems() -> list[ProblemType]:
    """Every problem that the API can return, by code."""
    return sorted([*PROBLEMS.values(), *HTTP_PROBLEMS.values()], key=lambda problem: problem.code)
