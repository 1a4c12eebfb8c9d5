"""A connection to a checked address, and a pool of idle connections for later requests.

A kept connection belongs to one owner, host and address. It is used again only if the last response
was read to its end and no byte followed it.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
import threading
from collections.abc import Hashable, Sequence
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import Any, Final, NamedTuple

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.http import bounded_connection
from payments_app.kernel.http.destination import Destination
from payments_app.kernel.http.public_address import Address

CONNECT_MAX_S: Final = 3.0
# Bytes that the kernel may receive before we read them.
RECEIVE_BUFFER: Final = 16 * 1024
# Idle connections for one owner at one address, and in total. Each is a file descriptor.
KEPT_PER_HOST: Final = 32
KEPT_MAX: Final = 256
# Shorter than most servers keep an idle connection open.
IDLE_MAX_S: Final = 4.0
# Load balancers move new connections to other hosts, and certificates expire.
AGE_MAX_S: Final = 300.0


class Route(NamedTuple):
    """The owner of a connection, and its peer."""

    owner: Hashable
    tls: bool
    host: str
    port: int
    address: Address


class _Buffer(io.BufferedReader):
    """Knows, once it is closed, whether more bytes were received than were read."""

    has_more = False

    def close(self) -> None:
        if not self.closed:
            raw: Any = self.raw
            raw.stop()
            self.has_more = bool(self.peek())
        super().close()


class Response(bounded_connection.BoundedResponse):
    """A response that knows whether its connection can serve another request."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._buffer = _Buffer(self.fp.detach())
        self.fp = self._buffer

    def allows_another(self) -> bool:
        """Whether the connection may serve another request. Call it after reading the whole body.

        False if the peer closes the connection, switches protocols, or has already sent more bytes.
        """
        self._buffer.close()
        return not (self.will_close or self._buffer.has_more or self.status < HTTPStatus.OK)


class Connection(bounded_connection.Bounded):
    """A connection to one of the checked addresses; the host name is not resolved again."""

    response_class = Response

    def __init__(
        self,
        owner: Hashable,
        target: Destination,
        addresses: Sequence[Address],
        tls: ssl.SSLContext,
    ) -> None:
        super().__init__(target.host, target.port)
        self._owner = owner
        self._target = target
        self._addresses = addresses
        self._tls = tls
        self.made_at = boot_seconds()
        self.route: Route | None = None

    def ask(self, request: bytes) -> Response:
        """Send a whole request and read the response's head. Connects first if necessary."""
        self.send(request)
        response = self.response_class(self.sock, method="POST")
        try:
            response.begin()  # house: allow transaction because it is HTTP's
        except BaseException:
            response.close()
            raise
        return response

    def connect(self) -> None:
        """See http.client. Connects to the first address that accepts, before any byte is sent."""
        failure: OSError = OSError("no address")
        for address in self._addresses:
            try:
                self.sock = self._connected(address)
            except OSError as error:
                failure = error
            else:
                target = self._target
                self.route = Route(self._owner, target.tls, target.host, target.port, address)
                break
        else:
            raise failure
        if self._target.tls:
            self.sock.settimeout(bounded_connection.current.get().remaining_s())
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._target.host)

    def is_fit(self) -> bool:
        """Whether the peer has neither closed it nor sent unexpected bytes."""
        if self.sock is None or boot_seconds() - self.made_at > AGE_MAX_S:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        # The rest of a TLS record that was partly read is in OpenSSL, not in the socket.
        rest = self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0
        return not (rest or poll.poll(0))

    def _connected(self, address: Address) -> socket.socket:
        left_s = bounded_connection.current.get().remaining_s()
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(CONNECT_MAX_S, left_s))
            sock.connect((str(address), self._target.port))
        except OSError:
            sock.close()
            raise
        return sock


class KeptConnections:
    """A pool of idle connections. Any thread may take one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Longest idle first, with the start of its idle time; and the same by route, newest last.
        self._since: dict[Connection, float] = {}
        self._by_route: dict[Route, list[Connection]] = {}

    def take(self, route: Route) -> Connection | None:
        """An idle connection that can serve a request, or None. Only the caller uses it then."""
        while True:
            with self._lock:
                waiting = self._by_route.get(route)
                connection = waiting[-1] if waiting else None
                if connection is None:
                    return None
                since = self._drop(connection)
            if boot_seconds() - since <= IDLE_MAX_S and connection.is_fit():
                return connection
            connection.close()

    def keep(self, connection: Connection) -> None:
        """Add it to the pool. Closes surplus connections and those that are idle too long."""
        if connection.route is None:
            connection.close()
            return
        with self._lock:
            waiting = self._by_route.setdefault(connection.route, [])
            waiting.append(connection)
            self._since[connection] = boot_seconds()
            surplus = [waiting[0]] if len(waiting) > KEPT_PER_HOST else []
            if len(self._since) > KEPT_MAX:
                surplus.append(next(iter(self._since)))
            for one in dict.fromkeys(surplus):
                self._drop(one)
        for one in dict.fromkeys(surplus):
            one.close()
        self.close_idle()

    def close(self) -> None:
        """Close all."""
        self.close_idle(max_s=0.0)

    def close_idle(self, max_s: float = IDLE_MAX_S) -> None:
        """Close the connections that have been idle for `max_s` seconds."""
        before = boot_seconds() - max_s
        with self._lock:
            idle: list[Connection] = []
            for one, since in self._since.items():
                if since > before:
                    break
                idle.append(one)
            for one in idle:
                self._drop(one)
        for one in idle:
            one.close()

    def _drop(self, connection: Connection) -> float:
        route = connection.route
        if route is not None:
            waiting = self._by_route[route]
            waiting.remove(connection)
            if not waiting:
                del self._by_route[route]
        return self._since.pop(connection)
