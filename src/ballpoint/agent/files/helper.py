"""One helper process (helpers/files.c) with its pipes: started, listened to, hurried, ended.

A file system inside may hold a process for good: FUSE lets one not even be killed while its daemon has a question and
does not answer. So nothing here waits for a helper's end but those who count how many do not come to it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ballpoint.agent.files.errors import FileError, shown
from ballpoint.agent.files.request import Operation
from ballpoint.agent.spawn_types import FileSpawner, SpawnError
from ballpoint.core.errors import BallpointError, InternalError, UnavailableError

# A helper that says nothing for so long, neither that it gets on nor a byte, is given up.
SILENT_SECONDS = 30.0
# What it gets for all it does before its answer begins: the edge waits 150 s.
_ANSWER_SECONDS = 140.0
# A client that takes nothing, or sends nothing, for so long.
_CLIENT_SECONDS = 600.0
_PIPE = 1 << 20
_READ = 1 << 18
_HEAD_MAX = 256


class Listener(Protocol):
    """Whom a helper tells what it says."""

    def answer_begins(self, words: list[bytes]) -> None:
        """Its head: `=`, `*` or `@`, and the numbers behind it."""
        ...

    def answer(self, data: bytes) -> bool:
        """More of what follows the head; False asks it to wait for `Helper.go_on`."""
        ...

    def answer_ends(self, error: BallpointError | None) -> None:
        """It is over, and this is said once, as the last. An error after the head: the answer is not whole."""
        ...

    def body_taken(self) -> None:
        """What was given to `Helper.write` has been taken."""
        ...

    def client_stalls(self) -> None:
        """The client has neither taken nor sent anything for too long."""
        ...


class Turns:
    """How many operations run at once; the others wait, each for its turn.

    Args:
        most: that run.
        waiting: that wait; one more is refused.
        stuck: helpers that were killed and have not ended.
    """

    def __init__(self, most: int = 16, waiting: int = 256, stuck: int = 32) -> None:
        self._most = most
        self._waiting_most = waiting
        self._stuck_most = stuck
        self._waiting: deque[Callable[[], None]] = deque()
        self.running = 0
        self.stuck = 0

    def take(self, start: Callable[[], None]) -> None:
        """Call `start` now, or once there is room; whoever was called calls `release`.

        Raises:
            UnavailableError: too many run or wait.
        """
        if self.stuck >= self._stuck_most:
            raise UnavailableError(
                f"{self.stuck} operations on files do not end",
                hint="a file system inside the sprite does not answer: end its daemon, or restart the sprite",
            )
        if self.running < self._most:
            self.running += 1
            start()
        elif len(self._waiting) < self._waiting_most:
            self._waiting.append(start)
        else:
            raise UnavailableError("too many operations on files at once", hint="try again")

    def give_up(self, start: Callable[[], None]) -> bool:
        """Wait no longer; False where its turn has come already."""
        with suppress(ValueError):
            self._waiting.remove(start)
            return True
        return False

    def release(self) -> None:
        self.running -= 1
        if self._waiting:
            self.running += 1
            self._waiting.popleft()()


class Helper:
    """One operation, from its start on. Tells its listener the end once, unless it is cancelled.

    Args:
        body: it reads what `write` is given.
        client: the client's socket. With a body it reads from it what is missing once `end_body` was called; without
            one it may write its answer there, once `Listener.answer_begins` has sent what comes before that.
        endless: once it has answered, it may be silent.
    """

    def __init__(
        self,
        spawner: FileSpawner,
        operation: Operation,
        listener: Listener,
        turns: Turns,
        *,
        body: bool = False,
        client: int | None = None,
        endless: bool = False,
    ) -> None:
        self._spawner = spawner
        self._operation = operation
        self._listener: Listener | None = listener
        self._turns = turns
        self._body = body
        self._lent = body and client is not None
        self._endless = endless
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._spoke = False
        self._answered = False
        self._failed = False
        self._status: int | None = None
        self._held = False
        self._left = False
        self._unwritten = memoryview(b"")
        self._input = self._word = -1
        self._output, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        given = [theirs]
        try:
            os.set_blocking(theirs, True)
            with suppress(OSError):  # pipe(7): pipe-user-pages-soft
                fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _PIPE)
            stdin = word = 0  # /dev/null
            if body or client is not None:
                stdin, self._input = os.pipe2(os.O_CLOEXEC)
                given.append(stdin)
                if client is not None:
                    word = client
                else:
                    word, self._word = os.pipe2(os.O_CLOEXEC)
                    given.append(word)
                os.set_blocking(self._input, False)
                with suppress(OSError):
                    fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, _PIPE)
            self._pid, self._pidfd = spawner.start_files(operation.user, operation.arguments, (stdin, theirs, word))
        except (OSError, SpawnError) as error:
            self._close_pipes()
            reason = error.message if isinstance(error, SpawnError) else error.strerror
            raise UnavailableError(f"no operation on files can be started: {reason}", hint="try again") from error
        finally:
            for fd in given:
                os.close(fd)
        self._loop.add_reader(self._output, self._readable)
        self._loop.add_reader(self._pidfd, self._exited)
        self._answer_by = float("inf") if body else self._loop.time() + _ANSWER_SECONDS
        self._timer = self._loop.call_later(SILENT_SECONDS, self._check)
        self._touch()

    # ---- the body ----

    def write(self, data: bytes) -> bool:
        """Give it more of its body; False asks to wait for `Listener.body_taken`."""
        if self._input < 0:
            return True  # it wants no more, and its answer says why
        self._unwritten = memoryview(data)
        self._write()
        if self._unwritten:
            self._loop.add_writer(self._input, self._writable)
        return not self._unwritten

    def end_body(self) -> None:
        """It has all, or all that it does not get from the client itself, and nothing of it waits."""
        if self._input >= 0:
            if self._word >= 0:
                os.write(self._word, b"e")
            self._close_input()
        if not self._lent:
            self._has_all()

    def _has_all(self) -> None:
        self._lent = False
        self._answer_by = self._loop.time() + _ANSWER_SECONDS
        self._touch()

    def _write(self) -> None:
        try:
            self._unwritten = self._unwritten[os.write(self._input, self._unwritten) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._close_input()
        self._touch()

    def _writable(self) -> None:
        self._write()
        if self._unwritten:
            return
        if self._input >= 0:
            self._loop.remove_writer(self._input)
        if self._listener is not None:
            self._listener.body_taken()

    def _close_input(self) -> None:
        self._loop.remove_writer(self._input)
        os.close(self._input)
        if self._word >= 0:
            os.close(self._word)
        self._input = self._word = -1
        self._unwritten = memoryview(b"")

    # ---- the answer ----

    def go_on(self) -> None:
        """The client takes more."""
        if self._held:
            self._held = False
            self._touch()
            self._loop.add_reader(self._output, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._output, _READ)
        except BlockingIOError:
            return
        self._touch()
        if not data:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
            self._conclude()
        elif self._answered:
            self._pass(data)
        else:
            self._buffer += data
            self._take_lines()

    def _take_lines(self) -> None:
        while not self._failed:
            line, newline, rest = self._buffer.partition(b"\n")
            if line.startswith(b"! "):
                self._failed = True
            elif not newline:
                if len(line) > _HEAD_MAX:
                    self._end(InternalError("the helper for files does not speak as agreed"))
                return
            elif line == b".":
                self._buffer = rest
                self._spoke = True
                self._touch()
            elif line == b"+":
                self._buffer = rest
                self._has_all()
            elif line[:1] not in (b"=", b"*", b"@"):
                self._end(InternalError("the helper for files does not speak as agreed"))
                return
            else:
                self._buffer = b""
                self._answered = True
                if self._listener is not None:
                    self._listener.answer_begins(line.split(b" "))
                if self._input >= 0:
                    if not self._body:
                        self._try_go()
                    self._close_input()
                self._touch()
                if rest:
                    self._pass(rest)
                return

    def _try_go(self) -> None:
        with suppress(BrokenPipeError):  # it has ended, or writes nothing there
            os.write(self._input, b"g")

    def _pass(self, data: bytes) -> None:
        if self._listener is None or self._listener.answer(data) or self._held or self._output < 0:
            return
        self._held = True
        self._loop.remove_reader(self._output)
        self._touch()

    # ---- the end ----

    def cancel(self) -> None:
        """Nobody wants it any more: end it, now, and tell nobody."""
        self._listener = None
        self._leave()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._status = self._spawner.wait(self._pid, self._pidfd)
        self._spawner.reap(self._pid)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._left:
            self._turns.stuck -= 1
        else:
            self._conclude()

    def _conclude(self) -> None:
        """Once all is said and the process has ended."""
        if self._status is None or self._output >= 0:
            return
        if self._failed:
            number, _, path = self._buffer.removeprefix(b"! ").partition(b" ")
            self._end(FileError(int(number), shown(path)))
        elif self._answered and self._status == 0:
            self._end(None)
        else:
            self._end(UnavailableError("the operation was ended before it was done", hint="try again"))

    def _end(self, error: BallpointError | None) -> None:
        listener, self._listener = self._listener, None
        self._leave()
        if listener is not None:
            listener.answer_ends(error)

    def _leave(self) -> None:
        """Let go of everything but the process, which may take its time to end."""
        if self._left:
            return
        self._left = True
        self._timer.cancel()
        self._close_pipes()
        if self._pidfd >= 0:
            self._turns.stuck += 1
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._turns.release()

    def _close_pipes(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
        if self._input >= 0:
            self._loop.remove_writer(self._input)
        for fd in (self._input, self._word):
            if fd >= 0:
                os.close(fd)
        self._input = self._word = -1

    # ---- time ----

    def _touch(self) -> None:
        """Something has come or gone: from now on it has its time again."""
        if self._held:
            self._patience = _CLIENT_SECONDS
        elif not self._body or not self._spoke or self._answered or self._unwritten or self._lent:
            self._patience = SILENT_SECONDS
        elif self._input >= 0:
            self._patience = _CLIENT_SECONDS
        else:
            self._patience = _ANSWER_SECONDS  # fsync(2) tells nothing until it is done
        self._due = self._loop.time() + self._patience
        if self._due < self._timer.when() and not self._left:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        of_client = self._patience == _CLIENT_SECONDS
        due = self._due if self._answered or of_client else min(self._due, self._answer_by)
        if self._endless and self._answered and not self._held:
            due = now + SILENT_SECONDS
        if due > now:
            self._timer = self._loop.call_at(due, self._check)
        elif of_client:
            if self._listener is not None:
                self._listener.client_stalls()
        else:
            self._end(
                UnavailableError(
                    f"{self._operation.path}: no answer within its time",
                    hint="the file system there does not answer, or there is more to do than one request may take",
                )
            )
