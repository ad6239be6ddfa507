"""mallopt(3): how this process's C library gets and gives back memory."""

from __future__ import annotations

from ballpoint.host.libc import libc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed(size: int) -> None:
    """Let the C library keep up to `size` freed bytes at the heap's end, and take blocks of less than that from it.

    By default it gives them back above 128 KiB, and a program that takes and frees a large buffer again and again pays
    for every page of it anew.
    """
    libc.mallopt(_M_TRIM_THRESHOLD, size)
    libc.mallopt(_M_MMAP_THRESHOLD, size)
