"""/metrics, for the operator's Prometheus only; and the metrics of each request."""

from __future__ import annotations

import time
from typing import Final

from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import NotFound
from werkzeug.http import parse_list_header

from payments_app.api.near_misses import DROPPED
from payments_app.kernel import metrics
from payments_app.kernel.networks import is_forwarded, is_within
from payments_app.monitoring.gauges import read_gauges
from payments_app.settings import Settings

PATH: Final = "/metrics"
# A client may send any method and any path: only known ones get a series.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
UNKNOWN: Final = "unknown"
_ACCEPT: Final = "payments.create_payment"

blp = Blueprint("metrics", __name__)


@blp.route(PATH)
def show() -> Response:
    """The counters of all processes behind this port, and the gauges that the database gives."""
    body = metrics.exposition(*read_gauges())
    return Response(body, content_type=metrics.CONTENT_TYPE)


def register_metrics(app: Flask, settings: Settings) -> None:
    """Count and time each request; hide /metrics from other networks."""
    app.after_request(_count)

    @app.before_request
    def hide() -> None:
        # By the path: for another method, a 405 would show that the page exists.
        if request.path.rstrip("/") == PATH and not _is_the_operators(settings):
            raise NotFound


def _is_the_operators(settings: Settings) -> bool:
    # Headers with an underscore are not read, but show that the request came through a proxy.
    dropped = request.environ.get(DROPPED, "").split(",")
    if is_forwarded((*request.headers.keys(), *dropped)):
        # With fewer hops than trusted proxies, the peer address is a proxy's and not the client's.
        hops = parse_list_header(request.headers.get("X-Forwarded-For", ""))
        if not 0 < settings.trusted_proxies <= len(hops):
            return False
    return is_within(request.remote_addr, settings.metrics_networks)


def _count(response: Response) -> Response:
    method = request.method if request.method in METHODS else OTHER
    route = request.url_rule.rule if request.url_rule else UNKNOWN
    took_s = time.monotonic() - g.started_at
    metrics.http_requests.labels(method, route, str(response.status_code)).inc()
    metrics.http_request_seconds.labels(route).observe(took_s)
    if request.endpoint == _ACCEPT:
        metrics.accept_seconds.labels(_outcome(response)).observe(took_s)
    return response


def _outcome(response: Response) -> str:
    if response.status_code != 201:  # noqa: PLR2004
        return "refused"
    return "replayed" if "Idempotent-Replayed" in response.headers else "created"
