"""Connections to servers that wait for the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from ballpoint.edge.stream import Stream

_MOST = 512


class Kept:
    """Idle connections, by what they lead to.

    Args:
        seconds: one that waited so long ends.
        each: most of one key.
    """

    def __init__(self, seconds: float, each: int) -> None:
        self._seconds = seconds
        self._each = each
        # When each was given, and the oldest first.
        self._idle: dict[Hashable, dict[Stream, float]] = {}
        self._count = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, key: Hashable) -> Stream | None:
        """One that has said nothing since it was given back, and has not ended; the one that was used last."""
        while idle := self._idle.get(key):
            stream = next(reversed(idle))
            late = self._loop.time() - idle[stream] > self._seconds
            self._drop(key, stream)
            # Bytes on an idle connection answer nothing that was asked.
            if not (late or stream.ended or stream.buffer or stream.transport.is_closing()):
                return stream
            stream.close()
        return None

    def give(self, key: Hashable, stream: Stream) -> bool:
        """Keep a connection that is at the end of an answer. Returns whether it does: it is its from then on."""
        idle = self._idle.setdefault(key, {})
        over = stream.buffer or stream.ended or stream.transport.is_closing()
        if self._closed or over or len(idle) >= self._each or self._count >= _MOST:
            if not idle:
                del self._idle[key]
            return False
        self._count += 1
        idle[stream] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._end_old)
        stream.on_end = lambda: self._end(key, stream)
        stream.go_on()
        return True

    def close(self) -> None:
        """End them all, and keep no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for key, idle in list(self._idle.items()):
            for stream in list(idle):
                self._end(key, stream)

    def _end_old(self) -> None:
        """One timer for all: who is used again and again needs none of his own."""
        self._timer = None
        before = self._loop.time() - self._seconds
        for key, idle in list(self._idle.items()):
            for stream in [stream for stream, since in idle.items() if since <= before]:
                self._end(key, stream)
        if self._idle:
            oldest = min(next(iter(idle.values())) for idle in self._idle.values())
            self._timer = self._loop.call_later(max(0.0, oldest - before), self._end_old)

    def _end(self, key: Hashable, stream: Stream) -> None:
        if stream in self._idle.get(key, ()):
            self._drop(key, stream)
            stream.close()

    def _drop(self, key: Hashable, stream: Stream) -> None:
        idle = self._idle[key]
        del idle[stream]
        stream.on_end = None
        self._count -= 1
        if not idle:
            del self._idle[key]
