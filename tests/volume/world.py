"""Helpers of the tests of volumes."""

from __future__ import annotations

import os
from pathlib import Path

from ballpoint.host import filesystem
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
