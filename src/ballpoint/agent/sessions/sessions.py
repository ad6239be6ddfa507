"""All sessions of one agent: started, listed, kept for the next agent, and gone on with."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ballpoint.agent import notes
from ballpoint.agent.anchor import Anchor
from ballpoint.agent.sessions.journal import Journal, Journals
from ballpoint.agent.sessions.session import PIPE_SIZE, STDERR, STDOUT, Command, Session, key_of
from ballpoint.agent.spawn_types import HOME, ProcessSpec, Spawner, SpawnError
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import InternalError

# What the anchor keeps of a session: key, then `p` for the pidfd, `s` for its state, or the number of a stream.
_KEPT = re.compile(r"(s[0-9]+-[0-9]+)\.([ps012])")
_F_SETPIPE_SZ = 1031


class Sessions:
    """All sessions of one agent; starts them, and keeps what a successor needs with the anchor.

    Args:
        anchor: None keeps nothing (tests of sessions alone).
        journals: where their output goes; None keeps nothing of it.
    """

    def __init__(self, spawner: Spawner, anchor: Anchor | None, journals: Journals | None = None) -> None:
        self.spawner = spawner
        self._anchor = anchor
        self._journals = journals or Journals(None, 0)
        self._sessions: dict[str, Session] = {}
        self._past: OrderedDict[str, Session] = OrderedDict()  # of those that have ended, whose journals may be there
        self._leaving: list[str] = []  # what the anchor is to forget at the end of this turn of the loop

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session | None:
        """One that runs, or has ended and can still be read."""
        found = self._sessions.get(session_id) or self._past.get(session_id)
        if found is not None and found.exit_code is not None and not self._journals.readable(found.journal):
            del self._past[session_id]
            return None
        return found

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
                    fcntl.fcntl(out_read, _F_SETPIPE_SZ, PIPE_SIZE)
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
        journal = self._journals.create(key_of(pid, created.timestamp()))
        directory = command.directory or HOME
        session = Session(self, journal, pid, pidfd, command.text, directory, command.tty, command.max_run, created)
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
        for key, note in self._journals.recover().items():
            session = self._of_note(key, -1, note, self._journals.of_ended(key))
            session.exit_code = int(note["code"])
            self._past[session.id] = session

    def _go_on(self, key: str, fds: dict[str, int]) -> None:
        """Take over one earlier session; without a state or a pidfd, its process has ended or is on its own."""
        pidfd, stdin, note = (fds.pop(short, -1) for short in ("p", "0", "s"))
        outputs = {int(short): fd for short, fd in fds.items()}
        state = notes.read(note) if note >= 0 else None
        if state is not None and pidfd >= 0:
            session = self._of_note(key, pidfd, state, self._journals.open(key))
            self._sessions[session.id] = session
            session.begin(outputs, stdin)
            session.orphan()
            return
        pid, _, milliseconds = key[1:].partition("-")
        created = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
        journal = Journal(self._journals, key)  # nothing is written to it
        session = Session(self, journal, int(pid), -1, "", HOME, False, None, created)
        for fd in (pidfd, stdin):
            if fd >= 0:
                os.close(fd)
        for short in ("p", "s", "0"):
            self.forget(session, short)
        session.drop(outputs)

    def _of_note(self, key: str, pidfd: int, note: dict[str, Any], journal: Journal) -> Session:
        """A session of an earlier agent, by its `state`."""
        created = datetime.fromtimestamp(note["created"], UTC)
        # An agent of an earlier version left no directory.
        directory, pid = note.get("directory", HOME), int(key[1:].partition("-")[0])
        return Session(self, journal, pid, pidfd, note["command"], directory, note["tty"], note["max_run"], created)

    def ended(self, session: Session, *, watched: bool) -> None:
        """A session has ended; what it wrote can be read for a while.

        The descriptors its children write to are kept until they are at their end.

        Args:
            watched: somebody was told; if not, the next agent should know of it, too.
        """
        self._sessions.pop(session.id, None)
        self._past.pop(session.id, None)
        self._past[session.id] = session
        self._journals.end(session.journal, None if watched else {**session.state(), "code": session.exit_code})
        while not self._journals.readable(next(iter(self._past.values())).journal):
            self._past.popitem(last=False)
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
