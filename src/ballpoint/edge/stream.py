"""A connection to read from and write to, whose every received byte is accounted for.

asyncio's streams keep what they have read to themselves, so a connection that is handed to another protocol (a splice)
could lose bytes; here they are in `buffer`, and the end of the stream is in `ended`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Protocol, cast

from ballpoint.core.errors import UnavailableError
from ballpoint.edge.head import FramingError, find_end


class Taker(Protocol):
    """Takes what is received on a connection."""

    def received(self, data: bytes) -> None: ...

    def source_ended(self) -> None:
        """No more will come. May be said twice."""


class Source(Protocol):
    """Writes to a connection, as fast as it is taken."""

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def target_lost(self) -> None:
        """Nobody is there any more to take it."""


# Read ahead at most this much, then let the sender wait.
READ_AHEAD = 256 * 1024
_WRITE_HIGH_WATER = 512 * 1024
_RETRY_SECONDS = 0.02
CONNECT_SECONDS = 5.0
# More than any socket's buffer can hold (tcp(7), tcp_rmem): what it has when it fails is finite, what a server of a
# sprite goes on saying is not.
_REST_MAX = 8 << 20


class NotStartedError(UnavailableError):
    """The server certainly did not begin what it was asked, so another may be asked."""


class RefusedError(NotStartedError):
    """An agent says that it does not serve, and lives."""


class Stream(asyncio.Protocol):
    """One connection, read by one task at a time.

    Args:
        connected: called with the stream when the connection is made.

    Attributes:
        passage: takes what is received, instead of `buffer`; source: what is written here comes from it.
        on_end: called when no more will come, unless `passage` is.
        buffer: bytes received and not used yet.
        ended: no more will come.
        cut: the other side ended the connection before it had read all that was sent. Of a unix socket this is certain:
            unix_release_sock() resets a connection whose queue is not empty, and a write after it is EPIPE.
    """

    def __init__(self, connected: Callable[[Stream], None] | None = None) -> None:
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self.passage: Taker | None = None
        self.source: Source | None = None
        self.on_end: Callable[[], None] | None = None
        self.buffer = bytearray()
        self.ended = False
        self.cut = False
        self.transport: asyncio.Transport
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self.writable = True

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it
        self.transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        if self.passage is not None:
            self.passage.received(data)
        else:
            self.buffer += data
            if len(self.buffer) > READ_AHEAD:
                self.hold()
            settle(self._reader)

    def eof_received(self) -> bool:
        self._end()
        return True  # what is to be written may still be

    def _end(self) -> None:
        self.ended = True
        if self.passage is not None:
            self.passage.source_ended()
        elif self.on_end is not None:
            self.on_end()
        settle(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.ended:
            self.data_received(read_rest(self.transport))
        self.cut = isinstance(exc, (BrokenPipeError, ConnectionResetError))
        self._failure = exc or ConnectionResetError("the connection has ended")
        self.limit(None)
        self._end()
        if self.source is not None:
            self.source.target_lost()
        settle(self._writer)

    def pause_writing(self) -> None:
        self.writable = False
        if self.source is not None:
            self.source.hold()

    def resume_writing(self) -> None:
        self.writable = True
        if self.source is not None:
            self.source.go_on()
        settle(self._writer)

    # ---- reading ----

    def hold(self) -> None:
        """Take no more from the peer."""
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Take from the peer again, unless too much is there already."""
        if not self._reading and len(self.buffer) <= READ_AHEAD and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def limit(self, seconds: float | None) -> None:
        """From now on, whoever waits for data gets a TimeoutError when `seconds` have passed; None is never."""
        if self._timer is not None:
            self._timer.cancel()
        self._late = False
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._late = True
        settle(self._reader)

    async def fill(self) -> bool:
        """Wait for more than `buffer` has now. Returns False at the end.

        Raises:
            TimeoutError: the limit has passed.
        """
        had = len(self.buffer)
        self.go_on()
        while len(self.buffer) == had and not self.ended:
            if self._late:
                raise TimeoutError
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return len(self.buffer) > had

    async def head(self) -> bytes | None:
        """The next head, or None where the connection ended before its first byte.

        Raises:
            FramingError: it is not one, or ended half-way.
            TimeoutError: the limit has passed.
        """
        while (end := find_end(self.buffer)) < 0:
            if not await self.fill():
                if self.buffer:
                    raise FramingError("the connection ended in a header")
                return None
        return self.take(end)

    def take(self, limit: int) -> bytes:
        """Up to `limit` bytes that are there."""
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was taken last."""
        self.buffer[:0] = data

    # ---- writing ----

    def write(self, data: bytes) -> None:
        """Send; what cannot be sent any more is dropped, and `drain` says so."""
        if self._failure is None and not self.transport.is_closing():
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer takes more. ConnectionError where it is gone."""
        while not self.writable and self._failure is None:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._failure is not None:
            raise ConnectionResetError("the peer has gone") from self._failure

    async def linger(self, seconds: float) -> None:
        """Send no more, and drop what still comes, until the peer ends the connection or `seconds` have passed.

        A connection that is closed with bytes unread is reset (RFC 9112 9.6), and the reset can reach the peer before
        it has read its answer.
        """
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        self.limit(seconds)
        with suppress(TimeoutError):
            self.buffer.clear()
            while await self.fill():
                self.buffer.clear()

    def close(self) -> None:
        """End the connection once what was written has gone out."""
        self.transport.close()

    def drop(self) -> None:
        """End the connection now, as nobody wants what it has not taken."""
        # Closing flushes first, for ever if need be.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def reset(self) -> None:
        """End the connection so that its peer takes this for a failure."""
        # socket(7): closed with a linger time of zero, a TCP connection is reset.
        self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def settle(waiter: asyncio.Future[None] | None) -> None:
    """Let whoever waits go on. Idempotent."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def read_rest(transport: asyncio.Transport) -> bytes:
    """What was received on a connection that is being lost and has not been read.

    A write that fails ends a transport at once, though its peer may have said something before it went away.
    """
    rest = b""
    with suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as copy:
        # Nothing more is there, or the connection was reset. It may block, if another holds it (see SharedTransport).
        while len(rest) < _REST_MAX and (data := copy.recv(READ_AHEAD, socket.MSG_DONTWAIT)):
            rest += data
    return rest


async def open_unix(path: Path, seconds: float) -> socket.socket:
    """A connected unix socket that does not block. NotStartedError where nobody accepts within `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(path))
            return sock
        except BlockingIOError as error:  # unix(7): its backlog is full, and nobody tells when it is not any more
            sock.close()
            if loop.time() > deadline:
                raise NotStartedError("the server accepts no connection", hint="try again") from error
        except OSError as error:
            sock.close()
            raise NotStartedError("the server does not answer", hint="try again") from error
        retry = loop.create_future()
        timer = loop.call_later(_RETRY_SECONDS, settle, retry)
        try:
            await retry
        finally:
            timer.cancel()


async def connect(path: Path, seconds: float) -> Stream:
    """A connection to a unix socket. NotStartedError where nobody accepts within `seconds`."""
    sock = await open_unix(path, seconds)
    try:
        _, stream = await asyncio.get_running_loop().create_unix_connection(Stream, sock=sock)
    except OSError as error:
        sock.close()
        raise NotStartedError("the server does not answer", hint="try again") from error
    return stream
