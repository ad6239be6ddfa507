"""Two connections joined to the end: bytes pass both ways, with back-pressure, and nobody looks at them."""

from __future__ import annotations

import asyncio

from ballpoint.edge.hangup import hangups
from ballpoint.edge.stream import Stream, read_rest

_HIGH_WATER = 1 << 20
_LINGER_SECONDS = 10.0
# A peer that takes nothing for so many of them gets no more.
_STALLS = 6


class _Side(asyncio.Protocol):
    """One of the two connections.

    Args:
        heard: what it said is delivered although it has failed. Of a server this is an ordinary end: it closes with
            input unread, which resets a unix socket, and makes a write fail before its last words were read.

    Attributes:
        lost: done once the connection has ended.
    """

    def __init__(self, transport: asyncio.Transport, *, heard: bool) -> None:
        self.transport = transport
        self._heard = heard
        self.other: _Side
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finished = False
        self._told = False

    def data_received(self, data: bytes) -> None:
        if not self.other.lost.done():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._finished = True
        if self.other._finished or self.other.lost.done():
            self.transport.close()  # neither says any more
            return False
        self._watch()
        self.other.finish()
        return True  # the other direction may go on

    def finish(self) -> None:
        """Tell the peer that no more will come."""
        if not self._told and not self.transport.is_closing() and self.transport.can_write_eof():
            self._told = True
            self.transport.write_eof()

    def pause_writing(self) -> None:
        self.other.pause()

    def resume_writing(self) -> None:
        self.other.resume()

    def pause(self) -> None:
        """Take no more from the peer."""
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self._watch()

    def resume(self) -> None:
        """Take from the peer again."""
        if not self.transport.is_closing():
            if not self._finished:
                self._unwatch()
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        if exc is not None:
            self._pass_rest()
        self.gone(vanished=exc is not None)

    def gone(self, *, vanished: bool) -> None:
        """The connection has ended: `vanished`, or as agreed."""
        if vanished and not self._heard:
            self.other.transport.abort()  # a flush could wait for ever, for nobody
        if not self.lost.done():
            self.lost.set_result(None)

    def _watch(self) -> None:
        hangups().watch(self.transport, self._hung_up)

    def _unwatch(self) -> None:
        hangups().forget(self.transport)

    def _hung_up(self, failed: bool) -> None:
        if not (failed or self._heard):
            return  # both have finished; its last words are still to be read
        self._pass_rest()
        self.transport.abort()
        if not self._heard:
            self.other.transport.abort()

    def _pass_rest(self) -> None:
        if not self._finished and not self.other.lost.done():
            self.other.transport.write(read_rest(self.transport))


async def splice(client: Stream, server: Stream) -> None:
    """Join two streams until either connection ends; then both have ended. What they had read already goes first."""
    ours, theirs = _Side(client.transport, heard=False), _Side(server.transport, heard=True)
    ours.other, theirs.other = theirs, ours
    # Nothing is received between these lines, so nothing falls between the old protocol and the new.
    for side, stream in ((ours, client), (theirs, server)):
        side.transport.set_write_buffer_limits(high=_HIGH_WATER)
        side.transport.set_protocol(side)
        side.other.transport.write(bytes(stream.buffer))
        stream.buffer.clear()
    try:
        for side, stream in ((ours, client), (theirs, server)):
            if side.transport.is_closing():
                side.gone(vanished=True)
                continue
            side.resume()
            if stream.ended:
                side.eof_received()
        await asyncio.wait({ours.lost, theirs.lost}, return_when=asyncio.FIRST_COMPLETED)
        await _last_words(theirs if ours.lost.done() else ours)
    finally:
        # Closing flushes first, for ever if need be; what was not taken until now is not taken any more.
        for stream in (client, server):
            if stream.transport.get_write_buffer_size():
                stream.abort()
            else:
                stream.close()


async def _last_words(side: _Side) -> None:
    """Let a peer whose other side has ended take all that was said, as long as it takes some of it.

    A client that still sends must not lose it to a reset (see Stream.linger).
    """
    side.finish()
    side.resume()
    stalls = 0
    while not side.lost.done():
        before = side.transport.get_write_buffer_size()
        await asyncio.wait({side.lost}, timeout=_LINGER_SECONDS)
        left = side.transport.get_write_buffer_size()
        stalls = stalls + 1 if left == before else 0
        if stalls and (not left or stalls == _STALLS):
            return
