"""Addresses that the gateway takes for public ones, and that no host has."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

# 3ffe::/16 was given back (RFC 3701) and is not assigned: no network has a route to it.
NOBODYS_HOST: Final = "3ffe:ffff::14"
NOBODYS_URL: Final = f"https://[{NOBODYS_HOST}]/hook"
ANOTHER_URL: Final = "https://[3ffe:ffff::15]/hook"
# All of IPv4 is assigned, so a test that needs a public address takes a neighbour of a reserved
# range (RFC 6890). Nothing is ever sent there: the test's resolver answers for their names.
NEIGHBOURS_4: Final = tuple(
    str(IPv4Address(reserved) + step)
    for reserved, step in (
        ("100.64.0.0", -1),
        ("100.127.255.255", 1),
        ("172.31.255.255", 1),
        ("198.18.0.0", -1),
        ("198.19.255.255", 1),
        ("224.0.0.0", -1),
    )
)
