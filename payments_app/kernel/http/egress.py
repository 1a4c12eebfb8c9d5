"""Sends requests to URLs that tenants configured: to public hosts only, with a time and size limit.

Every address of a host name must be public. A new connection goes to one of the checked addresses,
so a later DNS change can't redirect it (DNS rebinding). A connection is kept for its owner's next
request to that address, as long as the name still resolves to it. This module can't follow a
redirect, keep a cookie, decompress a response or read a proxy from the environment.
It logs nothing: URLs and bodies can hold secrets.
"""

from __future__ import annotations

import re
import socket
import ssl
import weakref
from collections.abc import Hashable, Mapping
from http.client import HTTPException, RemoteDisconnected
from typing import Final

import certifi

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction_is_open
from payments_app.kernel.http import bounded_connection
from payments_app.kernel.http.bounded_connection import ExchangeDeadline
from payments_app.kernel.http.destination import (
    AddressRefused,
    Destination,
    EgressRules,
    destination,
    not_public,
)
from payments_app.kernel.http.egress_connection import Connection, KeptConnections, Response, Route
from payments_app.kernel.http.lookup import (
    NAME_KEPT_S,
    Addresses,
    LookupLate,
    LookupRefused,
    Lookups,
    Name,
    Resolve,
)
from payments_app.kernel.http.messages import HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.http.public_address import is_public

__all__ = ["AddressRefused", "Egress", "EgressRules", "check_url"]

RESOLVE_MAX_S: Final = 5.0
# A shorter limit, because an API request waits for this lookup.
CHECK_MAX_S: Final = 2.0
# Bytes for the status line, headers and chunk framing, in addition to the body's bytes.
HEAD_BYTES_MAX: Final = 16 * 1024
# The reason for a request that was not sent: no free lookup for its owner, or for all owners.
LOOKUP_BUSY: Final = "lookup_busy"
# Lookups for URLs that are checked before they are saved. At most two request threads of this
# process wait for one, and at most one for each owner.
_checks: Final = Lookups(at_once=2, per_owner=1, kept_s=0.0)

# This module sets these headers; a caller's values for them are dropped.
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


def check_url(
    url: str, rules: EgressRules, *, owner: Hashable = None, resolve: Resolve = socket.getaddrinfo
) -> None:
    """Raises AddressRefused unless a request could be sent to `url` now.

    A lookup takes 2 s at most, and one runs at a time for each owner. While another lookup of
    the owner runs, the name is not looked up here: it is checked at each connection in any case.
    """
    _refuse_transaction()
    target = destination(url, rules)
    if target.literal is not None:
        return
    name = Name(owner, target.host, target.port)
    try:
        found = _checks.addresses(resolve, name, CHECK_MAX_S, join=False)
    except LookupRefused:
        return
    except LookupLate as error:
        raise AddressRefused("The URL's host was not found in time: try again.") from error
    except OSError as error:
        # The same message as for a private name: callers must not learn which internal names exist.
        raise not_public() from error
    _check_public(found, rules)


