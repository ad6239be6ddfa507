"""Files that survive a crash: a reader sees the old content or the new, never half. And locks, which end with one."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballpoint.host import filesystem


def fsync_directory(path: Path) -> None:
    """Make the entries of directory `path` durable (a rename is not, before this)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make a file of a directory that nobody sees yet: its content is durable, its name with the directory's."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


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


def try_flock(fd: int) -> bool:
    """Take the lock of an open file, flock(2), until it is closed or this process ends. False where another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made where there is none; waits for another that has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_tree(path: Path) -> bool:
    """Remove `path` and all below it, also immutable files, not crossing symbolic links. Returns whether it was."""

    def retry(remove: Callable[[str], object], name: str, failure: tuple[Any, BaseException, Any]) -> None:
        if not isinstance(failure[1], PermissionError) or remove is not os.unlink:
            raise failure[1]
        remove_file(Path(name))

    try:
        shutil.rmtree(path, onerror=retry)
    except FileNotFoundError:
        return False
    return True


def remove_file(path: Path) -> None:
    """Remove a file, also an immutable one. Idempotent."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        filesystem.set_immutable(fd, False)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
