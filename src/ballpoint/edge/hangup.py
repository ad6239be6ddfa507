"""Word of connections that end while nothing is read from them."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

# Who is held back is so for a moment, as a rule, and then not worth three system calls.
_AFTER_SECONDS = 0.2


class Hangups:
    """An event loop that reads nothing from a connection sees no end of it; epoll(7) reports a hang-up unasked.

    Each connection is watched through a copy of its descriptor, as the loop closes its own whenever it likes.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._soon: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._copies: dict[asyncio.Transport, int] = {}
        self._watched: dict[int, tuple[asyncio.Transport, Callable[[bool], None]]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, transport: asyncio.Transport, gone: Callable[[bool], None], *, half: bool = False) -> None:
        """Say, once and not at once, that a connection has ended. Whoever calls this calls `forget` when it is lost.

        Args:
            gone: is called with whether it failed, as a TCP connection does that is reset. One that did not is over in
                both directions, and what was received may still be read.
            half: it is enough that the peer sends no more.
        """
        if transport not in self._soon and transport not in self._copies:
            self._soon[transport] = self._loop.call_later(_AFTER_SECONDS, self._register, transport, gone, half)

    def _register(self, transport: asyncio.Transport, gone: Callable[[bool], None], half: bool) -> None:
        del self._soon[transport]
        if not transport.is_closing():
            copy = os.dup(transport.get_extra_info("socket").fileno())
            self._copies[transport] = copy
            self._watched[copy] = transport, gone
            self._epoll.register(copy, select.EPOLLRDHUP if half else 0)

    def forget(self, transport: asyncio.Transport) -> None:
        """Watch it no more. Idempotent."""
        soon = self._soon.pop(transport, None)
        if soon is not None:
            soon.cancel()
        copy = self._copies.pop(transport, None)
        if copy is not None:
            del self._watched[copy]
            self._epoll.unregister(copy)
            os.close(copy)

    def _ready(self) -> None:
        for copy, events in self._epoll.poll(0):
            if copy in self._watched:  # not forgotten since, because of another
                transport, gone = self._watched[copy]
                self.forget(transport)
                gone(bool(events & select.EPOLLERR))


_hangups: Hangups | None = None


def hangups() -> Hangups:
    """Those of this process's one event loop."""
    global _hangups  # noqa: PLW0603
    if _hangups is None:
        _hangups = Hangups()
    return _hangups
