"""What the blocks of a state of a disk are read from, by many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from ballpoint.volume.log.blob import BLOCK_BYTES

T = TypeVar("T")


class Source:
    """A file that holds a state of a disk, or two: whoever is about to change the one moves readers to another.

    Args:
        fd: a descriptor of the file, which this owns from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._fds = [fd]
        self._closing = threading.Lock()

    def block(self, number: int) -> bytes:
        """A block of it, which ends as if zeros followed."""
        return self.steady(lambda fd: os.pread(fd, BLOCK_BYTES, number * BLOCK_BYTES)).ljust(BLOCK_BYTES, b"\0")

    def steady(self, look: Callable[[int], T]) -> T:
        """What `look` finds in the file, which is given as a descriptor. It may be called again."""
        while True:
            fd = self._fd
            found = look(fd)
            if fd == self._fd:  # nobody has begun to change the file meanwhile
                return found

    def move(self, fd: int) -> None:
        """Read from another file from now on, which holds the same; the one before may be changed then.

        Args:
            fd: a descriptor of it, which this owns from now on, also where this has been closed meanwhile.
        """
        with self._closing:
            if self.closed:
                os.close(fd)
                return
            self._fds.append(fd)
            self._fd = fd

    def allocated(self) -> int:
        """Bytes of it that are no hole."""
        return os.fstat(self._fd).st_blocks * 512

    @property
    def closed(self) -> bool:
        return not self._fds

    def close(self) -> None:
        """Idempotent; nobody may be reading any more."""
        with self._closing:
            while self._fds:
                os.close(self._fds.pop())
