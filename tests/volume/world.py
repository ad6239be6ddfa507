"""Helpers of the tests of volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ballpoint.host import filesystem
from ballpoint.volume.changed import BLOCK
from ballpoint.volume.pool import AttachedVolume

MIB = 1 << 20


def path(fd: int, *below: str) -> Path:
    return Path(f"/proc/self/fd/{fd}", *below)


def grow(volume: AttachedVolume, size: int, name: str = "upper/data") -> None:
    """Append `size` bytes that reach the pool."""
    with path(volume.mount, name).open("ab") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())


def is_frozen(volume: AttachedVolume) -> bool:
    """Whether the file system itself is frozen, whatever anybody has noted down."""
    with volume.opened() as root:
        if filesystem.fifreeze(root):
            filesystem.fithaw(root)
            return False
        return True


def blocks_of(ranges: tuple[range, ...]) -> set[int]:
    numbers = [number for each in ranges for number in each]
    assert numbers == sorted(set(numbers))
    assert all(ranges)
    return set(numbers)


def content(fd: int, block: int) -> bytes:
    return os.pread(fd, BLOCK, block * BLOCK).rstrip(b"\0")


def filled(fd: int) -> Iterator[int]:
    """Blocks in which the file has data; what lies between reads as zeros."""
    size, offset, last = os.fstat(fd).st_size, 0, -1
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        yield from range(max(last + 1, offset // BLOCK), -(-end // BLOCK))
        last, offset = -(-end // BLOCK) - 1, end


def truly_changed(old: int, new: int) -> set[int]:
    return {block for block in {*filled(old), *filled(new)} if content(old, block) != content(new, block)}
