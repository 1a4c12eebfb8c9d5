"""A tap on the way to PostgreSQL: counts round trips and statements, whoever sends them.

It stands on a Unix socket of its own and hands every byte on. A sync is answered by one
ReadyForQuery; a statement by one CommandComplete, also inside a pipeline or a text of several. A
sync for which the server only parsed prepares a statement, once for each connection: it is not counted. A
client that sends its next message only once every sync is answered has waited: a round trip. Without
a pipeline each sync is one; inside a pipeline, how many are depends on who is faster.
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
# Whoever was tapped has ended by then, and with it the connection.
_JOIN_S = 5.0
# A message is its kind and its length, which counts itself; the first of a client has no kind.
_HEAD = 5
_START_HEAD = 4
# Sync, and a simple query, which is one by itself.
_SYNCS = (b"S", b"Q")
# ParseComplete and nothing else: what is prepared on its own.
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
        """On a thread that the end of the block waits for."""
        self.threads.append(threading.Thread(target=work, args=about, daemon=True))
        self.threads[-1].start()

    def url(self, through: str) -> str:
        """This address, through the tap."""
        parts = urlsplit(through)
        return parts._replace(query=f"host={quote(str(self.directory), safe='/')}").geturl()

    def clear(self) -> None:
        """Begin anew."""
        with self._lock:
            self.trips = self.syncs = self.statements = 0
            self.texts.clear()

    def answered(self, kind: bytes) -> None:
        """The server has sent a message of this kind."""
        with self._lock:
            self.syncs += kind == b"Z"
            self.statements += kind == b"C"

    def waited(self) -> None:
        """A client sends, and nothing of what it sent before is still open."""
        with self._lock:
            self.trips += 1

    def asked(self, text: str) -> None:
        """A client has sent this to be executed."""
        with self._lock:
            self.texts.append(text)


@contextmanager
def tapped(server_url: str) -> Iterator[Tap]:
    """Listen, until the end of the block."""
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
    """One direction: hands bytes on once it has read which messages end in them."""

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
        """A whole message has passed."""
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
    """Knows which text each prepared statement has."""

    def __init__(self, source: socket.socket, sink: socket.socket, tap: Tap) -> None:
        super().__init__(source, sink, tap)
        self._texts: dict[bytes, str] = {}
        self._bound = ""
        self._is_new = True
        # Syncs that are not answered, and whether messages are sent that no sync has followed yet.
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
