"""HTTP in, HTTP out: blueprints, authentication, limits, problems, OpenAPI. No decisions."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from flask import Flask, Response, g, request
from flask_smorest import Api
from redis import Redis
from werkzeug.exceptions import HTTPException

from payments_app.api import callbacks, docs, health
from payments_app.api.authentication import register_authentication
from payments_app.api.idempotent import RequestLock
from payments_app.api.json import StrictJson
from payments_app.api.limits import register_limits
from payments_app.api.problems import (
    MEDIA_TYPE,
    UnsupportedMediaType,
    http_problem,
    register_problems,
)
from payments_app.api.v1 import payments
from payments_app.api.v1.problem_schema import ProblemSchema
from payments_app.settings import Settings

log = structlog.get_logger(__name__)

BODY_BYTES_MAX: Final = 64 * 1024
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
OPENAPI: Final = {
    "API_TITLE": "Maramoja",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.0.3",
    "OPENAPI_URL_PREFIX": "/",
    "OPENAPI_JSON_PATH": "openapi.json",
    "API_SPEC_OPTIONS": {
        "info": {"description": "Mobile-money payments, charged once. See /docs."},
        "components": {
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer"},
            }
        },
        "security": [{"ApiKey": []}, {"Bearer": []}],
    },
}


class ProblemApi(Api):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest whose errors are our problem documents, and are documented as such."""

    ERROR_SCHEMA = ProblemSchema

    def handle_http_exception(self, error: HTTPException) -> Response:
        """flask-smorest's own handler keeps neither Allow nor Retry-After."""
        return http_problem(error)

    def _register_responses(self) -> None:
        plain, self.DEFAULT_RESPONSE_CONTENT_TYPE = self.DEFAULT_RESPONSE_CONTENT_TYPE, MEDIA_TYPE
        super()._register_responses()
        self.DEFAULT_RESPONSE_CONTENT_TYPE = plain


def register_api(app: Flask, settings: Settings, *, redis: Redis) -> None:
    """Everything that answers HTTP."""
    app.json = StrictJson(app)
    app.config.update(OPENAPI, MAX_CONTENT_LENGTH=BODY_BYTES_MAX)
    app.url_map.strict_slashes = False
    app.extensions["maramoja_lock"] = RequestLock(redis)
    register_authentication(app)
    register_limits(app, settings)
    app.before_request(_require_json)
    app.after_request(_harden)
    app.after_request(_log_request)
    api = ProblemApi(app)
    api.register_blueprint(payments.blp)
    register_problems(app)
    for blueprint in (callbacks.blp, health.blp, docs.blp):
        app.register_blueprint(blueprint)


def _require_json() -> None:
    g.started_at = time.monotonic()
    if request.method == "POST" and "caller" in g and not request.is_json:
        raise UnsupportedMediaType("The body must be JSON, with Content-Type: application/json.")


def _harden(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response


def _log_request(response: Response) -> Response:
    if not request.path.startswith("/health"):
        details: dict[str, Any] = {
            "method": request.method,
            "route": request.url_rule.rule if request.url_rule else None,
            "status": response.status_code,
        }
        if "started_at" in g:
            details["duration_ms"] = round((time.monotonic() - g.started_at) * 1000, 1)
        log.info("request.served", **details)
    return response
