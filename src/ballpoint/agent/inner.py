"""The inner container as its agent holds it: launched parked, given its root at the claim."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ballpoint.core.errors import InternalError

PROGRAM = "/bin/inner"
# Below every descriptor the helper uses by number, above every one a session opens: file actions never collide.
_HIGH = 200
_STEP_SECONDS = 20.0
_PACKET = 4096
# The name that the helper gives to an init which has begun to stop everything.
_STOPPING = "stopping\n"


class Inner:
    """A parked or running inner container.

    Attributes:
        pid, pidfd: its init, as the agent's pid namespace numbers it.
        devpts: the container's devpts mount; terminals are opened below it, so no path in the sprite is walked.
        console: reading end of its /dev/console; None where it was made by an earlier version.
        api: its listening socket, as /.sprite/api.sock; likewise.
        parked: the socket to the parked process; None once it runs.
    """

    def __init__(
        self,
        pid: int,
        pidfd: int,
        devpts: int,
        console: int | None,
        api: int | None,
        parked: socket.socket | None,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.devpts = devpts
        self.console = console
        self.api = api
        self.parked = parked
        if parked is not None:
            # Also one that an earlier agent made: of its timeout, the descriptor tells only that it does not block.
            parked.settimeout(_STEP_SECONDS)

    @classmethod
    def launch(cls, cgroup: int, v1_procs: Sequence[int], main_procs: int, limits: str) -> Inner:
        """Start a container up to the point where it waits for its root.

        Args:
            cgroup: the v2 directory it is born in and sees as its cgroup root.
            v1_procs: cgroup.procs of its v1 controllers.
            main_procs: cgroup.procs of the v2 child group its init moves to.
            limits: "<devpts max>,<shm bytes>".

        Raises:
            InternalError: a step failed; the text says which.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_STEP_SECONDS)
        sources = [theirs.fileno(), cgroup, *v1_procs, main_procs]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in sources]
        try:
            launcher = os.posix_spawn(
                PROGRAM,
                ["inner", str(len(v1_procs)), limits],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, 3 + i) for i, fd in enumerate(high)],
            )
        finally:
            for fd in high:
                os.close(fd)
            theirs.close()
        try:
            text, fds = _receive(ours, b"I")
            pid, pidfd = int(text), fds[0]
            os.waitpid(launcher, 0)
            _, fds = _receive(ours, b"P")
        except BaseException:
            ours.close()
            raise
        devpts, console, api = fds
        return cls(pid, pidfd, devpts, console, api, ours)

    def namespace(self, kind: str) -> int:
        """Descriptor of the container's namespace `kind` ("user", "net", "pid"...). The caller owns it."""
        return os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)

    def stops(self) -> bool:
        """Whether it has begun to end, some time before its pidfd says that it has: what is started now would not last.

        An init that stops says so by its name. One that exits gives its namespaces back first, then ends all other
        processes and waits for them.
        """
        try:
            if Path(f"/proc/{self.pid}/comm").read_text() == _STOPPING:
                return True
            Path(f"/proc/{self.pid}/ns/mnt").stat()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return False

    def halt(self) -> None:
        """Let its init end all processes, and itself (helpers/inner.c). Idempotent."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def enter(self, root: int, binds: Sequence[tuple[str, int]], resolv_conf: str) -> None:
        """Give the parked container its root and let it run as init. Happens once.

        Args:
            root: detached mount of the root filesystem.
            binds: (path below the root, detached mount); a path that is no plain directory is left out.
            resolv_conf: content of the name server configuration.

        Raises:
            InternalError: it does not run; the container has ended.
        """
        if self.parked is None:
            raise InternalError("the inner container runs already")
        texts = [resolv_conf, *(path.lstrip("/") for path, _ in binds)]
        message = b"C" + b"".join(text.encode() + b"\0" for text in texts)
        socket.send_fds(self.parked, [message], [root, *(fd for _, fd in binds)])
        _receive(self.parked, b"D")
        self.parked.close()
        self.parked = None


def _receive(sock: socket.socket, expected: bytes) -> tuple[str, list[int]]:
    try:
        data, fds, _, _ = socket.recv_fds(sock, _PACKET, 4)
    except TimeoutError as error:
        raise InternalError("the inner container did not answer") from error
    for fd in fds:
        os.set_inheritable(fd, False)
    if data[:1] != expected:
        reason = data[1:].decode(errors="replace") if data[:1] == b"E" else "it ended"
        raise InternalError(f"the inner container did not start: {reason}")
    return data[1:].decode(), fds


def how_it_ended(status: int) -> str:
    """Words for the wait status of an inner init: a pid namespace's reboot(2) ends it by SIGHUP, a halt by SIGINT."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGHUP:
            return "reboot"
        if number == signal.SIGINT:
            return "halt"
        return f"signal {number}"
    return f"exit {os.WEXITSTATUS(status)}"
