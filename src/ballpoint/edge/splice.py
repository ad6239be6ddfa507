"""Two connections joined to the end: bytes pass both ways, with back-pressure, and nobody looks at them."""

from __future__ import annotations

import asyncio

from ballpoint.edge.stream import Stream

_HIGH_WATER = 1 << 20


class _Side(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport, joined: asyncio.Future[None]) -> None:
        self.transport = transport
        self.other: _Side
        self._joined = joined
        self._finished = False

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._finished = True
        if self.other._finished:
            self.transport.close()  # neither says any more: both connections end
            return False
        if not self.other.transport.is_closing() and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.other.transport.close()
        if not self._joined.done():
            self._joined.set_result(None)


async def splice(first: Stream, second: Stream) -> None:
    """Join two streams until either connection ends; then both have ended. What they had read already goes first."""
    joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sides = (_Side(first.transport, joined), _Side(second.transport, joined))
    sides[0].other, sides[1].other = sides[1], sides[0]
    # Nothing is received between these lines, so nothing falls between the old protocol and the new.
    for side, stream in zip(sides, (first, second), strict=True):
        side.transport.set_write_buffer_limits(high=_HIGH_WATER)
        side.transport.set_protocol(side)
        side.other.transport.write(bytes(stream.buffer))
        stream.buffer.clear()
    for side, stream in zip(sides, (first, second), strict=True):
        if side.transport.is_closing():
            side.connection_lost(None)
            continue
        side.transport.resume_reading()
        if stream.ended:
            side.eof_received()
    await joined
