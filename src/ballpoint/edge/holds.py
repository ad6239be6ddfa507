"""What this edge keeps awake: the node is told when no connection is left, and the next node which ones there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# A sprite may idle for much longer; of requests one after the other the node hears little.
_LINGER_SECONDS = 1.0


class Holds:
    """Counts connections to each agent's socket.

    Args:
        notify: tells the node; what is said while there is none is lost, and `held` says it anew.
    """

    def __init__(self, notify: Callable[[dict[str, Any]], None]) -> None:
        self._notify = notify
        self._connections: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        # When the last connection ended, of those that have none; each has one timer, however often that happens.
        self._idle_since: dict[str, float] = {}
        self._timers: set[str] = set()

    def take(self, socket: str, number: int) -> None:
        """The node has named a socket, with the number of its grant; a connection to it is about to be made."""
        self._connections[socket] = self._connections.get(socket, 0) + 1
        self._numbers[socket] = max(number, self._numbers.get(socket, 0))

    def release(self, socket: str) -> None:
        """That connection has ended."""
        self._connections[socket] -= 1
        if not self._connections[socket]:
            self._idle_since[socket] = self._loop.time()
            if socket not in self._timers:
                self._timers.add(socket)
                self._loop.call_later(_LINGER_SECONDS, self._end, socket)

    def holding(self, socket: str) -> bool:
        """Whether the node has not been told of its end."""
        return socket in self._connections

    def held(self) -> dict[str, Any]:
        """What a node must hear that has just been started; it begins to number anew."""
        self._numbers = dict.fromkeys(self._connections, 0)
        return {"notice": "held", "sockets": list(self._connections)}

    def _end(self, socket: str) -> None:
        self._timers.discard(socket)
        if self._connections[socket]:
            return  # its end starts another
        left = self._idle_since[socket] + _LINGER_SECONDS - self._loop.time()
        if left > 0:
            self._timers.add(socket)
            self._loop.call_later(left, self._end, socket)
            return
        del self._connections[socket], self._idle_since[socket]
        self._notify({"notice": "released", "socket": socket, "lease": self._numbers.pop(socket)})
