"""A small HTTP server of the worker and of beat: /health/live for probes, /metrics for Prometheus.

It uses the standard library's server, without the API's framework and hooks.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Final, cast
from urllib.parse import urlsplit

import structlog
from celery.signals import beat_init, worker_init

from payments_app.kernel import metrics
from payments_app.kernel.networks import Network, is_forwarded, is_within
from payments_app.settings import Settings
from payments_app.worker.poller import Poller
from payments_app.worker.scheduler import BEAT_HEARTBEAT

log = structlog.get_logger(__name__)

# Connections at once. A probe and one or two scrapers need only a few.
CONNECTIONS_MAX: Final = 32
# A connection that is silent for this long is closed.
SILENCE_MAX_S: Final = 5.0
_PLAIN: Final = "text/plain; charset=utf-8"


def open_ports(settings: Settings, poller: Poller) -> None:
    """Have this process's worker or beat open its port when it starts, if one is configured."""
    networks = settings.metrics_networks
    ports = (
        ("WORKER_PORT", worker_init, settings.worker_port, poller.is_alive),
        ("BEAT_PORT", beat_init, settings.beat_port, BEAT_HEARTBEAT.is_fresh),
    )
    for name, signal, port, is_alive in ports:
        if port:
            signal.connect(partial(_open, name, HealthServer(port, networks, is_alive)), weak=False)


def _open(name: str, port: HealthServer, **_signal: Any) -> None:
    try:
        port.open()
    except OSError as error:
        raise SystemExit(f"{name}: this port can't be opened: {error.strerror}.") from None


class HealthServer:
    """Answers in its own threads, as long as the process lives."""

    def __init__(
        self, number: int, networks: tuple[Network, ...], is_alive: Callable[[], bool]
    ) -> None:
        """`networks`: the networks that may read /metrics. `number` 0 takes any free port."""
        self._number = number
        self._networks = networks
        self._is_alive = is_alive

    def open(self) -> _Server:
        """Start to answer. Raises OSError if another process has the port."""
        server = _Server(self._number, self._networks, self._is_alive)
        threading.Thread(target=server.serve_forever, name="port", daemon=True).start()
        log.info("port.open", port=server.server_address[1])
        return server


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(
        self, number: int, networks: tuple[Network, ...], is_alive: Callable[[], bool]
    ) -> None:
        self.networks = networks
        self.is_alive = is_alive
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(("0.0.0.0", number), _Handler)  # noqa: S104  a container's probe is outside

    def verify_request(self, _request: Any, _client_address: Any) -> bool:
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(
        self, _request: socket.socket | tuple[bytes, socket.socket], _from: Any
    ) -> None:
        # Mostly a peer that has closed its connection.
        log.warning("port.failed", exc_info=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_MAX_S
    server_version = "maramoja"
    sys_version = ""

    def do_GET(self) -> None:
        server = cast("_Server", self.server)
        path = urlsplit(self.path).path
        if path == "/health/live":
            alive = server.is_alive()
            status = HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "application/json", b'{"status":"%s"}' % _word(alive=alive))
        elif path == "/metrics" and self._is_the_operators(server.networks):
            self._answer(HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.exposition())
        else:
            self._answer(HTTPStatus.NOT_FOUND, _PLAIN, b"Not found.\n")

    def log_message(self, *_words: Any) -> None:
        """Log no probes and scrapes."""

    def _is_the_operators(self, networks: tuple[Network, ...]) -> bool:
        forwarded = is_forwarded(self.headers)
        return not forwarded and is_within(self.client_address[0], networks)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def _word(*, alive: bool) -> bytes:
    return b"ok" if alive else b"silent"
