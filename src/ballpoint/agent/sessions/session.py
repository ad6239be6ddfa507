"""Sessions: processes of the inner container with their streams, and what becomes of both.

The rules of exit: once the end of the process is known, what it wrote before is delivered, then the exit, once; after
that the streams are read to their end and dropped, so that children it left behind neither block nor get SIGPIPE.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import signal
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from ballpoint.agent import notes
from ballpoint.agent.anchor import Anchor
from ballpoint.agent.sessions.rate import Rate
from ballpoint.agent.spawn_types import HOME, ProcessSpec, Spawner, SpawnError
from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339
from ballpoint.core.errors import InternalError

log = logging.getLogger("agent.session")

STDOUT, STDERR = 1, 2
# One read of a pipe. A turn of the loop, and of the edge and the client after it, costs as much as copying some tens of
# KiB; more than this would make other sessions wait.
_READ = 256 * 1024
_PIPE_SIZE = 1 << 20  # /proc/sys/fs/pipe-max-size by default
_F_SETPIPE_SZ = 1031
_FEED = 64 * 1024
_STDIN_HIGH_WATER = 256 * 1024
_KILL_AFTER_SECONDS = 5.0
# What the anchor keeps of a session: key, then `p` for the pidfd, `s` for its state, or the number of a stream.
_KEPT = re.compile(r"(s[0-9]+-[0-9]+)\.([ps012])")


def _key(pid: int, created: float) -> str:
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


class Viewer(Protocol):
    """The client's side of a session."""

    def output(self, stream: int, data: bytes) -> bool:
        """Take output, of any size; False asks the session to read no more until `Session.resume`."""
        ...

    def exited(self, code: int) -> None:
        """The process has ended; called once, after all its output."""
        ...

    def pause_input(self, paused: bool) -> None:
        """The process does not read its input (or does again): stop (or go on) taking it from the client."""
        ...


class Session:
    """One process with its streams. Made by `Sessions.start`."""

    def __init__(
        self,
        owner: Sessions,
        pid: int,
        pidfd: int,
        command: str,
        directory: str,
        tty: bool,
        max_run: float | None,
        created: datetime,
    ) -> None:
        self._owner = owner
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
        # What the anchor keeps for it; a pid alone may come again while children of its former bearer still write.
        self.key = _key(pid, created.timestamp())
        self.exit_code: int | None = None
        self._viewer: Viewer | None = None
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
        try:
            data = os.read(fd, _READ)
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
        if self._viewer is not None and self.exit_code is None:
            self._moved(len(data))
            if not self._viewer.output(stream, data) and not self._paused:
                self._paused = True
                self._listen(False)
        return len(data)

    def _moved(self, count: int) -> None:
        self.active = SYSTEM_CLOCK.now()
        self._rate.add(count, SYSTEM_CLOCK.monotonic())

    def _exited(self) -> None:
        self._loop.remove_reader(self.pidfd)
        status = self._owner.spawner.wait(self.pid, self.pidfd)
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        for stream, fd in list(self._outputs.items()):
            # What it wrote is at most what a pipe holds; its children may go on writing for ever.
            for _ in range(_PIPE_SIZE // _READ):
                if not self._read(stream, fd):
                    break
        self.exit_code = code
        self._close_input()
        if self._deadline is not None:
            self._deadline.cancel()
        os.close(self.pidfd)
        self._owner.ended(self)
        viewer, self._viewer = self._viewer, None
        if viewer is not None:
            viewer.exited(code)
        self._listen(True)  # what is left open belongs to children: read to the end and dropped

    # ---- the client's side ----

    def attach(self, viewer: Viewer) -> None:
        self._viewer = viewer
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def detach(self, viewer: Viewer) -> None:
        """The client has gone; the process may go on for `max_run`."""
        if self._viewer is not viewer:
            return
        self._viewer = None
        self.resume()
        self.orphan()

    def orphan(self) -> None:
        """Start the time it may run without a client."""
        if self.exit_code is None and self.max_run is not None:
            self._deadline = self._loop.call_later(self.max_run, self._end, signal.SIGTERM)

    def _end(self, number: int) -> None:
        log.info("ending %s, whose client left: %s", self.id, self.command)
        self.signal(number)
        self._deadline = self._loop.call_later(_KILL_AFTER_SECONDS, self._end, signal.SIGKILL)

    def resume(self) -> None:
        """The viewer takes output again."""
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
        if self._viewer is not None:
            self._viewer.pause_input(False)
        if self._input_ended:
            self._close_input()

    def _hold_back(self) -> None:
        if len(self._pending) > _STDIN_HIGH_WATER and self._viewer is not None:
            self._viewer.pause_input(True)

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
        if self._viewer is not None:
            self._viewer.pause_input(False)

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
            "is_active": self._viewer is not None,
            "tty": self.tty,
            "last_activity": rfc3339(self.active),
        }


