"""The control group of one service, below its container's: what began in it ends with it, whatever it has become.

The agent makes it, and so it is the agent's. Only root inside can move a process out of it, who must mean to.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from contextlib import suppress

_KILL_AGAIN_SECONDS = 1.0
_EVENTS_MAX = 4096


class Group:
    """A group that is there.

    Args:
        parent: descriptor of the directory it is made in, borrowed.
        name: of its own.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: int, name: str) -> None:
        self._parent = parent
        self._name = name
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        self._directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        self._events = -1
        try:
            self._events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            self.procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except BaseException:
            for fd in (self._directory, self._events):
                if fd >= 0:
                    os.close(fd)
            raise

    def close(self) -> None:
        """Let go of its descriptors; who is in it stays. Idempotent."""
        for fd in (self._directory, self._events, self.procs):
            if fd >= 0:
                os.close(fd)
        self._directory = self._events = self.procs = -1

    def populated(self) -> bool:
        """Whether anybody lives in it, or below."""
        if self._events < 0:
            return False
        try:
            return b"populated 1" in os.pread(self._events, _EVENTS_MAX, 0)
        except OSError as error:
            if error.errno == errno.ENODEV:  # root inside has removed it, as it was empty
                return False
            raise

    def kill(self) -> None:
        """SIGKILL all in it and below; nothing once it was removed."""
        if self._directory < 0:
            return
        try:
            fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
            return
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)

    async def end(self) -> None:
        """Kill all in it and below, and wait until nobody is left, however long that takes."""
        if not self.populated():
            return
        # cgroup-v2.rst: a change wakes poll with POLLPRI; an event loop asks for POLLIN only, which is always there.
        poll = select.epoll()
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        try:
            poll.register(self._events, select.EPOLLPRI)
            loop.add_reader(poll.fileno(), changed.set)
            while True:
                # Again and again: it does not reach who is born into the group later.
                self.kill()
                if not self.populated():
                    return
                changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_AGAIN_SECONDS):
                        await changed.wait()
        finally:
            loop.remove_reader(poll.fileno())
            poll.close()

    def remove(self) -> None:
        """Remove it with the groups below, as far as they are empty, and let go of it."""
        if self._directory < 0:
            return
        with suppress(OSError):
            _remove_below(self._directory)
        with suppress(OSError):
            os.rmdir(self._name, dir_fd=self._parent)
        self.close()


def _remove_below(directory: int) -> None:
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            _remove_below(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)
