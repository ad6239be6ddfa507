"""A session's frames over HTTP (contract 2.2): a type byte and a payload, one in each chunk.

Their edges are visible nowhere else, and official clients take for a frame whatever one read gives them: chunks that
come together are joined, and one that is larger than a read is torn. So chunks are small, and each goes out some time
after the one before: that is all that can be done from here. Of much output only the beginning goes so slowly; whoever
wants much output uses a WebSocket.
"""

from __future__ import annotations

import asyncio

from ballpoint.agent.server import Connection
from ballpoint.agent.sessions.frames import EXIT, PAYLOAD_MAX, error_lines
from ballpoint.agent.sessions.session import STDERR, Session

# With what is around it, it fits a TLS record (16 KiB; RFC 8446, 5.1), which a client's library gives as one read.
_SLOW_PAYLOAD_MAX = 16_000
_SLOW_FRAMES = 64
# Of 300 times `echo`, Node.js took the end for output 137 times without a pause. With this one, on two busy processors,
# 1 to 3 times, and 18 times at worst.
_PAUSE_SECONDS = 0.01
_PENDING_MAX = 256 * 1024


class HttpViewer:
    """A viewer whose frames go over HTTP.

    Attributes:
        session: what is viewed; None before, after its exit, and where it could not be started.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.session: Session | None = None
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, bytearray] = {}  # by stream, the next one first
        self._code: int | None = None
        self._slow_frames = _SLOW_FRAMES
        self._next_at = self._loop.time()
        self._pause: asyncio.TimerHandle | None = None
        self._full = False
        connection.start_response(
            200,
            {"content-type": "application/octet-stream", "transfer-encoding": "chunked", "connection": "close"},
        )

    def refused(self, message: str, code: int) -> None:
        """As `WebSocketViewer.refused`."""
        self.output(STDERR, error_lines(message))
        self.exited(code)

    # ---- Viewer ----

    def output(self, stream: int, data: bytes) -> bool:
        self._pending.setdefault(stream, bytearray()).extend(data)
        self._send()
        self._full = not self._has_room()
        return not self._full

    def skipped(self, stream: int, start: int, end: int) -> None:
        raise AssertionError("a creator is never behind")

    def exited(self, code: int) -> None:
        self.session = None
        self._code = code
        self._send()

    def pause_input(self, paused: bool) -> None:
        self._connection.pause_reading(paused)

    # ---- server.Handler ----

    def data(self, data: bytes) -> None:
        if self.session is not None:
            self.session.write(data)

    def end(self) -> None:
        if self.session is not None:
            self.session.end_input()

    def writable(self) -> None:
        self._send()
        self._ask_for_more()

    def lost(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._pending.clear()
        if self.session is not None:
            self.session.detach(self)

    # ---- the chunks ----

    def _has_room(self) -> bool:
        return sum(map(len, self._pending.values())) <= _PENDING_MAX and self._connection.writable

    def _ask_for_more(self) -> None:
        if self._full and self._has_room() and self.session is not None:
            self._full = False
            self.session.resume(self)

    def _send(self) -> None:
        """Send what it is time for and the client takes."""
        while self._pause is None and self._connection.writable and (self._pending or self._code is not None):
            early = self._next_at - self._loop.time()
            if early > 0 and (self._slow_frames or not self._pending):
                self._pause = self._loop.call_later(early, self._go_on)
            elif self._pending:
                self._send_output()
            else:
                self._send_exit()

    def _go_on(self) -> None:
        self._pause = None
        self._send()
        self._ask_for_more()

    def _send_output(self) -> None:
        stream = next(iter(self._pending))
        data = self._pending.pop(stream)
        size = _SLOW_PAYLOAD_MAX if self._slow_frames else PAYLOAD_MAX
        piece = bytes(data[:size])
        del data[:size]
        if data:
            self._pending[stream] = data
        self._connection.send(b"%x\r\n" % (1 + len(piece)), bytes((stream,)), piece, b"\r\n")
        self._slow_frames = max(0, self._slow_frames - 1)
        self._next_at = self._loop.time() + _PAUSE_SECONDS

    def _send_exit(self) -> None:
        assert self._code is not None
        self._connection.send(b"2\r\n", bytes((EXIT, self._code & 0xFF)), b"\r\n0\r\n\r\n")
        self._code = None
        self._connection.close()
