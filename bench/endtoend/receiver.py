"""The tenants' endpoint, a separate process: answers every webhook at once and stores its bytes.

    python -m bench.endtoend.receiver PORT SOCKET FILE

Requests under /hang are read and never answered. A client of the Unix socket is sent the id of each
payment as soon as the webhook of its end has arrived, one a line. The file holds the requests as
they arrived, to be verified afterwards: see `bench.endtoend.recorded`.
"""

from __future__ import annotations

import asyncio
import re
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LAST_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# Before each request in the file: when it was complete, in seconds since 1970, and its length.
RECORD = struct.Struct(">dI")
FLUSH_EVERY_S = 0.2
# How many connections may wait to be accepted.
BACKLOG = 1024
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_IS_FINAL = re.compile(rb'"type": ?"payment\.(?:successful|failed)"')
_PAYMENT = re.compile(rb'"payment_id": ?"([0-9a-f-]{36})"')


class Receiver:
    """The file and the clients, which all connections share."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._listeners: set[asyncio.StreamWriter] = set()

    def take(self, request: bytes) -> None:
        """Record one complete request."""
        self._file.write(RECORD.pack(time.time(), len(request)))
        self._file.write(request)
        if _IS_FINAL.search(request) and (found := _PAYMENT.search(request)):
            for listener in self._listeners:
                listener.write(found[1] + b"\n")

    async def listen(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send ids to this client until it disconnects."""
        self._listeners.add(writer)
        await _reader.read()
        self._listeners.discard(writer)
        writer.close()

    async def flush(self) -> None:
        """Flush the file every FLUSH_EVERY_S."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            self._file.flush()


class Connection(asyncio.Protocol):
    """A connection from a sender of webhooks."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to answer over it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  a TCP server's is one
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        self._rest += data
        while (end := self._end()) and self._transport is not None:
            request, self._rest = self._rest[:end], self._rest[end:]
            if b" /hang" in request[: request.find(b"\r\n")]:
                continue
            closes = _CLOSES.search(request, 0, request.find(_END)) is not None
            self._transport.write(LAST_ANSWER if closes else ANSWER)
            self._receiver.take(request)
            if closes:
                self._transport.close()

    def _end(self) -> int:
        """Where the first request ends; 0 while it is incomplete."""
        head = self._rest.find(_END)
        if head < 0:
            return 0
        length = _LENGTH.search(self._rest, 0, head)
        end = head + len(_END) + (int(length[1]) if length else 0)
        return end if end <= len(self._rest) else 0


async def receive(port: int, socket: str, file: BinaryIO) -> None:
    """Serve until the process is ended."""
    receiver = Receiver(file)
    loop = asyncio.get_running_loop()
    await asyncio.start_unix_server(receiver.listen, socket)
    await loop.create_server(lambda: Connection(receiver), "127.0.0.1", port, backlog=BACKLOG)
    await receiver.flush()


def main() -> None:
    """Serve."""
    port, socket, path = sys.argv[1:]
    with Path(path).open("ab", buffering=1 << 20) as file:
        asyncio.run(receive(int(port), socket, file))


if __name__ == "__main__":
    main()
