"""Makes a span for each request, as a child of the caller's if it sends a `traceparent`.

The span holds the route, never the path or the query: those can hold phone numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Flask, Response, g, request

from payments_app.kernel import tracing
from payments_app.kernel.trace_context import traceparent_of
from payments_app.kernel.tracing import Kind

# Requested every few seconds, by machines.
_PROBES: Final = ("/health", "/metrics")
# Callbacks have no authentication: their senders must not add spans to a tenant's trace.
_STRANGERS: Final = "/callbacks/"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SERVER_ERROR: Final = 500
_Serve = Callable[[dict[str, Any], Any], Iterable[bytes]]


def register_traces(app: Flask) -> None:
    """Put a span around each request. Inside it, `tracing.here()` is the request's span."""
    app.wsgi_app = _Traced(app.wsgi_app)  # type: ignore[method-assign]
    app.after_request(_describe)


class _Traced:
    def __init__(self, serve: _Serve) -> None:
        self._serve = serve

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith(_PROBES):
            return self._serve(environ, start_response)
        given = None if path.startswith(_STRANGERS) else environ.get("HTTP_TRACEPARENT")
        with tracing.span("HTTP", Kind.SERVER, parent=traceparent_of(given)):
            return self._serve(environ, start_response)


def _describe(response: Response) -> Response:
    span = tracing.current()
    method = request.method if request.method in _METHODS else "_OTHER"
    route = request.url_rule.rule if request.url_rule else ""
    span.rename(f"{method} {route}".rstrip())
    span.note(
        {
            "http.request.method": method,
            tracing.STATUS: response.status_code,
            **({"http.route": route} if route else {}),
            **({"maramoja.request_id": g.request_id} if "request_id" in g else {}),
            **({tracing.TENANT: str(g.caller.tenant_id)} if "caller" in g else {}),
        }
    )
    if response.status_code >= _SERVER_ERROR:
        span.fail(str(response.status_code))
    return response
