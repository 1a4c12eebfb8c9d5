"""Requests to URLs that tenants gave us: to public hosts only, and bounded whole.

A name is resolved once, every address that it has must be public, and the connection goes to one
of those addresses: a name that leads elsewhere a moment later leads nowhere. There is nothing here
that could follow a redirect, keep a cookie, unfold an answer or ask the environment for a proxy.
It logs nothing: URLs and bodies can hold secrets.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from ipaddress import IPv6Address
from typing import Final

import certifi

from payments_app.kernel import departure
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction_is_open
from payments_app.kernel.departure import Departure
from payments_app.kernel.destination import (
    AddressRefused,
    Destination,
    EgressRules,
    destination,
    not_public,
)
from payments_app.kernel.lookup import LookupLate, Resolve, addresses
from payments_app.kernel.public_address import Address, is_public
from payments_app.kernel.wire import Answer, Silence

__all__ = ["AddressRefused", "Egress", "EgressRules", "check_url"]

RESOLVE_MAX_S: Final = 5.0
CONNECT_MAX_S: Final = 3.0
# Room for status line, headers and the framing of chunks, besides the body's bytes.
HEAD_BYTES_MAX: Final = 16 * 1024
# What the kernel may take off the wire before we read it.
RECEIVE_BUFFER: Final = 16 * 1024

# Ours to say; what a caller says instead is left out.
_OURS: Final = {
    "accept-encoding",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[ -~]*")


def check_url(url: str, rules: EgressRules, *, resolve: Resolve = socket.getaddrinfo) -> None:
    """Raises AddressRefused unless `url` could be sent to now."""
    _refuse_transaction()
    target = destination(url, rules)
    try:
        _addresses(target, rules, resolve, RESOLVE_MAX_S)
    except LookupLate as error:
        raise AddressRefused("The URL's host was not found in time: try again.") from error
    except OSError as error:
        raise AddressRefused(
            "The URL's host is unknown: check its spelling, or wait until the name is known."
        ) from error


class Egress:
    """Posts to tenants' URLs, each over a connection of its own. Threads may share one."""

    def __init__(
        self,
        rules: EgressRules,
        *,
        user_agent: str,
        ca_file: str | None = None,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        """`ca_file`: certificate authorities to trust instead of certifi's."""
        self._rules = rules
        self._user_agent = user_agent
        self._resolve = resolve
        # Not ssl.create_default_context, which asks the environment for files.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(ca_file or certifi.where())
        self._tls.set_alpn_protocols(["http/1.1"])

    @property
    def rules(self) -> EgressRules:
        """What it may reach."""
        return self._rules

    def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        timeout_s: float = 15.0,
        leave_before: float | None = None,
    ) -> Answer | Silence:
        """Send and wait; `timeout_s` bounds all of it, finding the address included.

        A status is the receiver's word: an answer whose head came whole is an Answer, truncated if
        its body was cut, lost or late. Raises LeaseLost, with nothing sent, once `leave_before`,
        an instant of boot_seconds, has passed.
        """
        _refuse_transaction()
        start = boot_seconds()
        bytes_max = HEAD_BYTES_MAX + self._rules.bytes_max
        leaving = Departure(leave_before, start + timeout_s, bytes_left=bytes_max)
        leaving.check_lease()
        before = departure.current.set(leaving)
        try:
            return self._answer(url, self._headers(headers), body, start)
        except (AddressRefused, HTTPException, OSError, ValueError) as error:
            # ValueError: a header or a path that can't be put on a wire.
            why = _why(error, leaving)
            return Silence(why, sent=leaving.begun, elapsed_s=boot_seconds() - start)
        finally:
            departure.current.reset(before)

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
                raise ValueError("a header that can't be sent")
        theirs = {name: value for name, value in headers.items() if name.lower() not in _OURS}
        # Uncompressed, so that the cap on bytes is a cap on what they unfold to.
        ours = {"Accept-Encoding": "identity", "Connection": "close"}
        return theirs | ours | {"User-Agent": self._user_agent}

    def _answer(self, url: str, headers: dict[str, str], body: bytes, start: float) -> Answer:
        leaving = departure.current.get()
        target = destination(url, self._rules)
        resolve_s = min(RESOLVE_MAX_S, leaving.remaining_s())
        allowed = _addresses(target, self._rules, self._resolve, resolve_s)
        with closing(_Connection(target, allowed, self._tls)) as connection:
            headers["Host"] = target.host_header
            connection.request("POST", target.path, body, headers)
            with connection.getresponse() as response:
                text, truncated = _body(response, self._rules.bytes_max)
                names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, text, boot_seconds() - start, truncated)


class _Connection(departure.Bounded):
    """To one of the addresses that were found public, whatever the host's name leads to by now."""

    def __init__(
        self, target: Destination, addresses: Sequence[Address], tls: ssl.SSLContext
    ) -> None:
        super().__init__(target.host, target.port)
        self._target = target
        self._addresses = addresses
        self._tls = tls

    def connect(self) -> None:
        sock = self._connected()
        self.sock = sock
        if self._target.tls:
            sock.settimeout(departure.current.get().remaining_s())
            self.sock = self._tls.wrap_socket(sock, server_hostname=self._target.host)

    def _connected(self) -> socket.socket:
        """To the first address that takes it: no byte of a request has left before."""
        failure: OSError = OSError("no address")
        for address in self._addresses:
            left_s = departure.current.get().remaining_s()
            family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(min(CONNECT_MAX_S, left_s))
                sock.connect((str(address), self._target.port))
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure


def _refuse_transaction() -> None:
    if transaction_is_open():
        raise RuntimeError("a network call inside a database transaction")


def _addresses(
    target: Destination, rules: EgressRules, resolve: Resolve, timeout_s: float
) -> Sequence[Address]:
    """All of the host's addresses. Raises AddressRefused if any isn't public, or OSError."""
    if target.literal is not None:
        return (target.literal,)
    found = addresses(resolve, target.host, target.port, timeout_s)
    if not (rules.allow_private or all(map(is_public, found))):
        raise not_public()
    return found


def _body(response: HTTPResponse, bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, and whether there were or should have been more."""
    body = b""
    try:
        while len(body) <= bytes_max and (part := response.read1(bytes_max + 1 - len(body))):
            body += part
    except (HTTPException, OSError):
        # Too long, broken or too late; the status has come all the same.
        return body[:bytes_max], True
    return body[:bytes_max], len(body) > bytes_max or bool(response.length)


# What stopped a request before its first byte left: the first of these that fits.
_NOT_BEGUN: Final[tuple[tuple[type[Exception], str], ...]] = (
    (socket.gaierror, "name_unknown"),
    (LookupLate, "lookup_timeout"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "connect_timeout"),
    (ssl.SSLError, "tls_failed"),
    (ValueError, "request_unsendable"),
)


def _why(error: Exception, leaving: Departure) -> str:
    """A constant word for what went wrong."""
    if isinstance(error, AddressRefused):
        return "address_refused"
    if leaving.deadline <= boot_seconds():
        return "timeout"
    if not leaving.begun:
        words = (word for kind, word in _NOT_BEGUN if isinstance(error, kind))
        return next(words, "not_connected")
    garbage = isinstance(error, HTTPException) and not isinstance(error, RemoteDisconnected)
    return "broken_answer" if garbage else "connection_lost"
