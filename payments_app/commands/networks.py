"""A network as an operator types it: 203.0.113.0/24, 2001:db8::/32, or one address."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import click


class Network(click.ParamType[IPv4Network | IPv6Network]):
    """A network in CIDR notation."""

    name = "network"

    def convert(self, value: Any, param: Any, ctx: Any) -> IPv4Network | IPv6Network:
        """Read one network; bits beyond the prefix length are an error, not a wider network."""
        try:
            return ip_network(value)
        except ValueError:
            self.fail("say a network such as 203.0.113.0/24 or 2001:db8::/32", param, ctx)
