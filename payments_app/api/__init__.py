"""The HTTP layer: blueprints, authentication, limits, problems, OpenAPI. It makes no decisions."""

from __future__ import annotations

import time
from typing import Final

import structlog
from flask import Flask, Response, current_app, g, request
from redis import Redis
from werkzeug.exceptions import BadRequest
from werkzeug.middleware.proxy_fix import ProxyFix

from payments_app.api import callbacks, docs, health, metrics
from payments_app.api.authentication import (
    register_authentication,
    register_request_ids,
    require_scope,
)
from payments_app.api.browsers import register_cors, register_headers
from payments_app.api.idempotent import register_locks
from payments_app.api.json import StrictJson
from payments_app.api.near_misses import refuse_near_misses
from payments_app.api.openapi import ProblemApi
from payments_app.api.problem_types import UnsupportedMediaType
from payments_app.api.problems import register_problems
from payments_app.api.rate_limits import register_limits
from payments_app.api.readiness import register_readiness
from payments_app.api.traces import register_traces
from payments_app.api.v1.payments import routes as payments
from payments_app.api.v1.webhooks import routes as webhooks
from payments_app.settings import Settings

log = structlog.get_logger(__name__)

BODY_BYTES_MAX: Final = 64 * 1024
JSON: Final = "application/json"


def register_api(app: Flask, settings: Settings, *, redis: Redis) -> None:
    """Register all HTTP routes, hooks and error handlers."""
    app.json = StrictJson(app)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
    app.url_map.strict_slashes = False
    # //api//v1 is not another spelling of /api/v1. A redirect would use the Host header, which
    # anyone can set.
    app.url_map.merge_slashes = False
    register_traces(app)
    register_request_ids(app)
    app.before_request(_require_host)
    metrics.register_metrics(app, settings)
    register_cors(app, settings.cors_allowed_origins)
    register_authentication(app)
    register_limits(app, settings, redis=redis)
    register_locks(app, redis=redis)
    register_readiness(app)
    app.before_request(require_scope)
    app.before_request(refuse_near_misses)
    app.before_request(_require_json)
    register_headers(app)
    app.after_request(_log_request)
    register_problems(app)
    api = ProblemApi(app)
    resources = (payments.blp, webhooks.blp, webhooks.told, webhooks.events)
    for documented in (*resources, docs.problems, health.blp):
        api.register_blueprint(documented)
    for undocumented in (callbacks.blp, docs.blp, metrics.blp):
        app.register_blueprint(undocumented)


def _require_host() -> None:
    """Answer 400 to HTTP/1.1 without a Host (RFC 9112, 3.2)."""
    if "HTTP_HOST" not in request.environ and request.environ["SERVER_PROTOCOL"] == "HTTP/1.1":
        raise BadRequest


def _require_json() -> None:
    """JSON is UTF-8 (RFC 8259): a body that declares another charset would be misread."""
    if request.method not in ("POST", "PATCH") or "caller" not in g or request.url_rule is None:
        return
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Send the body plain, without a Content-Encoding.")
    if getattr(current_app.view_functions[request.url_rule.endpoint], "takes_no_body", False):
        return
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != JSON or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            "The body must be JSON in UTF-8: Content-Type: application/json."
        )


def _log_request(response: Response) -> Response:
    if not request.path.startswith(("/health", metrics.PATH)):
        log.info(
            "request.served",
            method=request.method,
            route=request.url_rule.rule if request.url_rule else None,
            status=response.status_code,
            duration_ms=round((time.monotonic() - g.started_at) * 1000, 1),
        )
    return response