class Sessions:
    """All sessions of one agent; starts them, and keeps what a successor needs with the anchor.

    Args:
        anchor: None keeps nothing (tests of sessions alone).
    """

    def __init__(self, spawner: Spawner, anchor: Anchor | None) -> None:
        self.spawner = spawner
        self._anchor = anchor
        self._sessions: dict[str, Session] = {}
        self._leaving: list[str] = []  # what the anchor is to forget at the end of this turn of the loop

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def listing(self) -> list[dict[str, Any]]:
        return [session.listing() for session in self._sessions.values()]

    def start(self, command: Command, environment: dict[str, str]) -> Session:
        """Start `command`. Its output waits in the pipes until a viewer is attached and control returns to the loop.

        Raises:
            SpawnError: it cannot be started.
        """
        ours: list[int] = []
        theirs: list[int] = []

        def pipe(reads: list[int], writes: list[int]) -> tuple[int, int]:
            read, write = os.pipe2(os.O_CLOEXEC)
            reads.append(read)
            writes.append(write)
            return read, write

        try:
            if command.tty:
                master, slave = self.spawner.open_pty(command.rows, command.cols)
                ours, theirs = [master], [slave]
                streams, outputs, stdin = (slave, slave, slave), {STDOUT: master}, master
            else:
                in_read, in_write = pipe(theirs, ours)
                out_read, out_write = pipe(ours, theirs)
                err_read, err_write = pipe(ours, theirs)
                with suppress(OSError):  # EPERM beyond the user's share of pipe memory: the default size serves
                    fcntl.fcntl(out_read, _F_SETPIPE_SZ, _PIPE_SIZE)
                streams, outputs, stdin = (
                    (in_read, out_write, err_write),
                    {STDOUT: out_read, STDERR: err_read},
                    in_write,
                )
            spec = ProcessSpec(command.argv, command.path, environment, command.directory, *streams, tty=command.tty)
            pid, pidfd = self.spawner.spawn(spec)
        except OSError as error:
            for fd in ours:
                os.close(fd)
            raise SpawnError(126, f"cannot start a process: {error.strerror}") from error
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        created = SYSTEM_CLOCK.now()
        session = Session(
            self, pid, pidfd, command.text, command.directory or HOME, command.tty, command.max_run, created
        )
        self._sessions[session.id] = session
        session.begin(outputs, stdin)
        if not command.stdin:
            session.end_input()
        try:
            self._deposit(session)
        except InternalError as error:
            session.signal(signal.SIGKILL)
            raise SpawnError(126, "too many commands run in this sprite") from error
        except OSError as error:
            session.signal(signal.SIGKILL)
            raise SpawnError(126, f"cannot start a process: {error.strerror}") from error
        return session

    def adopt(self) -> None:
        """Go on with the sessions of an earlier agent; their clients are gone."""
        if self._anchor is None:
            return
        kept: dict[str, dict[str, int]] = {}
        for name in self._anchor.names():
            if (match := _KEPT.fullmatch(name)) is not None and (fd := self._anchor.get(name)) is not None:
                kept.setdefault(match[1], {})[match[2]] = fd
        for key, fds in kept.items():
            self._go_on(key, fds)

    def _go_on(self, key: str, fds: dict[str, int]) -> None:
        """Take over one earlier session; without a state or a pidfd, its process has ended or is on its own."""
        pidfd, stdin, note = (fds.pop(short, -1) for short in ("p", "0", "s"))
        outputs = {int(short): fd for short, fd in fds.items()}
        state = notes.read(note) if note >= 0 else None
        pid = int(key[1:].partition("-")[0])
        if state is not None and pidfd >= 0:
            created = datetime.fromtimestamp(state["created"], UTC)
            # An agent of an earlier version left no directory.
            directory = state.get("directory", HOME)
            session = Session(self, pid, pidfd, state["command"], directory, state["tty"], state["max_run"], created)
            self._sessions[session.id] = session
            session.begin(outputs, stdin)
            session.orphan()
            return
        created = datetime.fromtimestamp(int(key.partition("-")[2]) / 1000, UTC)
        session = Session(self, pid, -1, "", HOME, False, None, created)
        for fd in (pidfd, stdin):
            if fd >= 0:
                os.close(fd)
        for short in ("p", "s", "0"):
            self.forget(session, short)
        session.drop(outputs)

    def ended(self, session: Session) -> None:
        """Forget a session; the descriptors its children write to are kept until they are at their end."""
        self._sessions.pop(session.id, None)
        for short in ("p", "s"):
            self.forget(session, short)

    def forget(self, session: Session, short: str | int) -> None:
        """Let the anchor close its copy of one of the session's descriptors, soon: what clients wait for goes first.

        Should the agent be killed before, the next one finds that they are at their end.
        """
        name = f"{session.key}.{short}"
        if self._anchor is not None and name in self._anchor:
            if not self._leaving:
                asyncio.get_running_loop().call_soon(self.flush)
            self._leaving.append(name)

    def flush(self) -> None:
        """Let the anchor forget now what it is to forget."""
        if self._anchor is not None and self._leaving:
            leaving, self._leaving = self._leaving, []
            self._anchor.forget(leaving)

    def _deposit(self, session: Session) -> None:
        """In one step, so that a next agent finds all of the session or nothing."""
        if self._anchor is None:
            return
        note = notes.write(session.state())
        try:
            self._anchor.keep({**session.descriptors(), f"{session.key}.s": note})
        finally:
            os.close(note)
