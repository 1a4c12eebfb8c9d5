"""Parses a tenant's URL, and checks that requests may be sent to it.

Pure. A URL is parsed here once, by rules stricter than any library's, and the request is built from
these parts. So no second parser can read another host in the URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.http.public_address import Address, is_public

URL_LENGTH_MAX: Final = 2048
NAME_LENGTH_MAX: Final = 253
PORT_MAX: Final = 65535
_PORTS: Final = {"http": 80, "https": 443}
_NOT_IN_A_URL: Final = re.compile(r"[^!-~]|[\\#]")
_URL: Final = re.compile(r"(https?)://([^/?]*)(.*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(?::([1-9][0-9]{0,4}))?")
_LABEL: Final = r"[0-9a-z](?:[0-9a-z-]{0,61}[0-9a-z])?"
# The last label begins with a letter: some libraries read a name that ends in digits as an address.
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*(?=[a-z]){_LABEL}")


class AddressRefused(GatewayError):
    """No request may be sent to this URL. The error never says what its host resolves to."""

    code = "webhook_url_refused"


@dataclass(frozen=True, slots=True)
class EgressRules:
    """What may be reached. `bytes_max`: how much of a response's body is read.

    `allow_private` is for development: http, any port, any host, any address.
    """

    allow_private: bool = False
    ports: tuple[int, ...] = (443,)
    bytes_max: int = 16 * 1024


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL's parts. `literal` is the address if the host is an address."""

    tls: bool
    host: str
    port: int
    path: str
    host_header: str
    literal: Address | None


def destination(url: str, rules: EgressRules) -> Destination:
    """The URL's parts. Raises AddressRefused for what the rules don't allow; resolves nothing."""
    if len(url) > URL_LENGTH_MAX:
        raise AddressRefused(f"The URL may have {URL_LENGTH_MAX} characters at most.")
    if _NOT_IN_A_URL.search(url):
        raise AddressRefused(
            "The URL may not hold spaces, control characters, backslashes, a fragment or letters "
            "outside ASCII: write the host as xn--… and the rest percent-encoded."
        )
    parts = _URL.fullmatch(url)
    if parts is None or (parts[1].lower() == "http" and not rules.allow_private):
        begin = "http:// or https://" if rules.allow_private else "https://"
        raise AddressRefused(f"The URL must begin with {begin} and name a host.")
    named = _AUTHORITY.fullmatch(parts[2])
    if named is None:
        raise AddressRefused(
            "Before its path the URL may only name a host and a port: no user, no password, no "
            "percent signs."
        )
    scheme, host = parts[1].lower(), named[1].lower()
    usual = _PORTS[scheme]
    port = int(named[2] or usual)
    _check_port(port, rules)
    return Destination(
        tls=scheme == "https",
        host=host.strip("[]"),
        port=port,
        path=parts[3] if parts[3].startswith("/") else f"/{parts[3]}",
        host_header=host if port == usual else f"{host}:{port}",
        literal=_literal(host, rules),
    )


def not_public() -> AddressRefused:
    """One message for a private address, a name that resolves to one, and an unknown name."""
    return AddressRefused(
        "The URL's host must have public addresses only: name a host that the internet knows, and"
        " check its spelling."
    )


def _check_port(port: int, rules: EgressRules) -> None:
    if port > PORT_MAX or not (rules.allow_private or port in rules.ports):
        allowed = ", ".join(map(str, rules.ports))
        raise AddressRefused(f"The URL's port must be one of these: {allowed}.")


def _literal(host: str, rules: EgressRules) -> Address | None:
    """The address if the host is an address, None if it is a name. Raises AddressRefused."""
    address = _address(host)
    if address is None:
        _check_name(host, rules)
    elif not (rules.allow_private or is_public(address)):
        raise not_public()
    return address


def _address(host: str) -> Address | None:
    """The host as an address, if it is one in the canonical form."""
    kind = IPv6Address if host.startswith("[") else IPv4Address
    written = host.strip("[]")
    try:
        address = kind(written)
    except ValueError:
        return None
    return address if str(address) == written else None


def _check_name(host: str, rules: EgressRules) -> None:
    if len(host) > NAME_LENGTH_MAX or not _NAME.fullmatch(host):
        raise AddressRefused(
            "The URL's host must be a name, such as hooks.example.com, or an address in its usual "
            "form: no other way of writing numbers, no full stop at the end."
        )
    if "." not in host and not rules.allow_private:
        raise AddressRefused("The URL's host must be a full name, such as hooks.example.com.")
