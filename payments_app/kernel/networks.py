"""Checks whether an address is in given networks, and whether a proxy forwarded a request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
# Headers that proxies and content delivery networks add to the requests that they forward.
_FORWARDED: Final = re.compile(
    r"forwarded|forwarded-for|x-forwarded(-.*)?|x-original-.*|via|cdn-loop|cf-.*|x-varnish"
    r"|(.*-)?(client|real|user|proxyuser)-?ip|x-envoy-.*|x-appengine-.*|x-vercel-.*"
    r"|x-amzn-trace-id|x-amz-cf-.*|x-cloud-trace-context",
    re.IGNORECASE,
)


def is_forwarded(header_names: Iterable[str]) -> bool:
    """Whether a proxy has forwarded the request: then the peer's address is the proxy's.

    A header name with underscores counts as the same name with hyphens.
    """
    return any(_FORWARDED.fullmatch(name.replace("_", "-")) for name in header_names)


def is_within(address: str | None, networks: Iterable[Network]) -> bool:
    """Whether `address` is in a network. ::ffff:a.b.c.d counts as a.b.c.d; no address: False."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
