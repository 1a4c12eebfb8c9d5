"""Whether an address is in one of some networks."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
# What a proxy leaves on what it passes on: then the peer's address is the proxy's own.
FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")


def is_within(address: str | None, networks: Iterable[Network]) -> bool:
    """An IPv4 address that comes as ::ffff:a.b.c.d is the same; what is no address is nowhere."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
