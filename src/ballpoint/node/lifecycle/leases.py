"""What keeps sprites awake: connections that the edges have to them.

A lease is of one edge process on one instance, however many connections it has to it. It is granted in the answer that
names the instance, and ends when that edge says that it has no connection left, or with the edge. An edge that lost its
node says to the next one what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from ballpoint.core.clock import SYSTEM_CLOCK, Clock


@dataclass
class Lease:
    """One edge's on one instance.

    Attributes:
        number: of the last grant. An end that the edge told before it had heard of that one is none.
        what: the request that was granted last.
        since: when the first was.
    """

    number: int
    what: str
    since: datetime


class Leases:
    """All leases of one node, by the instance's socket and the edge that holds them."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._numbers = count(1)
        self._held: dict[str, dict[object, Lease]] = {}
        self._ended: dict[str, float] = {}

    def grant(self, edge: object, socket: str, what: str) -> int:
        """Let an edge hold an instance awake. Returns the grant's number, which it gives back with the end."""
        number = next(self._numbers)
        held = self._held.setdefault(socket, {})
        since = held[edge].since if edge in held else self._clock.now()
        held[edge] = Lease(number, what, since)
        return number

    def restate(self, edge: object, sockets: Iterable[str]) -> None:
        """An edge says to a new node what it holds. Their number is 0."""
        for socket in sockets:
            self._held.setdefault(socket, {}).setdefault(edge, Lease(0, "a connection from before", self._clock.now()))

    def end(self, edge: object, socket: str, number: int) -> None:
        """An edge has no connection to an instance any more, as far as it knew up to a grant."""
        lease = self._held.get(socket, {}).get(edge)
        if lease is not None and lease.number <= number:
            self._drop(edge, socket)

    def drop(self, edge: object) -> None:
        """An edge has gone, and its connections with it."""
        for socket in [socket for socket, held in self._held.items() if edge in held]:
            self._drop(edge, socket)

    def of(self, socket: str) -> list[Lease]:
        """Who holds an instance awake now."""
        return list(self._held.get(socket, {}).values())

    def ended_at(self, socket: str) -> float | None:
        """When the last lease on an instance ended, by the monotonic clock; None where there was none."""
        return self._ended.get(socket)

    def forget(self, socket: str) -> None:
        """An instance has ended."""
        self._held.pop(socket, None)
        self._ended.pop(socket, None)

    def _drop(self, edge: object, socket: str) -> None:
        held = self._held[socket]
        del held[edge]
        if not held:
            del self._held[socket]
            self._ended[socket] = self._clock.monotonic()
