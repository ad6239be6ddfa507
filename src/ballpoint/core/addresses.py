"""Addresses of peers, and networks they may be in."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Networks = Sequence[IPv4Network | IPv6Network]


def networks(cidrs: Sequence[str]) -> Networks:
    """Parsed CIDRs. ValueError where one is none."""
    return [ip_network(each) for each in cidrs]


def is_within(address: str, trusted: Networks) -> bool:
    """Whether a peer's address, as getpeername(2) writes it, is in one of the networks; no address is in none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(mapped in each for each in trusted)
