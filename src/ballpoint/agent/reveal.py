"""Checkpoints that can be read inside, below /.sprite/checkpoints: mounts that the node made, attached by a helper.

The helper joins the container, whose paths are the sprite's to make slow or strange: it has a deadline, and nothing of
the agent waits for it but who asked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal

from ballpoint.agent.inner import Inner
from ballpoint.core.errors import InternalError, InvalidError, UnavailableError

PROGRAM = "/bin/reveal"
NAME_MAX = 128
_SECONDS = 10.0
# Above every descriptor that the helper uses by number: dup2 actions must not overwrite a later source.
_HIGH = 200
_INIT, _MOUNT = 3, 4


class Reveal:
    """Attaches checkpoints in one container, one at a time.

    Args:
        names: those that are attached already.

    Attributes:
        names: those that are attached now, in the order of their coming.
    """

    def __init__(self, inner: Inner, names: list[str]) -> None:
        self._inner = inner
        self._turn = asyncio.Lock()
        self.names = names

    async def show(self, name: str, mount: int) -> None:
        """Attach a detached mount as the checkpoint `name`; nothing where it is attached already.

        Raises:
            InvalidError: that is no name.
            UnavailableError: the container cannot take it now, or does not answer.
        """
        _check(name)
        async with self._turn:
            if name not in self.names:
                await self._run("show", name, mount)
                self.names.append(name)

    async def hide(self, name: str) -> None:
        """Take the checkpoint `name` off; nothing where it is not attached. Raises as `show`."""
        _check(name)
        async with self._turn:
            if name in self.names:
                await self._run("hide", name, None)
                self.names.remove(name)

    async def _run(self, verb: str, name: str, mount: int | None) -> None:
        given = {_INIT: self._inner.pidfd} if mount is None else {_INIT: self._inner.pidfd, _MOUNT: mount}
        pid = _start([PROGRAM, verb, name], given)
        code = os.waitstatus_to_exitcode(await _ended(pid))
        if code != 0:
            reason = os.strerror(code) if code > 0 else signal.strsignal(-code)
            raise UnavailableError(f"the checkpoint {name} cannot be attached or taken off inside: {reason}")


def _check(name: str) -> None:
    if not name or len(name) > NAME_MAX or "/" in name or "\0" in name or name in (".", ".."):
        raise InvalidError(f"{name[:80]!r} is no name of a checkpoint")


def _start(command: list[str], given: dict[int, int]) -> int:
    """Pid of a new child that has the descriptors `given`, each under its number."""
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number, fd in given.items()}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()]
        return os.posix_spawn(command[0], command, {}, file_actions=actions, setsigmask=())
    finally:
        for fd in high.values():
            os.close(fd)


def _reap(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


async def _ended(pid: int) -> int:
    """Wait status of a child; one that takes too long is killed."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:  # there is no descriptor left: nobody could watch it
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        raise InternalError(f"cannot watch a helper: {error.strerror}") from error
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    late = loop.call_later(_SECONDS, os.kill, pid, signal.SIGKILL)
    try:
        await ended.wait()
    finally:
        late.cancel()
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return _reap(pid)
