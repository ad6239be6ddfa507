"""Two connections joined to the end: bytes pass both ways, with back-pressure, and nobody looks at them."""

from __future__ import annotations

import asyncio

_HIGH_WATER = 1 << 20


class _Side(asyncio.Protocol):
    def __init__(self, ended: asyncio.Future[None]) -> None:
        self._ended = ended
        self.transport: asyncio.Transport
        self.other: _Side

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
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
        if not self._ended.done():
            self._ended.set_result(None)


async def splice(first: asyncio.Transport, second: asyncio.Transport) -> None:
    """Join two transports until either connection ends; then both have ended."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sides = (_Side(ended), _Side(ended))
    for side, other, transport in zip(sides, reversed(sides), (first, second), strict=True):
        side.transport, side.other = transport, other
        transport.set_write_buffer_limits(high=_HIGH_WATER)
    for side in sides:
        side.transport.set_protocol(side)
        side.transport.resume_reading()
        if side.transport.is_closing():
            side.connection_lost(None)
    await ended
