"""The one table of errors: which HTTP status each has, and what the caller can do about it.

Bodies are RFC 9457 problem documents with a stable `code`. docs/errors.md is checked against
this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from payments_app.kernel import errors, idempotency
from payments_app.kernel.egress import AddressRefused
from payments_app.kernel.vault import VaultClosed
from payments_app.payments import errors as payments
from payments_app.payments import order
from payments_app.providers import registry
from payments_app.tenants import errors as tenants
from payments_app.webhooks import errors as webhooks

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
# A client that finds us unable to work comes back after this.
AWAY_RETRY_AFTER_S: Final = 2
# More errors than this help nobody; a body can hold thousands of unknown fields.
FIELD_ERRORS_MAX: Final = 20
FIELD_NAME_LENGTH_MAX: Final = 100
# SQLSTATE read_only_sql_transaction: a failover left us at a standby for the moment.
_READ_ONLY: Final = "25006"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """`advice`: what the caller can do."""

    code: str
    status: HTTPStatus
    title: str
    advice: str


def _of(
    error: type[errors.GatewayError], status: HTTPStatus, title: str, advice: str
) -> ProblemType:
    return ProblemType(error.code, status, title, advice)


class Unauthenticated(errors.GatewayError):
    """No key, or one that opens nothing."""

    code = "unauthenticated"


class TenantMismatch(errors.GatewayError):
    """X-Tenant-Id isn't the tenant of the key."""

    code = "tenant_mismatch"


class ScopeMissing(errors.GatewayError):
    """The key is right, but isn't for this."""

    code = "scope_missing"


class UnsupportedMediaType(errors.GatewayError):
    """A body that isn't declared as JSON."""

    code = "unsupported_media_type"


class BodyMalformed(errors.GatewayError):
    """A body that isn't one JSON object, or not the same one for every reader."""

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
    UnsupportedMediaType: _of(
        UnsupportedMediaType,
        _S.UNSUPPORTED_MEDIA_TYPE,
        "Not JSON",
        "Send the body as JSON with Content-Type: application/json.",
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
    payments.CursorInvalid: _of(
        payments.CursorInvalid,
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
        "Find the payment with GET /api/v1/payments?external_id=…; a new one needs another.",
    ),
    order.ProviderAmbiguous: _of(
        order.ProviderAmbiguous,
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
    VaultClosed: _of(
        VaultClosed,
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
        "Send one UUID, bare or in double quotes, in one header.",
    ),
    idempotency.KeyReused: _of(
        idempotency.KeyReused,
        _S.UNPROCESSABLE_ENTITY,
        "Idempotency-Key used for another request",
        "Send the first request again unchanged, or use a new key for a new payment.",
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
        "Read the payment that is linked. This key never makes another one.",
    ),
}
# What the HTTP layer itself refuses, by status.
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
    """Every problem that the API can answer with, by code."""
    return sorted([*PROBLEMS.values(), *HTTP_PROBLEMS.values()], key=lambda problem: problem.code)


def register_problems(app: Flask) -> None:
    """Turn every error into a problem document."""
    app.register_error_handler(errors.GatewayError, _gateway_error)
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(OperationalError, _database_away)
    app.register_error_handler(DBAPIError, _database_error)
    app.register_error_handler(PoolTimeout, _database_away)
    app.register_error_handler(Exception, _bug)


def http_problem(error: HTTPException) -> Response:
    """The problem document for what Flask or flask-smorest refused."""
    status = error.code or 500
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return _field_errors(error)
    problem = HTTP_PROBLEMS.get(status) or HTTP_PROBLEMS[HTTPStatus.BAD_REQUEST]
    kept = {"allow", "retry-after"}
    headers = {name: value for name, value in error.get_headers() if name.lower() in kept}
    return problem_response(problem, problem.advice, headers=headers)


def problem_document(
    problem: ProblemType, detail: str, *, request_id: str | None, **extra: object
) -> dict[str, object]:
    """The body of a problem (RFC 9457)."""
    return {
        "type": f"/problems/{problem.code}",
        "title": problem.title,
        "status": int(problem.status),
        "code": problem.code,
        "detail": detail,
        "request_id": request_id,
        **extra,
    }


def problem_response(
    problem: ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """A problem document with its headers."""
    document = problem_document(problem, detail, request_id=g.get("request_id"), **(extra or {}))
    response = Response(orjson.dumps(document), problem.status, content_type=MEDIA_TYPE)
    response.headers.update(headers or {})
    response.headers["Link"] = f'</problems/{problem.code}>; rel="describedby"'
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers.setdefault("Retry-After", str(AWAY_RETRY_AFTER_S))
    return response


def _gateway_error(error: errors.GatewayError) -> Response:
    problem = PROBLEMS.get(type(error))
    if problem is None:
        # Not for callers: of the operator's commands, or new and not in the table.
        problem = ProblemType(error.code, HTTPStatus.UNPROCESSABLE_ENTITY, "Refused", error.detail)
    extra: dict[str, Any] = dict(error.extra)
    headers: dict[str, str] = {}
    if isinstance(error, errors.FieldsInvalid):
        extra["errors"] = _listed(extra["errors"])
    if "retry_after_s" in extra:
        headers["Retry-After"] = str(extra.pop("retry_after_s"))
    if "payment_id" in extra:
        extra["payment"] = headers["Location"] = f"/api/v1/payments/{extra['payment_id']}"
    if isinstance(error, Unauthenticated | tenants.ApiKeyExpired):
        headers["WWW-Authenticate"] = 'Bearer realm="maramoja"'
    return problem_response(problem, error.detail, headers=headers, extra=extra)


def _field_errors(error: HTTPException) -> Response:
    """What webargs found wrong, by field."""
    messages = getattr(error, "data", {}).get("messages", {})
    found: dict[str, Any] = {}
    for where in messages.values():
        found.update(where if isinstance(where, dict) else {"": where})
    return _gateway_error(errors.FieldsInvalid(found))


def _listed(found: Mapping[str, Any]) -> list[dict[str, str]]:
    listed = [
        {**_place(str(name)[:FIELD_NAME_LENGTH_MAX]), "detail": str(sentence)}
        for name, sentences in found.items()
        for sentence in (sentences if isinstance(sentences, list) else [sentences])
    ]
    return listed[:FIELD_ERRORS_MAX]


def _place(name: str) -> dict[str, str]:
    if request.method in ("GET", "HEAD"):
        return {"in": "query", "field": name}
    escaped = name.replace("~", "~0").replace("/", "~1")
    return {"in": "body", "field": name, "pointer": f"/{escaped}" if name else ""}


def _database_away(error: Exception) -> Response:
    log.error("database.away", error=type(error).__name__)
    problem = HTTP_PROBLEMS[HTTPStatus.SERVICE_UNAVAILABLE]
    return problem_response(problem, problem.advice)


def _database_error(error: DBAPIError) -> Response:
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY:
        return _database_away(error)
    return _bug(error)


def _bug(error: Exception) -> Response:
    log.error("request.failed", error=type(error).__name__, exc_info=error)
    problem = HTTP_PROBLEMS[HTTPStatus.INTERNAL_SERVER_ERROR]
    return problem_response(problem, problem.advice)
