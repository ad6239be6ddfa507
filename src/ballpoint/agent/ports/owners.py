"""Which process a socket belongs to, by /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ballpoint.host import namespaces

# Of one process, and of one search. Listening sockets are opened early, and so have low numbers.
DESCRIPTORS_MOST, SEARCH_MOST = 1024, 20_000
_STEP = 500


class Owner(NamedTuple):
    """A process.

    Attributes:
        pid: as it is numbered inside the sprite.
        session: its session's leader, as the agent numbers it.
    """

    pid: int
    session: int


NOBODY = Owner(0, 0)


def find(inodes: set[int], proc: Path) -> Iterator[dict[int, Owner]]:
    """Look for who holds the sockets `inodes`, in steps of some milliseconds at most.

    The newest processes are looked at first, as a new socket is most often theirs. Where there are too many processes
    or descriptors, some owners are not found.

    Yields:
        after each step, what it found.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    looked = step = 0
    found: dict[int, Owner] = {}
    for pid in sorted((int(each.name) for each in proc.iterdir() if each.name.isdecimal()), reverse=True):
        count = 0
        for link in _links(proc / str(pid) / "fd"):
            count += 1
            if link in wanted:
                found[wanted.pop(link)] = owner(pid, proc)
        looked, step = looked + count + 1, step + count + 1
        if not wanted or looked > SEARCH_MOST:
            break
        if step > _STEP:
            yield found
            step, found = 0, {}
    yield found


def _links(directory: Path) -> Iterator[str]:
    """What the first descriptors of a process are; nothing of one that has ended or may not be looked at."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        with os.scandir(fd) as entries:
            for count, entry in enumerate(entries):
                if count == DESCRIPTORS_MOST:
                    return
                try:
                    yield os.readlink(entry.name, dir_fd=fd)
                except OSError:  # it was closed
                    continue
    except OSError:
        return
    finally:
        os.close(fd)


def owner(pid: int, proc: Path) -> Owner:
    """The process numbered `pid` here; `NOBODY` where it has ended."""
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
        status = (proc / str(pid) / "status").read_bytes()
    except OSError:
        return NOBODY
    return Owner(inner_pid(status, pid), session_of(stat))


def session_of(stat: bytes) -> int:
    """Field 6 of proc_pid_stat(5). A process chooses its own name, in field 2, which may hold anything but a NUL."""
    fields = stat.rpartition(b")")[2].split()
    return int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 0


def inner_pid(status: bytes, pid: int) -> int:
    """Of a proc_pid_status(5), the number in the pid namespace below this one. `pid` if there is none."""
    numbers = namespaces.ns_pids(status)
    return numbers[1] if len(numbers) > 1 else pid
