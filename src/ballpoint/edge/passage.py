"""Bodies on their way: what is received of one goes out at once, as it came and without another copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ballpoint.edge.hangup import hangups
from ballpoint.edge.head import Chunks, FramingError, Head
from ballpoint.edge.stream import Stream


class Framing(Protocol):
    """Says how much of what comes belongs to a body.

    Attributes:
        done: the body has ended.
    """

    done: bool

    def take(self, data: bytes) -> int:
        """How many bytes at the start of `data` belong to the body; all of them while it is not done."""
        ...


class _Length:
    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def take(self, data: bytes) -> int:
        used = min(len(data), self._left)
        self._left -= used
        self.done = self._left == 0
        return used


class _UntilEnd:
    done = False

    def take(self, data: bytes) -> int:
        return len(data)


class TargetLostError(ConnectionError):
    """Nobody is there any more to take a body."""


class Passage:
    """One body, from one connection to another, never faster than the other takes it.

    Args:
        head: the message's, which says how the body is framed.
        prefix: goes before it.
        on_done: called at its end: with None, FramingError, TargetLostError, or ConnectionResetError where it was cut
            short. Not called after `stop`.
        until_end: the end of the connection is that of the body, which has no other.
        bare: pass on what its chunks hold, without their framing.
        watched: a source that is held back, and sends no more, has cut it short.
        drops_trailers: what follows its last chunk is left out (RFC 9112 7.1.2), and not refused.
    """

    def __init__(
        self,
        source: Stream,
        target: Stream,
        head: Head,
        prefix: bytes,
        on_done: Callable[[Exception | None], None],
        *,
        until_end: bool = False,
        bare: bool = False,
        watched: bool = False,
        drops_trailers: bool = False,
    ) -> None:
        self._source = source
        self._target = target
        self._chunks = Chunks(keep=bare, drops_trailers=drops_trailers) if head.chunked else None
        self._framing: Framing = self._chunks or (_UntilEnd() if until_end else _Length(head.length or 0))
        self._until_end = until_end
        self._bare = bare
        self._prefix = prefix
        self._on_done = on_done
        self._watched = watched
        self._over = False

    def start(self) -> None:
        """Begin with what was read already."""
        source = self._source
        source.passage, self._target.source = self, self
        if source.buffer or self._framing.done:
            self.received(source.take(len(source.buffer)))
        if self._prefix:
            self._write(b"")
        if self._over:
            return
        if source.ended:
            self.source_ended()
        elif self._target.writable:
            source.go_on()
        else:
            self.hold()

    def stop(self) -> None:
        """Pass on no more. Idempotent."""
        if not self._over:
            self._over = True
            self._source.passage = self._target.source = None
            self._unwatch()

    # ---- told by the two connections ----

    def received(self, data: bytes) -> None:
        try:
            used = self._framing.take(data)
        except FramingError as error:
            self._end(error)
            return
        if used < len(data):
            self._source.unread(data[used:])
            data = data[:used]
        if self._chunks is not None:
            if self._bare:
                data = bytes(self._chunks.content)
                self._chunks.content.clear()
            elif self._chunks.withheld or self._chunks.dropped:
                data = data[: len(data) - self._chunks.withheld] + (b"\r\n" if self._chunks.done else b"")
        if data:
            self._write(data)
        if self._framing.done:
            self._end(None)

    def source_ended(self) -> None:
        self._end(None if self._until_end else ConnectionResetError("a body was cut short"))

    def target_lost(self) -> None:
        self._end(TargetLostError("nobody takes the body"))

    def hold(self) -> None:
        self._source.hold()
        if self._watched and not self._source.transport.is_closing():
            hangups().watch(self._source.transport, self._hung_up, half=True)

    def go_on(self) -> None:
        self._unwatch()
        self._source.go_on()

    def _hung_up(self, failed: bool) -> None:
        self.source_ended()

    def _unwatch(self) -> None:
        if self._watched:
            hangups().forget(self._source.transport)

    def _write(self, data: bytes) -> None:
        if self._prefix:
            data, self._prefix = self._prefix + data, b""
        self._target.write(data)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self.stop()
            self._on_done(error)
