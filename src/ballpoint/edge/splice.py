"""Two connections joined to the end: bytes pass both ways, with back-pressure, and nobody looks at them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ballpoint.edge.stream import Stream, read_rest

_HIGH_WATER = 1 << 20
_LINGER_SECONDS = 10.0


class _Side(asyncio.Protocol):
    """One of the two connections.

    Attributes:
        lost: done once the connection has ended.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
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
        self.other.finish()
        return True  # the other direction may go on

    def finish(self) -> None:
        """Tell the peer that no more will come."""
        if not self._told and not self.transport.is_closing() and self.transport.can_write_eof():
            self._told = True
            self.transport.write_eof()

    def pause_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._finished and not self.other.lost.done():
            self.other.transport.write(read_rest(self.transport))
        if not self.lost.done():
            self.lost.set_result(None)


async def splice(client: Stream, server: Stream) -> None:
    """Join two streams until either connection ends; then both have ended. What they had read already goes first."""
    ours, theirs = _Side(client.transport), _Side(server.transport)
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
                side.connection_lost(None)
                continue
            side.transport.resume_reading()
            if stream.ended:
                side.eof_received()
        await asyncio.wait({ours.lost, theirs.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not ours.lost.done():
            # A client that still sends must not lose the last of the output to a reset (see Stream.linger).
            ours.finish()
            if not ours.transport.is_closing():
                ours.transport.resume_reading()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await ours.lost
    finally:
        client.close()
        server.close()
