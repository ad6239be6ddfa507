"""Snapshots of a disk: files in the pool that share its extents, and that nobody can change.

    volumes/ID/snapshots/SEQUENCE.img

A snapshot exists once it and its directory are fsynced: a FICLONE alone is gone after a crash of the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ballpoint.core import steps
from ballpoint.core.errors import CorruptError
from ballpoint.host import filesystem
from ballpoint.host.files import fsync_directory, remove_file

_DIRECTORY = "snapshots"

_WRITTEN = steps.declare("keep: the snapshot is written")


def path_of(volume: Path, sequence: int) -> Path:
    """Where the snapshot is of the volume in directory `volume`."""
    return volume / _DIRECTORY / f"{sequence}.img"


def flush(disk: Path) -> None:
    """Write out what is dirty in the page cache of the image file, so that a clone of it is quick.

    FICLONE holds writers up while it writes out itself; fdatasync(2) does not.
    """
    fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def clone(source: Path, volume: Path, sequence: int) -> None:
    """Make a snapshot of the image `source`, as it is at this moment; `keep` makes it last.

    A file that an interrupted attempt left under this sequence is replaced.
    """
    target = path_of(volume, sequence)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    remove_file(target)
    from_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        to_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            filesystem.ficlone(from_fd, to_fd)
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)


def keep(volume: Path, sequence: int) -> None:
    """Make a snapshot durable, and let nobody write to it."""
    with opened(volume, sequence) as fd:
        os.fsync(fd)
        steps.reach(_WRITTEN)
    protect(volume, sequence)
    fsync_directory(path_of(volume, sequence).parent)
    fsync_directory(volume)


def protect(volume: Path, sequence: int) -> None:
    """Let nobody write to a snapshot."""
    with opened(volume, sequence) as fd:
        filesystem.set_immutable(fd, True)


@contextmanager
def opened(volume: Path, sequence: int) -> Iterator[int]:
    """A descriptor to read a snapshot by.

    Raises:
        CorruptError: it is not there.
    """
    path = path_of(volume, sequence)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptError(f"the snapshot {path} is not there", hint="the pool has lost a file") from error
    try:
        yield fd
    finally:
        os.close(fd)


def identity(volume: Path, sequence: int) -> tuple[int, int] | None:
    """Inode and generation of a snapshot's file; None where there is none."""
    try:
        fd = os.open(path_of(volume, sequence), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(fd).st_ino, filesystem.generation(fd)
    finally:
        os.close(fd)


def allocated(volume: Path, sequence: int) -> int:
    """Bytes of a snapshot that are no hole."""
    return path_of(volume, sequence).stat().st_blocks * 512


def remove(volume: Path, sequence: int) -> None:
    """Remove a snapshot. Idempotent."""
    remove_file(path_of(volume, sequence))


def remove_others(volume: Path, needed: set[int]) -> list[int]:
    """Remove all snapshots that are not in `needed`. Idempotent. Returns the sequences of those removed."""
    removed = []
    for entry in sorted((volume / _DIRECTORY).glob("*.img")):
        if (sequence := int(entry.stem)) not in needed:
            remove_file(entry)
            removed.append(sequence)
    return removed
