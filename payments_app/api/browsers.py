"""Headers for browsers: only pages of the origins that the operator names may use responses.

The headers are those of OWASP's REST security cheat sheet. CORS is off by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, request

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # Our pages need none of these. A feature that a policy doesn't name is allowed.
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# A year. Not for subdomains: they are the operator's, and others may serve them without TLS.
STAY_ON_TLS: Final = "max-age=31536000"

CORS_PREFIX: Final = "/api/"
CORS_METHODS: Final = "GET, POST"
# Headers that a page may send and read, in addition to those that browsers always allow.
CORS_SENT: Final = (
    "Authorization, Content-Type, Idempotency-Key, X-API-Key, X-Request-Id, X-Tenant-Id,"
    " traceparent, tracestate"
)
CORS_READ: Final = (
    "Idempotent-Replayed, Link, Location, Payment-Status, RateLimit, RateLimit-Limit,"
    " RateLimit-Policy, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-Id"
)
# How long a browser caches a preflight: a removed origin loses access within this time.
PREFLIGHT_KEPT_S: Final = 600


def register_headers(app: Flask) -> None:
    """Add the security headers to every response. A view's own value wins: /docs has a policy."""
    app.wsgi_app = _Hardened(app.wsgi_app)  # type: ignore[method-assign]


class _Hardened:
    """Adds them in WSGI, as they are constants: Flask would check each for every response."""

    def __init__(self, serve: WSGIApplication) -> None:
        self._serve = serve

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            own = {name for name, _ in headers}
            headers.extend(pair for pair in SECURITY_HEADERS.items() if pair[0] not in own)
            if environ.get("wsgi.url_scheme") == "https":
                headers.append(("Strict-Transport-Security", STAY_ON_TLS))
            return start_response(status, headers, *error)

        return self._serve(environ, start)


def register_cors(app: Flask, origins: Sequence[str]) -> None:
    """Let pages of these origins call the API; without origins nothing is registered.

    Register it before authentication: a preflight has no key, and reads nothing of a tenant.
    Credentials stay refused: we have no cookies, and a page sends its key in a header.
    """
    if not origins:
        return
    allowed = frozenset(origins)

    @app.before_request
    def answer_preflight() -> Response | None:
        wanted = "Access-Control-Request-Method" in request.headers
        if request.method != "OPTIONS" or not (wanted and _is_allowed(allowed)):
            return None
        response = Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = CORS_METHODS
        response.headers["Access-Control-Allow-Headers"] = CORS_SENT
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_KEPT_S)
        return response

    @app.after_request
    def let_read(response: Response) -> Response:
        if request.path.startswith(CORS_PREFIX):
            # A cache must not return one origin's response to another.
            response.vary.add("Origin")
        if _is_allowed(allowed):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = CORS_READ
        return response


def _is_allowed(allowed: frozenset[str]) -> bool:
    return request.path.startswith(CORS_PREFIX) and request.headers.get("Origin") in allowed
