"""Logs of services, written and read by helpers inside the sprite (helpers/svclog.c): the agent touches no file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ballpoint.agent.spawn_types import ServiceSpawner, SpawnError
from ballpoint.core.errors import UnavailableError

DIRECTORY = "/.sprite/logs/services"
BYTES_MAX = 10 << 20
READERS_MAX = 16
# What a helper may take to say a thing: the disk below may be slow.
_ANSWER_SECONDS = 10.0
_LINE_MAX = 64 * 1024
_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) \[(stdout|stderr)\] (.*)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One line that a service wrote.

    Attributes:
        moment: milliseconds since 1970.
        stream: `stdout` or `stderr`.
    """

    moment: int
    stream: str
    text: str


def path_of(name: str, directory: str = DIRECTORY) -> str:
    """Where a service's log is, inside."""
    return f"{directory}/{name}.log"


def parse_line(data: bytes, now: float) -> Line:
    """A line of a log; one that is not as they are written is taken as it stands."""
    found = _LINE.fullmatch(data)
    if found is not None:
        with suppress(ValueError):
            moment = datetime.fromisoformat(found[1].decode().replace("Z", "+00:00"))
            return Line(round(moment.timestamp() * 1000), found[2].decode(), found[3].decode("utf-8", "replace"))
    return Line(round(now * 1000), "stdout", data.decode("utf-8", "replace"))


def start_writer(spawner: ServiceSpawner, path: str, stdout: int, stderr: int) -> tuple[int, int]:
    """Have what comes by two pipes written: (pid, pidfd). Raises SpawnError."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        return spawner.start_log(("write", path, str(BYTES_MAX)), (stdout, null, stderr))
    finally:
        os.close(null)


class Reader:
    """Reads one log, from its last lines on, as long as it is wanted.

    Args:
        count: how many there are; one more than READERS_MAX is refused.
        lines: how many of those that are there; None is all.

    Raises:
        UnavailableError: there is no room for one more.
    """

    def __init__(self, spawner: ServiceSpawner, count: set[Reader], path: str, lines: int | None) -> None:
        if len(count) >= READERS_MAX:
            raise UnavailableError(f"{READERS_MAX} logs are being read already", hint="end some, or try again")
        self._spawner = spawner
        self._count = count
        self._marks: deque[asyncio.Event] = deque([asyncio.Event()])
        self._transport: asyncio.BaseTransport | None = None
        self._stream = asyncio.StreamReader(limit=_LINE_MAX)
        asked, self._ask = os.pipe2(os.O_CLOEXEC)
        self._told, theirs = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            arguments = ("read", path, "-1" if lines is None else str(lines))
            self._pid, self._pidfd = spawner.start_log(arguments, (asked, theirs, null))
        except (OSError, SpawnError) as error:
            os.close(self._ask)
            os.close(self._told)
            raise UnavailableError(f"the log cannot be read: {error}", hint="try again") from error
        finally:
            for fd in (asked, theirs, null):
                os.close(fd)
        count.add(self)
        self._listens = False
        self._lines = 0
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    async def lines(self) -> asyncio.StreamReader:
        """Begin to read."""
        protocol = asyncio.StreamReaderProtocol(self._stream)
        file = os.fdopen(self._told, "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        return self._stream

    async def next(self) -> bytes | None:
        """The next line of the file; None once there will be none."""
        while True:
            self._listens = True
            try:
                line = await self._stream.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                for mark in self._marks:
                    mark.set()
                return None
            self._listens = False
            self._lines += 1
            if line.startswith(b"="):
                return line[1:-1]
            if self._marks:
                self._marks.popleft().set()

    async def began(self) -> None:
        """Wait until all lines that were there have been given by `next`; not for ever for a helper that is silent."""
        await self._until(self._marks[0] if self._marks else None)

    async def catch_up(self) -> None:
        """As `began`, of the lines that are in the file now."""
        mark = asyncio.Event()
        try:
            os.write(self._ask, b"m")
        except OSError:  # the helper has ended
            return
        self._marks.append(mark)
        await self._until(mark)

    async def _until(self, mark: asyncio.Event | None) -> None:
        before = -1
        # Whoever takes the lines may be slow: that is no silence of the helper's.
        while mark is not None and not mark.is_set() and (before != self._lines or not self._listens):
            before = self._lines
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await mark.wait()

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._ask < 0:
            return
        os.close(self._ask)
        self._ask = -1
        if self._transport is not None:
            self._transport.close()
        else:
            os.close(self._told)
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._spawner.wait(self._pid, self._pidfd)
        self._spawner.reap(self._pid)
        os.close(self._pidfd)
        self._pidfd = -1
        self._count.discard(self)