class Egress:
    """Sends POST requests to tenants' URLs. Threads may share one."""

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
        self._lookups = Lookups(kept_s=NAME_KEPT_S)
        self._kept = KeptConnections()
        weakref.finalize(self, self._kept.close)
        # Not ssl.create_default_context, which reads CA files from the environment.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(ca_file or certifi.where())
        self._tls.set_alpn_protocols(["http/1.1"])

    @property
    def rules(self) -> EgressRules:
        """The rules for the addresses that it may reach."""
        return self._rules

    def close_idle(self) -> None:
        """Close the kept connections that have been idle too long."""
        self._kept.close_idle()

    def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        owner: Hashable = None,
        timeout_s: float = 15.0,
        leave_before: float | None = None,
    ) -> HttpResponse | NoResponse:
        """Send and wait; `timeout_s` bounds the whole exchange, the lookup included.

        A response whose head is complete is an HttpResponse; `truncated` if its body was cut, lost
        or late. `owner` is the tenant that configured the URL: connections are kept, and lookups
        counted, separately for each owner. Raises LeaseLost, with nothing sent, if `leave_before`,
        an instant of boot_seconds, has passed.
        """
        _refuse_transaction()
        start = boot_seconds()
        bytes_max = HEAD_BYTES_MAX + self._rules.bytes_max
        leaving = ExchangeDeadline(leave_before, start + timeout_s, bytes_left=bytes_max)
        leaving.check_lease()
        before = bounded_connection.current.set(leaving)
        try:
            target = destination(url, self._rules)
            request = self._request(target, headers, body)
            return self._exchange(owner, target, request, start)
        except (AddressRefused, LookupRefused, HTTPException, OSError, ValueError) as error:
            # ValueError: a header that can't be sent.
            why = _why(error, leaving)
            return NoResponse(why, sent=leaving.begun, elapsed_s=boot_seconds() - start)
        finally:
            bounded_connection.current.reset(before)

    def _request(self, target: Destination, headers: Mapping[str, str], body: bytes) -> bytes:
        """The request's bytes. `destination` allows no line break in the path."""
        lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.host_header}"]
        for name, value in headers.items():
            if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
                raise ValueError("a header that can't be sent")
            if name.lower() not in _OURS:
                lines.append(f"{name}: {value}")
        # Without compression, the limit on received bytes is also the limit on the body's size.
        lines += [
            "Accept-Encoding: identity",
            f"User-Agent: {self._user_agent}",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body

    def _exchange(
        self, owner: Hashable, target: Destination, request: bytes, start: float
    ) -> HttpResponse:
        leaving = bounded_connection.current.get()
        allowed = self._addresses(owner, target)
        kept = self._take(owner, target, allowed)
        if kept is not None:
            unread = leaving.bytes_left
            try:
                return self._answer(kept, request, start)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # The peer closed the idle connection just before, as it may. Send the same bytes
                # once more on a new connection; the receiver recognizes a duplicate by its id.
                if leaving.bytes_left < unread or _is_over(leaving):
                    raise
        return self._answer(Connection(owner, target, allowed, self._tls), request, start)

    def _addresses(self, owner: Hashable, target: Destination) -> Addresses:
        """The host's addresses; all are public. Raises AddressRefused or OSError."""
        if target.literal is not None:
            return (target.literal,)
        timeout_s = min(RESOLVE_MAX_S, bounded_connection.current.get().remaining_s())
        name = Name(owner, target.host, target.port)
        found = self._lookups.addresses(self._resolve, name, timeout_s)
        _check_public(found, self._rules)
        return found

    def _take(self, owner: Hashable, target: Destination, allowed: Addresses) -> Connection | None:
        """A kept connection to one of the host's current addresses."""
        for address in allowed:
            route = Route(owner, target.tls, target.host, target.port, address)
            if (kept := self._kept.take(route)) is not None:
                return kept
        return None

    def _answer(self, connection: Connection, request: bytes, start: float) -> HttpResponse:
        is_kept = False
        try:
            response = connection.ask(request)
            with response:
                text, truncated = _body(response, self._rules.bytes_max)
                names = {name.lower(): value for name, value in response.getheaders()}
            is_kept = not truncated and response.allows_another()
        finally:
            if is_kept:
                self._kept.keep(connection)
            else:
                connection.close()
        return HttpResponse(response.status, names, text, boot_seconds() - start, truncated)


def _refuse_transaction() -> None:
    if transaction_is_open():
        raise RuntimeError("a network call inside a database transaction")


def _check_public(found: Addresses, rules: EgressRules) -> None:
    """Raises AddressRefused if any of a name's addresses is not public."""
    if not (rules.allow_private or all(map(is_public, found))):
        raise not_public()


def _is_over(leaving: ExchangeDeadline) -> bool:
    """Whether there is no time left to send the request again."""
    try:
        leaving.check_lease()
    except LeaseLost:
        return True
    return leaving.deadline <= boot_seconds()


def _body(response: Response, bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, and whether there were or should have been more."""
    body = b""
    try:
        while len(body) <= bytes_max and (part := response.read1(bytes_max + 1 - len(body))):
            body += part
    except (HTTPException, OSError):
        # Too long, broken or too late; the status was received, so it is still returned.
        return body[:bytes_max], True
    return body[:bytes_max], len(body) > bytes_max or bool(response.length)


# One reason for an unknown name and for a private address, so that the tenant can't tell which.
_REFUSED: Final = "address_refused"
# Why a request failed before its first byte was sent: the first entry that matches.
_NOT_BEGUN: Final[tuple[tuple[type[Exception], str], ...]] = (
    (socket.gaierror, _REFUSED),
    (LookupLate, "lookup_timeout"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "connect_timeout"),
    (ssl.SSLError, "tls_failed"),
    (ValueError, "request_unsendable"),
)


def _why(error: Exception, leaving: ExchangeDeadline) -> str:
    """The failure as a constant word."""
    if isinstance(error, AddressRefused):
        return _REFUSED
    if isinstance(error, LookupRefused):
        return LOOKUP_BUSY
    if leaving.deadline <= boot_seconds():
        return "timeout"
    if not leaving.begun:
        words = (word for kind, word in _NOT_BEGUN if isinstance(error, kind))
        return next(words, "not_connected")
    garbage = isinstance(error, HTTPException) and not isinstance(error, RemoteDisconnected)
    return "broken_answer" if garbage else "connection_lost"
