"""A proxy in front of PostgreSQL: counts the round trips and statements of all clients.

It listens on its own Unix socket and forwards every byte. The server answers a Sync by one
ReadyForQuery, and a statement by one CommandComplete, also inside a pipeline or a text of several
statements. A Sync for which the server only parsed prepares a statement, once per connection: it is
not counted. A client that sends its next message only after every Sync is answered has waited: that
is a round trip. Without a pipeline each Sync is a round trip; inside a pipeline, their number depends
on timing.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"
_CHUNK = 65_536
# By then the clients have ended, and with them the connections.
_JOIN_S = 5.0
# A message begins with its kind and its length, which includes itself; a client's first has no kind.
_HEAD = 5
_START_HEAD = 4
# Sync, and a simple query, which includes a Sync.
_SYNCS = (b"S", b"Q")
# ParseComplete and nothing else: the statement was only prepared.
_ONLY_PARSED = {b"1"}


@dataclass
class Tap:
    """The counts so far, over all connections."""

    directory: Path
    target: str
    trips: int = 0
    syncs: int = 0
    statements: int = 0
    # The text of each statement, as it was sent.
    texts: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, work: Callable[..., None], *about: object) -> None:
        """Start a thread that the end of the block waits for."""
        self.threads.append(threading.Thread(target=work, args=about, daemon=True))
        self.threads[-1].start()

    def url(self, through: str) -> str:
        """Return this database URL, through the tap."""
        parts = urlsplit(through)
        return parts._replace(query=f"host={quote(str(self.directory), safe='/')}").geturl()

    def clear(self) -> None:
        """Set all counts to zero."""
        with self._lock:
            self.trips = self.syncs = self.statements = 0
            self.texts.clear()

    def answered(self, kind: bytes) -> None:
        """Count a message of this kind from the server."""
        with self._lock:
            self.syncs += kind == b"Z"
            self.statements += kind == b"C"

    def waited(self) -> None:
        """Count a round trip: a client sends, and all that it sent before is answered."""
        with self._lock:
            self.trips += 1

    def asked(self, text: str) -> None:
        """Record a statement that a client has sent for execution."""
        with self._lock:
            self.texts.append(text)


@contextmanager
def tapped(server_url: str) -> Iterator[Tap]:
    """Listen for the block."""
    target = parse_qs(urlsplit(server_url).query)["host"][0]
    with (
        tempfile.TemporaryDirectory(prefix="tap-") as directory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        tap = Tap(Path(directory), f"{target}/{_SOCKET}")
        listener.bind(f"{directory}/{_SOCKET}")
        listener.listen(64)
        tap.start(_take, listener, tap)
        try:
            yield tap
        finally:
            # Wakes the thread that accepts; a close alone would not.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in tap.threads:
                thread.join(_JOIN_S)


def _take(listener: socket.socket, tap: Tap) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(tap.target)
            to_server = _Client(client, server, tap)
            for work in (to_server, _Server(server, client, tap, to_server)):
                tap.start(work.hand_on)


class _Side:
    """One direction: forwards bytes after it has read the messages that end in them."""

    def __init__(self, source: socket.socket, sink: socket.socket, tap: Tap) -> None:
        self._source, self._sink, self._tap = source, sink, tap
        self._rest = b""

    def hand_on(self) -> None:
        with suppress(OSError):
            while chunk := self._source.recv(_CHUNK):
                self._rest += chunk
                while (message := self._next()) is not None:
                    self.see(message[:1], message[_HEAD:])
                self._sink.sendall(chunk)
        for end in (self._source, self._sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._source.close()

    def see(self, kind: bytes, content: bytes) -> None:
        """Handle a complete message."""
        raise NotImplementedError

    def _next(self) -> bytes | None:
        if len(self._rest) < _HEAD:
            return None
        end = 1 + int.from_bytes(self._rest[1:_HEAD], "big")
        if len(self._rest) < end:
            return None
        message, self._rest = self._rest[:end], self._rest[end:]
        return message


class _Client(_Side):
    """From client to server; knows the text of each prepared statement."""

    def __init__(self, source: socket.socket, sink: socket.socket, tap: Tap) -> None:
        super().__init__(source, sink, tap)
        self._texts: dict[bytes, str] = {}
        self._bound = ""
        self._is_new = True
        # Syncs without an answer, and whether messages were sent that no sync has followed yet.
        self.open_syncs = 0
        self._is_under_way = False

    def see(self, kind: bytes, content: bytes) -> None:
        if not self.open_syncs and not self._is_under_way:
            self._tap.waited()
        self._is_under_way = kind not in _SYNCS
        self.open_syncs += kind in _SYNCS
        if kind == b"P":
            name, text = content.split(b"\0", 2)[:2]
            self._texts[name] = text.decode()
        elif kind == b"B":
            self._bound = self._texts.get(content.split(b"\0", 2)[1], "?")
        elif kind == b"E":
            self._tap.asked(self._bound)
        elif kind == b"Q":
            self._tap.asked(content.rstrip(b"\0").decode())

    def _next(self) -> bytes | None:
        if not self._is_new:
            return super()._next()
        if len(self._rest) < _START_HEAD:
            return None
        end = int.from_bytes(self._rest[:_START_HEAD], "big")
        if len(self._rest) < end:
            return None
        self._is_new, self._rest = False, self._rest[end:]
        return b"startup"


class _Server(_Side):
    def __init__(
        self, source: socket.socket, sink: socket.socket, tap: Tap, context: _Client
    ) -> None:
        super().__init__(source, sink, tap)
        self._asker = context
        # The kinds of the server's messages since the last sync was answered.
        self._kinds: set[bytes] = set()

    def see(self, kind: bytes, content: bytes) -> None:  # noqa: ARG002
        if kind != b"Z":
            self._kinds.add(kind)
            self._tap.answered(kind)
            return
        self._asker.open_syncs -= self._asker.open_syncs > 0
        if self._kinds != _ONLY_PARSED:
            self._tap.answered(kind)
        self._kinds.clear()
