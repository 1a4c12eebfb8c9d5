"""Requests to URLs that tenants gave us: to public hosts only, and bounded whole.

Every address of a name must be public, and a new connection goes to one of the addresses that were
checked: a name that leads elsewhere a moment later leads nowhere. A connection is kept for the next
request of its owner to that address, for as long as the name has it. There is nothing here
that could follow a redirect, keep a cookie, unfold an answer or ask the environment for a proxy.
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
from payments_app.kernel.egress_connection import Connection, KeptConnections, Response, Route
from payments_app.kernel.lookup import (
    NAME_KEPT_S,
    Addresses,
    LookupLate,
    LookupRefused,
    Lookups,
    Name,
    Resolve,
)
from payments_app.kernel.public_address import is_public
from payments_app.kernel.wire import Answer, LeaseLost, Silence

__all__ = ["AddressRefused", "Egress", "EgressRules", "check_url"]

RESOLVE_MAX_S: Final = 5.0
# While somebody waits for a request of theirs to be answered.
CHECK_MAX_S: Final = 2.0
# Room for status line, headers and the framing of chunks, besides the body's bytes.
HEAD_BYTES_MAX: Final = 16 * 1024
# The word for a request that was not sent because its owner's lookups, or all, were taken.
LOOKUP_BUSY: Final = "lookup_busy"
# Names that are checked before they are saved: in this process, few request threads wait for that,
# and of one owner one.
_checks: Final = Lookups(at_once=2, per_owner=1, kept_s=0.0)

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


def check_url(
    url: str, rules: EgressRules, *, owner: Hashable = None, resolve: Resolve = socket.getaddrinfo
) -> None:
    """Raises AddressRefused unless `url` could be sent to now.

    A name is looked up for 2 s at most, and one at a time for each owner. While another lookup of
    the owner's runs, the name is not looked up here: it is checked at each connection in any case.
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
        # The same words as for a name of an inner network: which ones there are is nobody's business.
        raise not_public() from error
    _check_public(found, rules)


class Egress:
    """Posts to tenants' URLs. Threads may share one."""

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
        # Not ssl.create_default_context, which asks the environment for files.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(ca_file or certifi.where())
        self._tls.set_alpn_protocols(["http/1.1"])

    @property
    def rules(self) -> EgressRules:
        """What it may reach."""
        return self._rules

    def close_idle(self) -> None:
        """Close the kept connections that have waited too long for their next request."""
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
    ) -> Answer | Silence:
        """Send and wait; `timeout_s` bounds all of it, finding the address included.

        A status is the receiver's word: an answer whose head came whole is an Answer, truncated if
        its body was cut, lost or late. `owner` is whoever gave us the URL: connections are kept,
        and lookups counted, for each owner apart. Raises LeaseLost, with nothing sent, once
        `leave_before`, an instant of boot_seconds, has passed.
        """
        _refuse_transaction()
        start = boot_seconds()
        bytes_max = HEAD_BYTES_MAX + self._rules.bytes_max
        leaving = Departure(leave_before, start + timeout_s, bytes_left=bytes_max)
        leaving.check_lease()
        before = departure.current.set(leaving)
        try:
            target = destination(url, self._rules)
            request = self._request(target, headers, body)
            return self._exchange(owner, target, request, start)
        except (AddressRefused, LookupRefused, HTTPException, OSError, ValueError) as error:
            # ValueError: a header that can't be put on a wire.
            why = _why(error, leaving)
            return Silence(why, sent=leaving.begun, elapsed_s=boot_seconds() - start)
        finally:
            departure.current.reset(before)

    def _request(self, target: Destination, headers: Mapping[str, str], body: bytes) -> bytes:
        """The whole request. `destination` has let no character into the path that ends a line."""
        lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.host_header}"]
        for name, value in headers.items():
            if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
                raise ValueError("a header that can't be sent")
            if name.lower() not in _OURS:
                lines.append(f"{name}: {value}")
        # Uncompressed, so that the cap on bytes is a cap on what they unfold to.
        lines += [
            "Accept-Encoding: identity",
            f"User-Agent: {self._user_agent}",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body

    def _exchange(
        self, owner: Hashable, target: Destination, request: bytes, start: float
    ) -> Answer:
        leaving = departure.current.get()
        allowed = self._addresses(owner, target)
        kept = self._take(owner, target, allowed)
        if kept is not None:
            unread = leaving.bytes_left
            try:
                return self._answer(kept, request, start)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # The peer had closed it just before, as it may. So the request goes once more, on a
                # new connection; the same bytes, which the receiver knows by their id.
                if leaving.bytes_left < unread or _is_over(leaving):
                    raise
        return self._answer(Connection(owner, target, allowed, self._tls), request, start)

    def _addresses(self, owner: Hashable, target: Destination) -> Addresses:
        """The host's addresses, each of them public. Raises AddressRefused or OSError."""
        if target.literal is not None:
            return (target.literal,)
        timeout_s = min(RESOLVE_MAX_S, departure.current.get().remaining_s())
        name = Name(owner, target.host, target.port)
        found = self._lookups.addresses(self._resolve, name, timeout_s)
        _check_public(found, self._rules)
        return found

    def _take(self, owner: Hashable, target: Destination, allowed: Addresses) -> Connection | None:
        """A kept connection to an address that the host still has."""
        for address in allowed:
            route = Route(owner, target.tls, target.host, target.port, address)
            if (kept := self._kept.take(route)) is not None:
                return kept
        return None

    def _answer(self, connection: Connection, request: bytes, start: float) -> Answer:
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
        return Answer(response.status, names, text, boot_seconds() - start, truncated)


def _refuse_transaction() -> None:
    if transaction_is_open():
        raise RuntimeError("a network call inside a database transaction")


def _check_public(found: Addresses, rules: EgressRules) -> None:
    """Raises AddressRefused if any of a name's addresses isn't public."""
    if not (rules.allow_private or all(map(is_public, found))):
        raise not_public()


def _is_over(leaving: Departure) -> bool:
    """Whether there is no time left to send it once more."""
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
        # Too long, broken or too late; the status has come all the same.
        return body[:bytes_max], True
    return body[:bytes_max], len(body) > bytes_max or bool(response.length)


# One word for a name that nobody has and for one of an inner network.
_REFUSED: Final = "address_refused"
# What stopped a request before its first byte left: the first of these that fits.
_NOT_BEGUN: Final[tuple[tuple[type[Exception], str], ...]] = (
    (socket.gaierror, _REFUSED),
    (LookupLate, "lookup_timeout"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "connect_timeout"),
    (ssl.SSLError, "tls_failed"),
    (ValueError, "request_unsendable"),
)


def _why(error: Exception, leaving: Departure) -> str:
    """A constant word for what went wrong."""
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
