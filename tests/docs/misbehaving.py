"""A proxy before the real API that misbehaves by a script, and records the requests."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

# Longer than the clients of these tests wait for one request.
HANG_S = 6.0
# Headers of one connection only: the proxy does not forward them.
_OF_ONE_CONNECTION = {"connection", "transfer-encoding", "server", "date", "content-length"}


@dataclass(frozen=True)
class Move:
    """What happens to one request.

    `kind`: forward it and answer ("forward"), forward it and lose the answer ("lose"), send half of
    the answer ("cut"), or none until it is too late ("hang"); close the connection without
    forwarding ("refuse"); or answer in the gateway's place ("answer").
    """

    kind: str
    status: int = 0
    code: str = ""
    retry_after: int | None = None


FORWARD = Move("forward")


@dataclass(frozen=True)
class Seen:
    """A request that arrived. `at`: monotonic seconds; `forwarded`: the gateway's answer."""

    at: float
    method: str
    path: str
    key: str | None
    body: bytes
    move: Move
    forwarded: dict[str, object] | None = None


@dataclass
class MisbehavingProxy:
    """Uses one move for each POST and each GET, then forwards everything."""

    upstream: str
    posts: list[Move] = field(default_factory=list)
    gets: list[Move] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def sent(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    def next_move(self, method: str) -> Move:
        moves = self.posts if method == "POST" else self.gets
        return moves.pop(0) if moves else FORWARD

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A hanging request must not delay the end of the test.
    block_on_close = False

    def handle_error(self, *_details: object) -> None:
        """Ignore it: these tests have clients that close their connections."""


class _Handler(BaseHTTPRequestHandler):
    proxy: MisbehavingProxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def log_message(self, *_arguments: object) -> None:
        """Print nothing: `seen` records every request."""

    def _handle(self) -> None:
        at = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        move = self.proxy.next_move(self.command)
        answer = None
        if move.kind in ("forward", "lose", "cut", "hang"):
            answer = self._forward(body)
        self.proxy.seen.append(
            Seen(
                at,
                self.command,
                self.path,
                self.headers.get("Idempotency-Key"),
                body,
                move,
                json.loads(answer[2]) if answer else None,
            )
        )
        self._respond(move, answer)

    def _respond(self, move: Move, answer: tuple[int, dict[str, str], bytes] | None) -> None:
        if move.kind == "hang":
            time.sleep(HANG_S)
        if answer is None and move.kind == "answer":
            self._write(move.status, *_stand_in(move))
        elif answer is not None and move.kind == "forward":
            self._write(*answer)
        elif answer is not None and move.kind == "cut":
            status, headers, body = answer
            self._write(status, headers, body, written=len(body) // 2)
        if move.kind not in ("forward", "answer"):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        address = urlsplit(self.proxy.upstream).netloc
        headers = {n: v for n, v in self.headers.items() if n.lower() != "connection"}
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = {n: v for n, v in answer.getheaders() if n.lower() not in _OF_ONE_CONNECTION}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _write(
        self, status: int, headers: dict[str, str], body: bytes, *, written: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:written])
        self.wfile.flush()


def _stand_in(move: Move) -> tuple[dict[str, str], bytes]:
    """A problem document like the gateway's, or, without a code, a proxy's HTML page."""
    headers = {} if move.retry_after is None else {"Retry-After": str(move.retry_after)}
    if not move.code:
        return {**headers, "Content-Type": "text/html"}, b"<html>went wrong</html>"
    document = {"status": move.status, "code": move.code, "detail": "as the test says"}
    body = json.dumps(document, separators=(",", ":")).encode()
    return {**headers, "Content-Type": "application/problem+json"}, body
