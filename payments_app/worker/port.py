"""A port for the processes that answer nobody: /health/live for probes, /metrics for Prometheus.

On the standard library's server: the framework and its hooks are the API's.
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
from payments_app.worker.scheduler import PULSE

log = structlog.get_logger(__name__)

# Of those who ask at once; a probe and a scraper or two are few.
CONNECTIONS_MAX: Final = 32
# Whoever says nothing for this long has nothing to ask.
SILENCE_MAX_S: Final = 5.0
_PLAIN: Final = "text/plain; charset=utf-8"


def open_ports(settings: Settings, poller: Poller) -> None:
    """Have the worker or the beat of this process open its port when it starts, if it has one."""
    networks = settings.metrics_networks
    ports = (
        ("WORKER_PORT", worker_init, settings.worker_port, poller.is_alive),
        ("BEAT_PORT", beat_init, settings.beat_port, PULSE.is_felt),
    )
    for name, signal, port, is_alive in ports:
        if port:
            signal.connect(partial(_open, name, Port(port, networks, is_alive)), weak=False)


def _open(name: str, port: Port, **_signal: Any) -> None:
    try:
        port.open()
    except OSError as error:
        raise SystemExit(f"{name}: this port can't be opened: {error.strerror}.") from None


class Port:
    """Answers in threads of its own, for as long as the process lives."""

    def __init__(
        self, number: int, networks: tuple[Network, ...], is_alive: Callable[[], bool]
    ) -> None:
        """`networks`: from where /metrics may be read. 0 as `number` takes any port."""
        self._number = number
        self._networks = networks
        self._is_alive = is_alive

    def open(self) -> _Server:
        """Begin to answer. Raises OSError if somebody else has the port."""
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
        # Mostly a peer that has gone away.
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
        """Probes and scrapes are no news."""

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
