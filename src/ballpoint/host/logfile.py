"""A log that many processes append to, kept from growing without bound.

A node's processes write to one standard error, also those that crash, and none of them can be told to open another
file. So a full log is copied and then emptied in place: an O_APPEND descriptor (open(2)) goes on at the new end. What
is written between the last read and the truncation, some microseconds, is in neither file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MODE = 0o600  # it tells what sprites and addresses there are


def open_log(path: Path) -> int:
    """A descriptor that appends to `path`, which is made if it is not there and is its owner's alone; the caller's."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    os.fchmod(fd, MODE)
    return fd


def previous(path: Path) -> Path:
    """Where the log `path` is kept from before it was emptied."""
    return path.with_name(f"{path.name}.1")


def bound(path: Path, most: int) -> bool:
    """Empty the log `path` if it has more than `most` bytes; what it said becomes `previous`, whose content goes.

    A crash half-way leaves the log as it was, and perhaps its copy. Only one process may do this.

    Returns:
        Whether it was emptied.

    Raises:
        OSError: it could not be copied, and is as it was.
    """
    try:
        if path.stat().st_size <= most:
            return False
    except FileNotFoundError:
        return False
    copy = path.with_name(f".{path.name}.new")
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, MODE)
    with path.open("r+b") as full, os.fdopen(fd, "wb") as kept:
        shutil.copyfileobj(full, kept)
        copy.replace(previous(path))
        shutil.copyfileobj(full, kept)  # what was written meanwhile
        kept.flush()
        full.truncate(0)
    return True
