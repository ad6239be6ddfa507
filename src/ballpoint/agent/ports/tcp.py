"""A TCP connection in the event loop: read in large pieces, written without copies, and ended without loss."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

_READ = 256 * 1024
_PIECES = 256  # IOV_MAX is 1024
# Of a peer that takes nothing for so long, what waits for it is dropped.
_STALL_SECONDS = 10.0
_DRAIN_SECONDS = 1.0


class Tcp:
    """One connection, which it owns.

    Args:
        on_data: gets what is read; False asks to read no more until `read` is called.
        on_end: the peer says no more: None, or why the connection was cut.
        on_room: all that was written has gone out.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_data: Callable[[bytes], bool],
        on_end: Callable[[OSError | None], None],
        on_room: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._on_data = on_data
        self._on_end = on_end
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._pending: deque[bytes | memoryview] = deque()
        self._reading = self._writing = self._mute = self._finishing = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.unsent = 0

    def read(self, wanted: bool) -> None:
        """Read from now on, or read no more."""
        if self._closed or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._fd, self._read)
        else:
            self._loop.remove_reader(self._fd)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send; what the peer does not take now waits (`unsent`). Of a peer that has gone, nothing is sent or said."""
        if self._closed or self._finishing or self._mute:
            return
        self._pending.extend(pieces)
        self.unsent += sum(map(len, pieces))
        if not self._writing:
            self._flush()

    def end_output(self) -> None:
        """Tell the peer, which may go on speaking, that no more will come after what was written; idempotent."""
        if self._mute or self._finishing or self._closed:
            return
        self._mute = True
        if not self._writing:
            self._flush()

    def finish(self) -> None:
        """Say no more, and close once what was written has been taken; idempotent.

        Nobody is called any more. What the peer still says is read and dropped meanwhile: a connection that is closed
        with input unread is reset, which takes along what is still on its way (RFC 2525 2.17).
        """
        if self._closed or self._finishing:
            return
        self._finishing = True
        self.read(True)
        if self._writing:
            self._wait(self.unsent)
        else:
            self._shut()

    def close(self) -> None:
        """End it at once; idempotent."""
        if self._closed:
            return
        self.read(False)
        self._write_on(False)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._pending.clear()
        self.unsent = 0
        self._sock.close()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(error)
            return
        if not data:
            self._ended(None)
        elif not self._finishing and not self._on_data(data):
            self.read(False)

    def _ended(self, error: OSError | None) -> None:
        self.read(False)
        if not self._finishing:
            self._on_end(error)
        elif error is not None or not self._writing:
            self.close()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._sent(os.writev(self._fd, list(islice(self._pending, _PIECES))))
        except BlockingIOError:
            self._write_on(True)
            return
        except OSError:  # it has gone; what it said last is still to be read, and then its end
            self._pending.clear()
            self.unsent = 0
        self._write_on(False)
        if self._finishing:
            self._shut()
            return
        if self._mute:
            with suppress(OSError):  # ENOTCONN: it was reset, which is read
                self._sock.shutdown(socket.SHUT_WR)
        self._on_room()

    def _sent(self, count: int) -> None:
        self.unsent -= count
        while count:
            piece = self._pending.popleft()
            if count < len(piece):
                self._pending.appendleft(memoryview(piece)[count:])
                return
            count -= len(piece)

    def _write_on(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)

    def _wait(self, unsent: int) -> None:
        """Look again whether a peer that is to take the rest has taken some of it."""

        def look() -> None:
            if self.unsent == unsent:
                self.close()
            else:
                self._wait(self.unsent)

        self._timer = self._loop.call_later(_STALL_SECONDS, look)

    def _shut(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._reading:  # the peer has said its last, too
            self.close()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # ENOTCONN: it was reset
            self.close()
        else:
            self._timer = self._loop.call_later(_DRAIN_SECONDS, self.close)
