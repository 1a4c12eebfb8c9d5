"""Whether an address is in one of some networks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
# What proxies and content networks leave on what they pass on.
_FORWARDED: Final = re.compile(
    r"forwarded|forwarded-for|x-forwarded(-.*)?|x-original-.*|via|cdn-loop|cf-.*|x-varnish"
    r"|(.*-)?(client|real|user|proxyuser)-?ip|x-envoy-.*|x-appengine-.*|x-vercel-.*"
    r"|x-amzn-trace-id|x-amz-cf-.*|x-cloud-trace-context",
    re.IGNORECASE,
)


def is_forwarded(header_names: Iterable[str]) -> bool:
    """Whether a proxy has passed the request on: then the peer's address is the proxy's own.

    A name that is written with underscores says the same.
    """
    return any(_FORWARDED.fullmatch(name.replace("_", "-")) for name in header_names)


def is_within(address: str | None, networks: Iterable[Network]) -> bool:
    """An IPv4 address that comes as ::ffff:a.b.c.d is the same; what is no address is nowhere."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
