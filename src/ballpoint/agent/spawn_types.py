"""What a session asks for when it starts a process, and what must be able to start it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Of the user `sprite`, whom every image has.
HOME = "/home/sprite"


class SpawnError(Exception):
    """A process cannot be started; `exit_code` is what a shell would report (126 or 127)."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


@dataclass(frozen=True)
class ProcessSpec:
    """One process of a sprite.

    Attributes:
        argv: with argv[0]; no shell is involved.
        path: the program; None takes argv[0]. Looked up on the environment's PATH unless it has a slash.
        env: the whole environment.
        cwd: working directory; None is the user's home.
        user: looked up in the sprite's own /etc/passwd.
        stdin, stdout, stderr: descriptors of the agent that become the process's streams.
        tty: they are a terminal, which becomes the controlling one.
    """

    argv: tuple[str, ...]
    path: str | None
    env: dict[str, str]
    cwd: str | None
    stdin: int
    stdout: int
    stderr: int
    tty: bool = False
    user: str = "sprite"


class Spawner(Protocol):
    """Starts processes in the inner container."""

    def open_pty(self, rows: int, cols: int) -> tuple[int, int]:
        """A new terminal: (master, slave) descriptors, which the caller owns."""
        ...

    def spawn(self, spec: ProcessSpec) -> tuple[int, int]:
        """Start `spec`: (pid, pidfd); the caller owns the pidfd. Raises SpawnError where it is known beforehand."""
        ...

    def wait(self, pid: int, pidfd: int) -> int:
        """Wait status of a process whose pidfd has become readable; it stays until `reap`."""
        ...

    def reap(self, pid: int) -> None:
        """Let go of an ended process. Idempotent."""
        ...


class FileSpawner(Protocol):
    """Starts helpers for operations on files (helpers/files.c) in the inner container."""

    def start_files(self, user: str, arguments: Sequence[bytes], streams: tuple[int, int, int]) -> tuple[int, int]:
        """Start one: (pid, pidfd); the caller owns the pidfd.

        Args:
            user: whose rights it has, of the sprite's own /etc/passwd.
            arguments: the verb and what follows.
            streams: descriptors of the agent that become its fd 0, 1 and 2.

        Raises:
            SpawnError: there is no room for a process, or an instance of an earlier version has no such helper.
        """
        ...

    def wait(self, pid: int, pidfd: int) -> int:
        """Wait status of a helper whose pidfd has become readable; it stays until `reap`."""
        ...

    def reap(self, pid: int) -> None:
        """Let go of an ended helper. Idempotent."""
        ...


class ServiceSpawner(Protocol):
    """Starts services and the helpers of their logs (helpers/svclog.c) in the inner container."""

    def spawn_in(self, spec: ProcessSpec, procs: int) -> tuple[int, int]:
        """Start `spec` in the control group behind `procs`, its cgroup.procs: (pid, pidfd); as `Spawner.spawn`."""
        ...

    def start_log(self, arguments: Sequence[str], streams: tuple[int, int, int]) -> tuple[int, int]:
        """Start a helper with `arguments`: (pid, pidfd); the caller owns the pidfd. Raises SpawnError.

        Args:
            streams: descriptors of the agent that become its fd 0, 1 and 2.
        """
        ...

    def wait(self, pid: int, pidfd: int) -> int:
        """Wait status of a process whose pidfd has become readable; it stays until `reap`."""
        ...

    def reap(self, pid: int) -> None:
        """Let go of an ended process. Idempotent."""
        ...


def peek(pid: int, pidfd: int) -> int | None:
    """Wait status of a child that has ended, which stays to be reaped; None where it is no child of this process."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if info is None:  # somebody in the sprite traces it, and is told of its end first (ptrace(2)), perhaps for ever
        return exit_code_of(pid)
    if info.si_code == os.CLD_EXITED:
        return info.si_status << 8
    return info.si_status | (0x80 if info.si_code == os.CLD_DUMPED else 0)


def exit_code_of(pid: int) -> int | None:
    """Wait status of an ended process that nobody has reaped (proc_pid_stat(5), field 52); None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[49]) if fields[0] == b"Z" else None


def reap(pid: int, left: set[int]) -> None:
    """Let go of an ended child. One that is traced is left for later calls, in `left`."""
    left.add(pid)
    for each in list(left):
        try:
            ended, _ = os.waitpid(each, os.WNOHANG)
        except ChildProcessError:  # an earlier agent's, which the anchor reaps
            ended = each
        if ended:
            left.discard(each)
