"""A connection whose socket somebody else may hold, too, and who that is must not be trusted.

A socket that an agent handed over has one file description for both, and so has O_NONBLOCK (fcntl(2)): who keeps a
copy can clear it at any moment, and could then read away what made it readable. A transport of the event loop would
wait in read(2) or write(2) for ever, and with it everybody else's connections. Here each call says for itself that it
does not wait (MSG_DONTWAIT).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any

# As much as uvloop reads at once.
_READ = 256_000
_buffer = memoryview(bytearray(_READ))  # of the one event loop; what was read is copied out of it at once
# struct linger: whether close(2) waits until all is sent, and how many seconds; a wait of none is a reset.
_AS_USUAL, _AT_ONCE = struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)
_NOT_WAITING = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class SharedTransport(asyncio.Transport):
    """A transport over a connected stream socket, which is its own copy from now on."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock})
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol: asyncio.Protocol = protocol
        self._unsent: deque[memoryview] = deque()
        self._size = 0
        self._high, self._low = 1 << 16, 1 << 14
        self._held = False  # the protocol
        self._much = False  # was read last: then it is worth an allocation of all that may come, and no copy
        self._reading = False
        self._writing = False  # what could not be sent at once
        self._closing = False
        self._ends = False  # no more is to be written
        self._lost = False
        self._linger = _AS_USUAL
        protocol.connection_made(self)
        self.resume_reading()

    # ---- asyncio.Transport ----

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 1 << 16 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._ends and not self._closing:
            self._ends = True
            if not self._unsent:
                self._shut_down()

    def write(self, data: Any) -> None:
        if self._closing or self._ends or not data:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._sock.send(data, _NOT_WAITING)
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                return
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)
        rest = memoryview(data)[sent:]
        self._unsent.append(rest)
        self._size += len(rest)
        if self._size > self._high and not self._held:
            self._held = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if not self._unsent:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        # What was not taken would hold back the end behind it; a reset goes at once (tcp(7), SO_LINGER of zero).
        self._linger = _AT_ONCE
        self._fail(None)

    # ---- told by the event loop ----

    def _readable(self) -> None:
        try:
            if self._much:
                data = self._sock.recv(_READ, socket.MSG_DONTWAIT)
            else:
                data = bytes(_buffer[: self._sock.recv_into(_buffer, _READ, socket.MSG_DONTWAIT)])
        except BlockingIOError:
            self._woken_for_nothing()
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._much = len(data) > _READ // 2
            self._protocol.data_received(data)
            return
        self.pause_reading()
        if not self._protocol.eof_received():
            self.close()

    def _writable(self) -> None:
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._sock.send(first, _NOT_WAITING)
                self._size -= sent
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                    break
                self._unsent.popleft()
        except BlockingIOError:
            self._woken_for_nothing()
        except OSError as error:
            self._fail(error)
            return
        if not self._unsent and self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._lose(None)
                return
            if self._ends:
                self._shut_down()
        if self._held and self._size <= self._low:
            self._held = False
            self._protocol.resume_writing()

    def _woken_for_nothing(self) -> None:
        """A queue of errors, which its other holder can ask for (socket(7), SO_TIMESTAMPING), wakes again and again."""
        try:
            self._sock.recvmsg(1, 0, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        self._fail(ConnectionAbortedError("the socket reports errors that nobody asked for"))

    # ---- the end ----

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError | None) -> None:
        """End at once. The protocol is told later, as it may be in the midst of a write."""
        if self._lost:
            return
        self._closing = True
        self.pause_reading()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._size = 0
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = True
        try:
            self._protocol.connection_lost(error)
        finally:
            # socket(7): with SO_LINGER, which its other holder may have set, close(2) waits.
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, self._linger)
            finally:
                self._sock.close()
