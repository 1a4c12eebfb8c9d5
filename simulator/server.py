"""HTTP/1.1 over plain sockets, with a thread for each connection.

Why our own server: it must break connections on demand (reset, cut, drip, noise), a hanging call
must not occupy a place in a pool that other calls need, one SIGKILL must end all of it, and it should
cost little on a machine that also runs the gateway under test (a sixth of gunicorn's time per request).
"""

import socket
import socketserver
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from http.client import responses
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from simulator.messages import Reply, Request, Transmission

_LINE_MAX = 16_384
_HEADERS_MAX = 100
_BODY_MAX = 1_048_576
# How long a keep-alive connection may be idle.
_IDLE_S = 120.0
# The queue must hold a burst of new connections, as at the start of a load test.
_BACKLOG = 1024
# SO_LINGER on, with zero seconds: close() sends RST instead of FIN.
_LINGER_RESET = struct.pack("ii", 1, 0)

_KEEPS_OPEN = frozenset({Transmission.NORMAL, Transmission.DRIP})

Answer = Callable[[Request], Reply]


class _MalformedError(Exception):
    """The bytes are not a valid request; it has the status of the response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Server(socketserver.ThreadingTCPServer):
    """Listens, and passes each request to `answer`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _BACKLOG

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        self.answer = answer
        self._stopping = False
        super().__init__((host, port), _Connection)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def shutdown(self) -> None:
        """Stop listening. Calls under way end with the process."""
        self._stopping = True
        super().shutdown()

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close a connection, without the shutdown() that would turn a reset into a FIN."""
        cast("socket.socket", request).close()

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Print an error, except after shutdown: calls under way then find the store closed."""
        if not self._stopping:
            super().handle_error(request, client_address)


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: Server

    def handle(self) -> None:
        """Serve requests until either side closes."""
        self.request.settimeout(_IDLE_S)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.request.makefile("rb") as stream:
            try:
                while self._serve_one(stream):
                    pass
            except OSError:
                return  # the client disconnected, or was idle for too long

    def _serve_one(self, stream: BinaryIO) -> bool:
        """Read one request and answer it; returns whether the connection stays open."""
        try:
            request = read_request(stream, self.request)
        except _MalformedError as error:
            self.request.sendall(_encode(Reply(error.status), keep=False))
            return False
        if request is None:
            return False
        reply = self.server.answer(request)
        if reply.delay_s:
            time.sleep(reply.delay_s)
        keep = reply.wire in _KEEPS_OPEN and request.header("connection").lower() != "close"
        self._send(reply, keep=keep)
        return keep

    def _send(self, reply: Reply, *, keep: bool) -> None:
        match reply.wire:
            case Transmission.NORMAL:
                self.request.sendall(_encode(reply, keep=keep))
            case Transmission.RESET:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            case Transmission.CLOSE:
                pass
            case Transmission.RAW:
                self.request.sendall(reply.body)
            case Transmission.CUT:
                missing = (len(reply.body) + 1) // 2
                self.request.sendall(_encode(reply, keep=keep)[:-missing])
            case Transmission.DRIP:
                for byte in _encode(reply, keep=keep):
                    self.request.sendall(bytes((byte,)))
                    time.sleep(reply.drip_interval_s)


def read_request(stream: BinaryIO, connection: socket.socket) -> Request | None:
    """Read the next request; None at the end of the stream."""
    line = stream.readline(_LINE_MAX)
    if not line:
        return None
    try:
        method, target, version = line.decode("latin-1").split()
    except ValueError:
        raise _MalformedError(400) from None
    if not version.startswith("HTTP/1."):
        raise _MalformedError(505)
    headers = _read_headers(stream)
    if version == "HTTP/1.0" and headers.get("connection", "").lower() != "keep-alive":
        headers["connection"] = "close"
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _read_body(stream, headers)
    if not target.startswith("/"):
        absolute = urlsplit(target)
        target = f"{absolute.path}?{absolute.query}"
    path, _, query = target.partition("?")
    return Request(method, path, query, headers, body)


def _read_headers(stream: BinaryIO) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(_HEADERS_MAX):
        line = stream.readline(_LINE_MAX)
        if line in {b"\r\n", b"\n", b""}:
            return headers
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise _MalformedError(400)
        headers[name.strip().lower()] = value.strip()
    raise _MalformedError(431)


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _read_chunks(stream)
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise _MalformedError(400)
    if int(length) > _BODY_MAX:
        raise _MalformedError(413)
    return stream.read(int(length)) if length != "0" else b""


def _read_chunks(stream: BinaryIO) -> bytes:
    body = bytearray()
    while True:
        size_text = stream.readline(_LINE_MAX).partition(b";")[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError:
            raise _MalformedError(400) from None
        if size < 0 or len(body) + size > _BODY_MAX:
            raise _MalformedError(413)
        if size == 0:
            break
        body += stream.read(size)
        stream.readline(_LINE_MAX)
    while stream.readline(_LINE_MAX) not in {b"\r\n", b"\n", b""}:
        pass  # trailers
    return bytes(body)


def _encode(reply: Reply, *, keep: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {responses.get(reply.status, 'Unknown')}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Length: {len(reply.body)}",
    ]
    if reply.content_type:
        lines.append(f"Content-Type: {reply.content_type}")
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if not keep:
        lines.append("Connection: close")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + reply.body
