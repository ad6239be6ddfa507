"""What the agent hears of its container beside its sessions: its console, and that the kernel ended processes of it."""

from __future__ import annotations

import asyncio
import os
import re
import select

from ballpoint.agent.ringlog import LINE, Ring, lines
from ballpoint.core.clock import SYSTEM_CLOCK, Clock

# A container may write without end: at most this much of it is read at once, and then nothing for this long.
_CHUNK = 16 * 1024
_CONSOLE_PAUSE_SECONDS = 0.05
# Also the time after a notice of v1, which comes before the kernel's choice, until the counter tells of it.
_MEMORY_PAUSE_SECONDS = 0.25
_COUNTER_MAX = 4096
_OOM_KILL = re.compile(rb"^oom_kill ([0-9]+)$", re.MULTILINE)
_EVENTFD_SIZE = 8


class Console:
    """/dev/console: a FIFO, whose lines become lines of the log.

    Args:
        fd: its reading end, not blocking, open for writing as well, or it would end with its last writer.
        ring: where to.
    """

    def __init__(self, fd: int, ring: Ring, clock: Clock = SYSTEM_CLOCK) -> None:
        self._fd = fd
        self._ring = ring
        self._clock = clock
        self._begun = b""
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._listen()

    def close(self) -> None:
        """The container has ended: log what is left, and read no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        while self._read():
            pass
        if self._begun:
            self._write(self._begun)
        self._begun = b""

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._fd)
        self._read()
        self._pause = self._loop.call_later(_CONSOLE_PAUSE_SECONDS, self._listen)

    def _read(self) -> bool:
        """Take a piece; False where there is none. Somebody inside may read it, too, and be first."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        whole, newline, self._begun = (self._begun + data).rpartition(b"\n")
        if newline:
            self._write(whole)
        if len(self._begun) >= LINE:
            self._write(self._begun)
            self._begun = b""
        return True

    def _write(self, data: bytes) -> None:
        text = data.replace(b"\r\n", b"\n").removesuffix(b"\r").decode(errors="backslashreplace")
        self._ring.write(lines(self._clock.now(), "console", text))


class MemoryWatch:
    """Logs that the kernel ended processes of the container, because its memory was used up.

    Args:
        counter: memory.events (v2) or memory.oom_control (v1); both have a line `oom_kill N`.
        event: eventfd of v1; None with v2, whose counter itself says that it has changed (POLLPRI).
        ring: where to.
    """

    def __init__(self, counter: int, event: int | None, ring: Ring, clock: Clock = SYSTEM_CLOCK) -> None:
        self._counter = counter
        self._event = event
        self._ring = ring
        self._clock = clock
        self._told = self._count()
        # An event loop asks for POLLIN only, which these files always have.
        self._poll = select.epoll()
        self._poll.register(counter if event is None else event, select.EPOLLPRI if event is None else select.EPOLLIN)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._poll.fileno(), self._changed)

    def _changed(self) -> None:
        self._loop.remove_reader(self._poll.fileno())
        self._pause = self._loop.call_later(_MEMORY_PAUSE_SECONDS, self._look)

    def _look(self) -> None:
        if self._event is not None:
            os.read(self._event, _EVENTFD_SIZE)
        self._tell()
        self._listen()

    def close(self) -> None:
        """The container has ended: log what was not told yet, and watch no more."""
        if self._pause is not None:
            self._pause.cancel()
        if not self._poll.closed:
            self._loop.remove_reader(self._poll.fileno())
            self._poll.close()
        self._tell()

    def _tell(self) -> None:
        """Log what happened since it was last told, if anything did."""
        count = self._count()
        if count > self._told:
            ended = f"{count - self._told} process{'es' if count - self._told > 1 else ''}"
            text = f"out of memory: the kernel ended {ended} of the sprite ({count} since it started)"
            self._ring.write(lines(self._clock.now(), "memory", text))
            self._told = count

    def _count(self) -> int:
        found = _OOM_KILL.search(os.pread(self._counter, _COUNTER_MAX, 0))
        return int(found[1]) if found else 0
