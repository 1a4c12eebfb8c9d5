"""HTTP connections that check the lease after connecting, before the first byte is sent.

`transport` and `egress` use them. They know whether a byte was sent, and limit the whole exchange.
"""

from __future__ import annotations

import http.client
import io
import socket
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.http.messages import LeaseLost
from payments_app.kernel.http.response_head import read_head


@dataclass(slots=True)
class ExchangeDeadline:
    """The state of one exchange: may it begin, has it begun, how long may it still take.

    Instants are of `boot_seconds`; `leave_before` None means that it has no lease.
    `idle_max_s`: a connection that was not used for this long is not used again.
    `bytes_left`: how much of the response may still be read, its head and its framing included.
    """

    leave_before: float | None
    deadline: float
    idle_max_s: float = 0.0
    bytes_left: int = sys.maxsize
    begun: bool = False
    answered: bool = False

    def check_lease(self) -> None:
        """Raises LeaseLost if the lease is over."""
        if self.leave_before is not None and self.leave_before <= boot_seconds():
            raise LeaseLost("the lease ended before the call began")

    def remaining_s(self) -> float:
        """Raises TimeoutError when nothing is left."""
        left = self.deadline - boot_seconds()
        if left <= 0:
            raise TimeoutError("the exchange took all the time it had")
        return left


# A connection, deep inside the library, finds its exchange here.
current: Final[ContextVar[ExchangeDeadline]] = ContextVar("exchange_deadline")


class _BoundedReader(io.RawIOBase):
    """Each read waits only until the exchange's deadline, so a slow sender can't prolong it."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = current.get()
        self._is_stopped = False

    def readable(self) -> bool:
        return True

    def stop(self) -> None:
        """Read nothing more."""
        self._is_stopped = True

    def readinto(self, buffer: Any) -> int | None:
        if self._is_stopped:
            return 0
        self._sock.settimeout(self._deadline.remaining_s())
        if self._deadline.bytes_left <= 0:
            raise HTTPException("the answer is longer than may be read")
        count = self._raw.readinto(memoryview(buffer)[: self._deadline.bytes_left])
        self._deadline.bytes_left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class BoundedResponse(HTTPResponse):
    """Status line, headers and body, all read within the deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach(), sock))
        self._to_head = options.get("method") == "HEAD"

    def begin(self) -> None:
        """Reads the head, and sets how the body is framed. Raises HTTPException."""
        head = read_head(self.fp)
        # house: allow status because it is HTTP's
        self.version, self.status, self.reason = head.version, head.status, head.reason
        self.code = head.status
        self.headers = self.msg = head.fields
        without_body = self._to_head or head.has_no_body()
        self.chunked = not without_body and head.is_chunked()
        self.chunk_left = None
        self.length = 0 if without_body else None if self.chunked else head.length()
        endless = self.length is None and not self.chunked
        self.will_close = endless or head.closes()


class Bounded(http.client.HTTPConnection):
    """Checks the lease between "connected" and "first byte sent", so `begun` is exact.

    Only if the process is suspended between those two lines can a call still begin late. Then the
    provider itself refuses a reference that it has seen before.
    """

    response_class = BoundedResponse
    _used_at = float("-inf")

    def send(self, data: Any) -> None:
        """Raises LeaseLost or TimeoutError."""
        deadline = current.get()
        if self.sock is None:
            self.connect()
        self.sock.settimeout(deadline.remaining_s())
        if not deadline.begun:
            deadline.check_lease()
            deadline.begun = True
        self._used_at = boot_seconds()
        super().send(data)


class _Connection(Bounded, HTTPConnection):
    @property
    def is_connected(self) -> bool:
        """The pool reads this before it uses a connection again."""
        idle_s = boot_seconds() - self._used_at
        return super().is_connected and idle_s < current.get().idle_max_s


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOL_CLASSES: Final = {"http": _Pool, "https": _TlsPool}
