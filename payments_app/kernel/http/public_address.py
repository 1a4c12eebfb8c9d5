"""Which addresses are public: tenants' URLs may not use any other. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address

# All assigned global unicast IPv6. Outside: loopback, fc00::/7 with cloud metadata services
# (fd00:ec2::254), link-local, multicast, ::/96, mapped addresses, segment routing, local NAT64.
_GLOBAL_6: Final = IPv6Network("2000::/3")
# An IPv6-only network reaches every IPv4 host through these; the last 32 bits are its address.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# ISATAP's marks before an IPv4 address: 0000:5efe and, for a globally unique one, 0200:5efe.
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
# Networks that `is_global` allows, in some or all versions of Python.
_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(network)
    for network in (
        "168.63.129.16/32",  # Azure's services for its machines, on an address that looks public
        "192.0.0.0/24",  # protocol assignments; also a cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "224.0.0.0/3",  # multicast and reserved
    )
)
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2002::/16",  # 6to4: it contains any IPv4 address
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Whether it is an address on the public internet, from any network that we are in."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return (
        address in _GLOBAL_6
        and address.is_global
        and not any(address in network for network in _NOT_PUBLIC_6)
        and (int(address) >> 32) & 0xFFFF_FFFF not in _ISATAP
    )
