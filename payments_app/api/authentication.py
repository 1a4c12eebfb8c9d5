"""Who asks: the request's id, and the key that proves whose tenant it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from flask import Flask, Response, current_app, g, request

from payments_app.api.limits import count_stranger, refuse_stranger
from payments_app.api.presented_key import NOT_ACCEPTED, presented_key
from payments_app.api.problem_types import ScopeMissing, TenantMismatch, Unauthenticated
from payments_app.audit.origin import Origin, begin_at
from payments_app.kernel.errors import GatewayError
from payments_app.tenants.caller import Caller, Keys, Known, UseNotes, note_use, verify_key
from payments_app.tenants.scopes import Scope

View = TypeVar("View", bound=Callable[..., Any])
API_PREFIX: Final = "/api/"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def register_request_ids(app: Flask) -> None:
    """Name each request, its answer and its log lines by the same name, and nothing after it."""
    app.before_request(_begin)
    app.after_request(_finish)

    @app.teardown_request
    def forget(_error: BaseException | None) -> None:
        # The server logs what it can't read on the same threads, and that is nobody's request.
        structlog.contextvars.clear_contextvars()


def needs(scope: Scope) -> Callable[[View], View]:
    """Declare what a key needs to be let into this route. Each route of the API has one."""

    def decorator(view: View) -> View:
        view.__dict__["scope"] = scope
        return view

    return decorator


def scope_of(app: Flask, endpoint: str) -> Scope | None:
    """What the route needs; None for one that is open to everybody."""
    found: Scope | None = getattr(app.view_functions[endpoint], "scope", None)
    return found


def require_scope() -> None:
    """Refuse a key that lacks the route's scope. Raises ScopeMissing."""
    if "caller" not in g or request.url_rule is None:
        return
    require(scope_of(current_app, request.url_rule.endpoint))


def require(scope: Scope | None) -> None:
    """Refuse a key that lacks this scope; every key, if none is named. Raises ScopeMissing."""
    if scope is None or scope not in g.caller.scopes:
        raise ScopeMissing(f"This API key lacks the scope {scope}.", scope=scope)


def register_authentication(app: Flask) -> None:
    """Let no request into the API without a key."""
    keys, notes = Keys(), UseNotes()
    app.before_request(lambda: _authenticate(keys))

    @app.after_request
    def note_when_sent(response: Response) -> Response:
        """After the answer has left: nobody waits for a note."""
        if "caller" in g and notes.is_due(g.caller.key_id):
            asker = g.caller
            response.call_on_close(lambda: _note(app, asker))
        return response


def caller() -> Caller:
    """Who asks, in a request to the API."""
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
        # Whatever it is refused for.
        count_stranger(current_app, request.remote_addr)
        raise
    g.caller = found
    structlog.contextvars.bind_contextvars(tenant_id=str(found.tenant_id), key_id=str(found.key_id))


def _caller(keys: Keys) -> Caller:
    """Whose the request is. Raises Unauthenticated, TenantMismatch and what verify_key raises."""
    found = verify_key(presented_key(), source=request.remote_addr, look_up=_looking_up(keys))
    if found is None:
        raise Unauthenticated(NOT_ACCEPTED)
    tenant = request.headers.get("X-Tenant-Id")
    if tenant is not None and tenant.lower() not in (found.tenant_slug, str(found.tenant_id)):
        raise TenantMismatch("X-Tenant-Id is not the tenant of this API key.")
    return found


def _looking_up(keys: Keys) -> Callable[[str], Known | None]:
    """Raises TooManyRequests for a key that was not seen before, while its address tries too many.

    So guesses cost the database nothing, and who has had a right key goes on.
    """

    def look_up(prefix: str) -> Known | None:
        if not keys.has_seen(prefix):
            refuse_stranger(current_app, request.remote_addr)
        return keys.look_up(prefix)

    return look_up


def _note(app: Flask, asker: Caller) -> None:
    with app.app_context():
        note_use(asker)


def _finish(response: Response) -> Response:
    if "request_id" in g:
        response.headers["X-Request-Id"] = g.request_id
    return response
