"""Which addresses are hosts' on the internet; all others are refused to tenants' URLs. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address

# All that is handed out of IPv6. Outside are loopback, fc00::/7 with the clouds' metadata services
# (fd00:ec2::254), link-local, multicast, ::/96, mapped addresses, segment routing, local NAT64.
_GLOBAL_6: Final = IPv6Network("2000::/3")
# A network with IPv6 only reaches every IPv4 host through these; the last 32 bits are the host.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# ISATAP's marks in front of an IPv4 address: 0000:5efe and, for a unique one, 0200:5efe.
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
# What `is_global` lets pass, in some version of Python or in all.
_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services for a machine, on an address that looks public
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata service too
        "192.88.99.0/24",  # relays of 6to4
        "224.0.0.0/3",  # multicast and reserved
    )
)
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2002::/16",  # 6to4: an IPv4 address of anybody's choice
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Whether it is a host's address on the internet, whatever network we are in."""
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
