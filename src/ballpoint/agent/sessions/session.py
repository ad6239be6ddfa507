"""A session: a process of the inner container with its streams, and who watches it.

Its output goes into a journal first, and from there to its viewers. Its creator, as long as he is connected, holds the
process back; nobody else does.

The rules of exit: once the end of the process is known, what it wrote before is delivered, then the exit, once; after
that the streams are read to their end and dropped, so that children it left behind neither block nor get SIGPIPE.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ballpoint.agent.sessions.journal import STREAMS, Journal
from ballpoint.agent.sessions.rate import Rate
from ballpoint.agent.sessions.viewers import Follower, Viewer
from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339

if TYPE_CHECKING:
    from ballpoint.agent.sessions.sessions import Sessions

log = logging.getLogger("agent.session")

STDOUT, STDERR = 1, 2
# One read of a pipe. A turn of the loop, and of the edge and the client after it, costs as much as copying some tens of
# KiB; more than this would make other sessions wait.
_READ = 256 * 1024
PIPE_SIZE = 1 << 20  # /proc/sys/fs/pipe-max-size by default
_FEED = 64 * 1024
_STDIN_HIGH_WATER = 256 * 1024
_KILL_AFTER_SECONDS = 5.0
_SCROLLBACK = 64 * 1024


def key_of(pid: int, created: float) -> str:
    """Names a session: a pid alone may come again while children of its former bearer still write."""
    return f"s{pid}-{round(created * 1000)}"


@dataclass(frozen=True)
class Command:
    """What a client asked to run.

    Attributes:
        argv: with argv[0]; empty runs a shell.
        max_run: seconds it may go on without a client; None is for ever.
    """

    argv: tuple[str, ...]
    path: str | None
    env: dict[str, str]
    directory: str | None
    tty: bool
    rows: int
    cols: int
    stdin: bool
    max_run: float | None

    @property
    def text(self) -> str:
        """For people and listings."""
        return " ".join(self.argv) or self.path or "bash"


class Session:
    """One process with its streams. Made by `Sessions`.

    Attributes:
        exit_code: None while it runs.
        journal: what it wrote.
    """

    def __init__(
        self,
        owner: Sessions,
        journal: Journal,
        pid: int,
        pidfd: int,
        command: str,
        directory: str,
        tty: bool,
        max_run: float | None,
        created: datetime,
    ) -> None:
        self._owner = owner
        self.journal = journal
        self._loop = asyncio.get_running_loop()
        self.pid = pid
        self.id = str(pid)
        self.pidfd = pidfd
        self.command = command
        self.directory = directory
        self.tty = tty
        self.max_run = max_run
        self.created = created
        self.active = created
        self._rate = Rate(SYSTEM_CLOCK.monotonic())
        self.key = key_of(pid, created.timestamp())
        self.exit_code: int | None = None
        self._viewers: dict[Viewer, Follower] = {}
        self._creator: Viewer | None = None
        self._waiting: list[Callable[[int], None]] = []
        self._outputs: dict[int, int] = {}  # stream -> descriptor
        self._input = -1
        self._pending = bytearray()
        self._input_ended = False
        self._paused = False
        self._deadline: asyncio.TimerHandle | None = None

    # ---- the process's side ----

    def begin(self, outputs: dict[int, int], stdin: int) -> None:
        self._outputs = outputs
        self._input = stdin
        for fd in {*outputs.values(), stdin} - {-1}:
            os.set_blocking(fd, False)
        self._listen(True)
        self._loop.add_reader(self.pidfd, self._exited)

    def drop(self, outputs: dict[int, int]) -> None:
        """Go on reading what children of an ended process write."""
        self.exit_code = 0
        self._outputs = outputs
        self._listen(True)

    def state(self) -> dict[str, Any]:
        """What the next agent needs to go on with it."""
        return {
            "pid": self.pid,
            "command": self.command,
            "directory": self.directory,
            "tty": self.tty,
            "max_run": self.max_run,
            "created": self.created.timestamp(),
        }

    def descriptors(self) -> dict[str, int]:
        """Its descriptors by the names the anchor keeps them under."""
        found = {f"{self.key}.p": self.pidfd, f"{self.key}.0": self._input}
        found.update({f"{self.key}.{stream}": fd for stream, fd in self._outputs.items()})
        return {name: fd for name, fd in found.items() if fd >= 0}

    def _listen(self, wanted: bool) -> None:
        for stream, fd in self._outputs.items():
            if wanted:
                self._loop.add_reader(fd, self._read, stream, fd)
            else:
                self._loop.remove_reader(fd)

    def _read(self, stream: int, fd: int) -> int:
        """Pass one read on. Returns how many bytes it was; 0 where nothing is there, now or ever."""
        at = self.journal.end(stream)
        try:
            data = self._take(stream, fd)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last holder of a terminal's other side has gone
            data = b""
        if not data:
            self._loop.remove_reader(fd)
            del self._outputs[stream]
            self._owner.forget(self, stream)
            if fd != self._input:
                os.close(fd)
            return 0
        if self.exit_code is None:
            self._moved(len(data))
            for follower in list(self._viewers.values()):
                follower.news(stream, at, data)
                if follower.holds_back and not follower.ready and not self._paused:
                    self._paused = True
                    self._listen(False)
        return len(data)

    def _take(self, stream: int, fd: int) -> bytes:
        """What one read gives, once it is in the journal."""
        if self.exit_code is not None:
            return os.read(fd, _READ)  # its children's, for nobody
        if not self.tty:
            return self.journal.take(stream, fd, _READ)
        data = os.read(fd, _READ)
        self.journal.add(stream, data)
        return data

    def _moved(self, count: int) -> None:
        self.active = SYSTEM_CLOCK.now()
        self._rate.add(count, SYSTEM_CLOCK.monotonic())

    def _exited(self) -> None:
        self._loop.remove_reader(self.pidfd)
        status = self._owner.spawner.wait(self.pid, self.pidfd)
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        for stream, fd in list(self._outputs.items()):
            # What it wrote is at most what a pipe holds; a terminal holds less, and gives 4 KiB a read. Its children
            # may go on writing for ever.
            left = PIPE_SIZE
            while left > 0 and (count := self._read(stream, fd)):
                left -= count
        self.exit_code = code
        self._close_input()
        if self._deadline is not None:
            self._deadline.cancel()
        watched = bool(self._viewers)
        for follower in list(self._viewers.values()):
            follower.end(code)
        self._owner.ended(self, watched=watched)
        for told in self._waiting:
            told(code)
        self._listen(True)  # what is left open belongs to children: read to the end and dropped
        # Only now: of one that was not waited for, the anchor keeps the status for the next agent.
        self._owner.spawner.reap(self.pid)
        os.close(self.pidfd)

    # ---- the client's side ----

    def attach(self, viewer: Viewer, cursors: dict[int, int] | None = None) -> None:
        """Give a viewer what comes, and the exit.

        Args:
            cursors: from which offset of each stream on; None is for the session's creator, who gets all.
        """
        creator = cursors is None
        follower = Follower(
            viewer,
            self.journal,
            dict.fromkeys(STREAMS, 0) if cursors is None else dict(cursors),
            holds_back=creator,
            on_done=lambda: self._let_go(viewer),
        )
        self._viewers[viewer] = follower
        if creator:
            self._creator = viewer
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.exit_code is not None:
            follower.end(self.exit_code)
        elif not creator:
            follower.pump()

    def detach(self, viewer: Viewer) -> None:
        """A client has gone; without any, the process may go on for `max_run`."""
        follower = self._viewers.get(viewer)
        if follower is None:
            return
        follower.leave()
        self._let_go(viewer)
        if not self._viewers:
            self.orphan()

    def _let_go(self, viewer: Viewer) -> None:
        del self._viewers[viewer]
        if viewer is self._creator:
            self._creator = None
            self._unpause()

    def when_ended(self, told: Callable[[int], None]) -> None:
        """Call `told` with the exit code once the process has ended."""
        self._waiting.append(told)

    def last_lines(self) -> dict[int, int]:
        """Cursors of what a terminal shows, more or less: its last lines, and not hours of what went over it."""
        end, start = self.journal.end(STDOUT), self.journal.start(STDOUT)
        at = max(start, end - _SCROLLBACK)
        if at > start:
            at += self.journal.read(STDOUT, at, _SCROLLBACK).find(b"\n") + 1
        return {STDOUT: at, STDERR: self.journal.end(STDERR)}

    def orphan(self) -> None:
        """Start the time it may run without a client."""
        if self.exit_code is None and self.max_run is not None:
            self._deadline = self._loop.call_later(self.max_run, self._end, signal.SIGTERM)

    def _end(self, number: int) -> None:
        log.info("ending %s, whose client left: %s", self.id, self.command)
        self.signal(number)
        self._deadline = self._loop.call_later(_KILL_AFTER_SECONDS, self._end, signal.SIGKILL)

    def resume(self, viewer: Viewer) -> None:
        """A viewer takes output again."""
        follower = self._viewers.get(viewer)
        if follower is not None:
            follower.resume()
        if viewer is self._creator:
            self._unpause()

    def _unpause(self) -> None:
        if self._paused:
            self._paused = False
            self._listen(True)

    def write(self, data: bytes) -> None:
        """Feed the process's input; after its end, or the end of its input, data is dropped."""
        if self._input < 0 or self._input_ended:
            return
        self._moved(len(data))
        idle = not self._pending
        self._pending += data
        if idle:
            self._feed()
        else:
            self._hold_back()

    def end_input(self) -> None:
        """No more input will come. A terminal has no end of input but the one its user types."""
        if self.tty:
            return
        self._input_ended = True
        if not self._pending:
            self._close_input()

    def _feed(self) -> None:
        try:
            while self._pending:
                # No more than a pipe takes at once, so that the rest is not copied again and again.
                written = os.write(self._input, memoryview(self._pending)[:_FEED])
                del self._pending[:written]
        except BlockingIOError:
            self._loop.add_writer(self._input, self._feed)
            self._hold_back()
            return
        except OSError:  # EPIPE: it reads no more
            self._close_input()
            return
        self._loop.remove_writer(self._input)
        self._pause_input(False)
        if self._input_ended:
            self._close_input()

    def _hold_back(self) -> None:
        if len(self._pending) > _STDIN_HIGH_WATER:
            self._pause_input(True)

    def _pause_input(self, paused: bool) -> None:
        for viewer in list(self._viewers):
            viewer.pause_input(paused)

    def _close_input(self) -> None:
        self._pending.clear()
        if self._input < 0:
            return
        self._loop.remove_writer(self._input)
        fd, self._input = self._input, -1
        self._owner.forget(self, 0)
        if self.exit_code is None:
            self._owner.flush()  # the anchor's copy would keep the pipe open
        if fd not in self._outputs.values():
            os.close(fd)
        self._pause_input(False)

    def resize(self, rows: int, cols: int) -> None:
        """Change the terminal's size; anything else has none."""
        if self.tty and self._outputs:
            with suppress(OSError):
                fcntl.ioctl(self._outputs[STDOUT], termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def signal(self, number: int) -> bool:
        """Signal its process group. Returns whether there was anyone."""
        if self.exit_code is not None:
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has just been started, and leads no group yet
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return False
        return True

    def listing(self) -> dict[str, Any]:
        """The contract's session object (2.3)."""
        return {
            "id": self.id,
            "command": self.command,
            "workdir": self.directory,
            "created": rfc3339(self.created),
            "bytes_per_second": round(self._rate.at(SYSTEM_CLOCK.monotonic())),
            "is_active": bool(self._viewers),
            "tty": self.tty,
            "last_activity": rfc3339(self.active),
        }
