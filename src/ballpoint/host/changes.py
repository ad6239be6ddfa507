"""Counts of changes in a file that several processes have mapped: who may change nothing learns of each at once.

Format (native): u64 changes that were begun, u64 that were ended. A change is begun before anybody can see any of it,
and ended once everybody does. So what was found out while both counts were equal holds as long as both stay what they
are; one that was cut off by a crash leaves them unequal until the next change has ended.

A file and not the index of SQLite's log, which has such a count, too (sqlite.org/walformat.html 2.1): who can read that
can lock it, and so stop all writers, and when its owner closes a copy of its descriptor, SQLite loses its own locks.
Locks of this file mean nothing.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_SIZE = 16
_BEGUN, _ENDED = 0, 1


def is_settled(look: bytes) -> bool:
    """Whether no change was under way, nor cut off, at a look. One look, as another one may see the next change."""
    return look[: _SIZE // 2] == look[_SIZE // 2 :]


class Changes:
    """The counts at `path`, made where there are none.

    Args:
        counts: they are changed here, and not only read.
    """

    def __init__(self, path: Path, *, counts: bool) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE:
                os.ftruncate(fd, _SIZE)  # to zeros, whoever else does it at the same time
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if counts else 0)
            self._map = mmap.mmap(fd, _SIZE, prot=protection)
        finally:
            os.close(fd)
        self._counts = memoryview(self._map).cast("Q")

    def look(self) -> bytes:
        """What is equal as long as no change is begun or ended."""
        return self._map[:_SIZE]

    @property
    def settled(self) -> bool:
        """Whether no change is under way, nor was cut off."""
        return is_settled(self.look())

    def begin(self) -> int:
        """Before a change, of which there is one at a time. Returns its number."""
        number = self._counts[_BEGUN] + 1
        self._counts[_BEGUN] = number
        return number

    def end(self, number: int) -> None:
        """After it; the next one may have begun. Where an earlier one is late, they look unequal until the next."""
        self._counts[_ENDED] = number

    def change(self) -> None:
        """One that takes place between two looks of this process."""
        self.end(self.begin())

    def close(self) -> None:
        self._counts.release()
        self._map.close()
