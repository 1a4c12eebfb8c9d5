"""A server made of bare sockets, which sends any bytes that a test wants, and its behaviours."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

Behaviour = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class BareServer:
    """Accepts on localhost and runs `behave` for each connection, in a thread of its own."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        # How many of them this server has closed.
        self.closed = 0
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def read_request(self, peer: socket.socket) -> bytes:
        """Read one whole request; empty when the peer has closed. Stored in `requests`."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = peer.recv(65536)
            if not part:
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [
            int(line[15:]) for line in head.lower().split(b"\r\n") if b"content-length:" in line
        ]
        while len(body) < sum(lengths):
            body += peer.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            with closing(peer), suppress(OSError):
                self._behave(peer)
        finally:
            self.closed += 1


Serve = Callable[[Callable[[BareServer, socket.socket], None]], BareServer]


def answer_all(server: BareServer, peer: socket.socket) -> None:
    while server.read_request(peer):
        peer.sendall(OK)


def answering(raw: bytes) -> Callable[[BareServer, socket.socket], None]:
    """Reads one request, sends `raw`, closes."""

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(raw)

    return behave


def drip(raw: bytes, before: bytes = b"") -> Callable[[BareServer, socket.socket], None]:
    """Sends `before` at once and then a byte of `raw` every 50 ms."""

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(before)
        for byte in raw:
            peer.sendall(bytes([byte]))
            time.sleep(0.05)

    return behave
