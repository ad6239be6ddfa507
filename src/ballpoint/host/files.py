"""Files that survive a crash: a reader sees the old content or the new, never half."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make the entries of directory `path` durable (a rename is not, before this)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace `path` by `data`. A crash leaves the old file or the new one.

    Args:
        durable: the new one is on the disk when this returns. Not needed by what is worth nothing after a reboot.
    """
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    if durable:
        fsync_directory(path.parent)


def remove_tree(path: Path) -> bool:
    """Remove `path` and all below it, not crossing symbolic links. Returns whether it was there."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return False
    return True
