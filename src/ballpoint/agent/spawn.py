"""Starting processes inside the inner container, through the static helper that is the only way in.

The agent's memory and descriptors never enter the container: `nsexec` is started by posix_spawn (a fresh image), joins
the namespaces undumpable, closes every descriptor but its own streams, and only then runs the user's program.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Sequence
from pathlib import Path

from ballpoint.agent.anchor import Anchor
from ballpoint.agent.inner import Inner
from ballpoint.agent.spawn_types import HOME, ProcessSpec, SpawnError, exit_code_of, peek, reap

PROGRAM = "/bin/nsexec"
FILES = "/bin/files"
LOG = "/bin/svclog"
# Numbers of common.h's enum profile.
PROFILES = {"minimal": 0, "standard": 1, "privileged": 2}
_FIRST_PROCS = 4
# Above every number the helper gives a meaning to: dup2 actions run in order and must not overwrite a later source.
_HIGH = 200
# linux/tty.h: ioctl numbers Python's termios lacks.
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
# An interpreter ignores SIGPIPE and SIGXFSZ, which a program would inherit.
_DEFAULT_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class ContainerSpawner:
    """Spawns into one running inner container.

    Args:
        inner: the container.
        procs: cgroup.procs every process joins; opened by the node.
        anchor: knows the exit statuses of processes an earlier agent started.

    Attributes:
        profile, no_new_privileges: of what is started from now on.
    """

    def __init__(self, inner: Inner, procs: Sequence[int], anchor: Anchor) -> None:
        self._inner = inner
        self._pidfd, *self._procs = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (inner.pidfd, *procs))
        self._anchor = anchor
        self._unreaped: set[int] = set()
        self.profile = "standard"
        self.no_new_privileges = False

    def open_pty(self, rows: int, cols: int) -> tuple[int, int]:
        """A new terminal of the container: (master, slave). No path in the sprite is walked.

        Raises:
            SpawnError: the container has no terminal left (devpts `max=`).
        """
        try:
            master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._inner.devpts)
        except OSError as error:
            raise SpawnError(126, f"no terminal: {error.strerror}") from error
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
            slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        except OSError:
            os.close(master)
            raise
        return master, slave

    def spawn(self, spec: ProcessSpec) -> tuple[int, int]:
        """Start `spec`; returns (pid, pidfd). The pid is the agent's number for it.

        Raises:
            SpawnError: the argument list is too large, or there is no room for a process.
        """
        return self._spawn(spec, self._procs)

    def spawn_in(self, spec: ProcessSpec, procs: int) -> tuple[int, int]:
        """As `spawn`, in a control group of its own instead of the container's main one."""
        high = fcntl.fcntl(procs, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        try:
            # The first is of v2; those of v1 bound what all of the sprite has together.
            return self._spawn(spec, [high, *self._procs[1:]])
        finally:
            os.close(high)

    def start_log(self, arguments: Sequence[str], streams: tuple[int, int, int]) -> tuple[int, int]:
        """Start a helper of a service's log, as `ServiceSpawner` says."""
        command: list[str | bytes] = ["svclog", str(len(self._procs)), *arguments]
        return self._start(LOG, command, {}, streams, self._procs)

    def _spawn(self, spec: ProcessSpec, procs: Sequence[int]) -> tuple[int, int]:
        program = spec.path or (spec.argv[0] if spec.argv else "bash")
        arguments: list[str | bytes] = [
            "nsexec",
            str(len(procs)),
            "1" if spec.tty else "0",
            # One word: the helper of an older instance knows no more of them.
            f"{PROFILES[self.profile]}{'n' if self.no_new_privileges else ''}",
            spec.user,
            spec.cwd or HOME,
            program,
            *(spec.argv or (program,)),
        ]
        return self._start(PROGRAM, arguments, spec.env, (spec.stdin, spec.stdout, spec.stderr), procs)

    def start_files(self, user: str, arguments: Sequence[bytes], streams: tuple[int, int, int]) -> tuple[int, int]:
        """Start a helper for an operation on files, as `FileSpawner` says."""
        if not Path(FILES).exists():
            raise SpawnError(127, "the sprite was started by an earlier version; restart it")
        command: list[str | bytes] = ["files", str(len(self._procs)), str(PROFILES[self.profile]), user, *arguments]
        return self._start(FILES, command, {}, streams, self._procs)

    def _start(
        self,
        program: str,
        arguments: list[str | bytes],
        env: dict[str, str],
        streams: tuple[int, int, int],
        procs: Sequence[int],
    ) -> tuple[int, int]:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
        actions.append((os.POSIX_SPAWN_DUP2, self._pidfd, _FIRST_PROCS - 1))
        actions += [(os.POSIX_SPAWN_DUP2, fd, _FIRST_PROCS + i) for i, fd in enumerate(procs)]
        try:
            pid = os.posix_spawn(
                program, arguments, env, file_actions=actions, setsigdef=_DEFAULT_SIGNALS, setsigmask=()
            )
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise SpawnError(126, "argument list too long") from error
            raise SpawnError(126, f"cannot start a process: {error.strerror}") from error
        try:
            return pid, os.pidfd_open(pid)
        except OSError as error:  # out of descriptors: nobody could watch it
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SpawnError(126, f"cannot watch a process: {error.strerror}") from error

    def wait(self, pid: int, pidfd: int) -> int:
        """Wait status of an ended process, whether this agent started it or one before."""
        status = peek(pid, pidfd)
        if status is None:
            status = self._anchor.exit_status(pid)
        if status is None:
            status = exit_code_of(pid)
        # The anchor forgets after a thousand exits; what then is left to say is that it ended abnormally.
        return 9 if status is None else status

    def reap(self, pid: int) -> None:
        reap(pid, self._unreaped)
