"""A tenant's server: keeps what it receives, and answers as the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Received:
    """One POST as received."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def verified(self, secret: str) -> dict[str, Any]:
        """Its body, if the public library verifies it. Raises WebhookVerificationError."""
        found: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return found


# What to answer: a status with headers, after a pause in seconds.
Reply = tuple[int, dict[str, str], float]
OK: Reply = (200, {}, 0.0)


@dataclass
class Receiver:
    """Answers with `reply`; keeps all in `received`, the most concurrent ones in `busy_max`."""

    url: str = ""
    reply: Callable[[Received], Reply] = lambda _received: OK
    received: list[Received] = field(default_factory=list)
    busy_max: int = 0
    connections: int = 0
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, received: Received) -> Reply:
        with self._lock:
            self.received.append(received)
            self._busy += 1
            self.busy_max = max(self.busy_max, self._busy)
        try:
            reply = self.reply(received)
            time.sleep(reply[2])
            return reply
        finally:
            with self._lock:
                self._busy -= 1


class Server(ThreadingHTTPServer):
    """Takes all connections of a worker process at once.

    With the usual five, the kernel drops the others, and their clients try again after a second.
    """

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on its own port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        # Keeps connections open.
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            receiver.connections += 1
            super().setup()

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(headers, self.rfile.read(length), time.monotonic())
            status, more, _ = receiver.take(received)
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
