"""Turns every error into an RFC 9457 problem document with a stable `code`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from payments_app.api.problem_types import (
    HTTP_PROBLEMS,
    PROBLEMS,
    ProblemType,
    Unauthenticated,
)
from payments_app.api.readiness import OK, database_verdict
from payments_app.kernel import errors
from payments_app.kernel.encryption import DataKeyUnreadable
from payments_app.tenants import errors as tenants

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
# When a client may retry if we are unavailable.
AWAY_RETRY_AFTER_S: Final = 2
# More errors than this help nobody; a body can hold thousands of unknown fields.
FIELD_ERRORS_MAX: Final = 20
FIELD_NAME_LENGTH_MAX: Final = 100
# SQLSTATE read_only_sql_transaction: after a failover we may be connected to a standby for a
# moment.
_READ_ONLY: Final = "25006"


def register_problems(app: Flask) -> None:
    """Register the error handlers that return problem documents."""
    app.register_error_handler(errors.GatewayError, _gateway_error)
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(OperationalError, _database_away)
    app.register_error_handler(DBAPIError, _database_error)
    app.register_error_handler(PoolTimeout, _database_away)
    app.register_error_handler(Exception, _bug)


def http_problem(error: HTTPException) -> Response:
    """The problem document for an error that Flask raised."""
    status = error.code or 500
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
        # Not meant for API callers: an error of the operator's commands, or a new one without an
        # entry.
        problem = ProblemType(error.code, HTTPStatus.UNPROCESSABLE_ENTITY, "Refused", error.detail)
    extra: dict[str, Any] = dict(error.extra)
    headers: dict[str, str] = {}
    if isinstance(error, errors.FieldsInvalid):
        extra["errors"] = _listed(extra["errors"])
    if "retry_after_s" in extra:
        headers["Retry-After"] = str(extra.pop("retry_after_s"))
    if "payment_id" in extra:
        extra["payment"] = headers["Location"] = f"/api/v1/payments/{extra['payment_id']}"
    if "resource" in extra:
        headers["Location"] = str(extra["resource"])
    if isinstance(error, DataKeyUnreadable | tenants.ProviderAccountUnreadable):
        # Without health probes, only this check notices and logs that SECRET_KEYS is wrong.
        database_verdict()
    if isinstance(error, Unauthenticated | tenants.ApiKeyExpired):
        headers["WWW-Authenticate"] = 'Bearer realm="maramoja"'
    return problem_response(problem, error.detail, headers=headers, extra=extra)


def _listed(found: Mapping[str, Any]) -> list[dict[str, str]]:
    listed = [
        {**_place(str(name)[:FIELD_NAME_LENGTH_MAX], inside), "detail": sentence}
        for name, faults in found.items()
        for inside, sentence in _sentences(faults)
    ]
    return listed[:FIELD_ERRORS_MAX]


def _sentences(faults: Any) -> Iterator[tuple[str, str]]:
    """Each message, with the pointer from its field. marshmallow nests the errors of list items."""
    if isinstance(faults, Mapping):
        for name, nested in faults.items():
            for inside, sentence in _sentences(nested):
                yield f"/{_escaped(str(name)[:FIELD_NAME_LENGTH_MAX])}{inside}", sentence
    elif isinstance(faults, list):
        for fault in faults:
            yield from _sentences(fault)
    else:
        yield "", str(faults)


def _place(name: str, inside: str) -> dict[str, str]:
    if request.method in ("GET", "HEAD"):
        return {"in": "query", "field": name}
    pointer = f"/{_escaped(name)}{inside}" if name else inside
    return {"in": "body", "field": name, "pointer": pointer}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _database_away(error: Exception) -> Response:
    log.error("database.away", error=type(error).__name__)
    problem = HTTP_PROBLEMS[HTTPStatus.SERVICE_UNAVAILABLE]
    return problem_response(problem, problem.advice)


def _database_error(error: DBAPIError) -> Response:
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY:
        return _database_away(error)
    if database_verdict() != OK:
        # The statement is right, but the schema is older than this code. The verdict is in the log.
        problem = HTTP_PROBLEMS[HTTPStatus.SERVICE_UNAVAILABLE]
        return problem_response(problem, problem.advice)
    return _bug(error)


def _bug(error: Exception) -> Response:
    log.error("request.failed", error=type(error).__name__, exc_info=error)
    problem = HTTP_PROBLEMS[HTTPStatus.INTERNAL_SERVER_ERROR]
    return problem_response(problem, problem.advice)
