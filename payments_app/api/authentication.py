"""Authenticates requests: assigns the request id, and finds the tenant by the API key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from flask import Flask, Response, current_app, g, request

from payments_app.api.presented_key import NOT_ACCEPTED, presented_key
from payments_app.api.problem_types import ScopeMissing, TenantMismatch, Unauthenticated
from payments_app.api.rate_limits import count_stranger, refuse_stranger
from payments_app.audit.origin import Origin, begin_at
from payments_app.kernel.errors import GatewayError
from payments_app.tenants.caller import Caller, Keys, Known, UseNotes, note_use, verify_key
from payments_app.tenants.scopes import Scope

View = TypeVar("View", bound=Callable[..., Any])
API_PREFIX: Final = "/api/"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def register_request_ids(app: Flask) -> None:
    """Give each request an id, for its response and its log lines, and clear it afterwards."""
    app.before_request(_begin)
    app.after_request(_finish)

    @app.teardown_request
    def forget(_error: BaseException | None) -> None:
        # On the same threads, the server logs input that it can't parse, which belongs to no
        # request.
        structlog.contextvars.clear_contextvars()


def needs(scope: Scope) -> Callable[[View], View]:
    """Declare the scope that a key needs for this route. Each route of the API has one."""

    def decorator(view: View) -> View:
        view.__dict__["scope"] = scope
        return view

    return decorator


def scope_of(app: Flask, endpoint: str) -> Scope | None:
    """The scope that the route needs; None for a public route."""
    found: Scope | None = getattr(app.view_functions[endpoint], "scope", None)
    return found


def require_scope() -> None:
    """Refuse a key that lacks the route's scope. Raises ScopeMissing."""
    if "caller" not in g or request.url_rule is None:
        return
    require(scope_of(current_app, request.url_rule.endpoint))


def require(scope: Scope | None) -> None:
    """Refuse a key without this scope; refuse every key if it is None. Raises ScopeMissing."""
    if scope is None or scope not in g.caller.scopes:
        raise ScopeMissing(f"This API key lacks the scope {scope}.", scope=scope)


def register_authentication(app: Flask) -> None:
    """Require a valid key for every request to the API."""
    keys, notes = Keys(), UseNotes()
    app.before_request(lambda: _authenticate(keys))

    @app.after_request
    def note_when_sent(response: Response) -> Response:
        """Write the key's last use after the response is sent, so that no client waits for it."""
        if "caller" in g and notes.is_due(g.caller.key_id):
            context = g.caller
            response.call_on_close(lambda: _note(app, context))
        return response


def caller() -> Caller:
    """The authenticated caller of this API request."""
    found: Caller = g.caller
    return found


def _begin() -> None:
    g.started_at = time.monotonic()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
    begin_at(Origin(source=request.remote_addr, request_id=g.request_id))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _authenticate(keys: Keys) -> None:
    if not request.path.startswith(API_PREFIX) or request.url_rule is None:
        return
    try:
        found = _caller(keys)
    except GatewayError:
        # Count it, whatever the reason for the refusal.
        count_stranger(current_app, request.remote_addr)
        raise
    g.caller = found
    structlog.contextvars.bind_contextvars(tenant_id=str(found.tenant_id), key_id=str(found.key_id))


def _caller(keys: Keys) -> Caller:
    """The caller, by its key. Raises Unauthenticated, TenantMismatch and what verify_key raises."""
    found = verify_key(presented_key(), source=request.remote_addr, look_up=_looking_up(keys))
    if found is None:
        raise Unauthenticated(NOT_ACCEPTED)
    tenant = request.headers.get("X-Tenant-Id")
    if tenant is not None and tenant.lower() not in (found.tenant_slug, str(found.tenant_id)):
        raise TenantMismatch("X-Tenant-Id is not the tenant of this API key.")
    return found


def _looking_up(keys: Keys) -> Callable[[str], Known | None]:
    """A key lookup. Raises TooManyRequests for a new key from an address that tried too many.

    So guesses cost the database nothing, and a caller whose key was seen before is not blocked.
    """

    def look_up(prefix: str) -> Known | None:
        if not keys.has_seen(prefix):
            refuse_stranger(current_app, request.remote_addr)
        return keys.look_up(prefix)

    return look_up


def _note(app: Flask, context: Caller) -> None:
    with app.app_context():
        note_use(context)


def _finish(response: Response) -> Response:
    if "request_id" in g:
        response.headers["X-Request-Id"] = g.request_id
    return response
