"""How many connections an edge takes: of everybody together, and of one client address."""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from dataclasses import dataclass

# What a connection may need: its own descriptor, its server's, and a copy of each while nothing is read (see hangup).
_DESCRIPTORS_PER_CONNECTION = 4
# The listener, the loop's own, the node's, idle ones to the control API, the log, and new ones that are refused.
_OTHER_DESCRIPTORS = 128
_LOOPBACK = "127."
# One site has at least this much of IPv6 (RFC 6177), so single addresses there limit nobody.
_IPV6_PREFIX = 64


@dataclass(frozen=True)
class Limits:
    """Most connections at once.

    Attributes:
        total: of everybody.
        per_address: of one client address that is not loopback.
    """

    total: int
    per_address: int

    @classmethod
    def of_process(cls, *, per_address: int) -> Limits:
        """Raise this process's limit of descriptors as far as it may be, and derive `total` from it."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return cls(max(1, (hard - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION), per_address)


class Admission:
    """Counts connections."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0
        self._origins: Counter[str | None] = Counter()

    def enter(self, address: str) -> str | None:
        """Count a connection from `address` until it leaves. Returns why it cannot be served, if so."""
        origin = _origin(address)
        self._total += 1
        self._origins[origin] += 1
        if self._total > self._limits.total:
            return "the server has as many connections as it can"
        if origin is not None and self._origins[origin] > self._limits.per_address:
            return f"more than {self._limits.per_address} connections from this address"
        return None

    def leave(self, address: str) -> None:
        """A connection that entered has ended."""
        origin = _origin(address)
        self._total -= 1
        self._origins[origin] -= 1
        if not self._origins[origin]:
            del self._origins[origin]


def _origin(address: str) -> str | None:
    """Who is counted as one; None for loopback."""
    if ":" not in address:
        return None if address.startswith(_LOOPBACK) else address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return _origin(str(parsed.ipv4_mapped))
    if parsed.is_loopback:
        return None
    return str(ipaddress.IPv6Network((parsed, _IPV6_PREFIX), strict=False))
