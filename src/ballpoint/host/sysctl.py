"""Kernel settings under /proc/sys; those below `net/` are of the calling thread's network namespace."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/proc/sys")


def sysctl(name: str) -> str | None:
    """The value of `name` (its path below /proc/sys), or None where this kernel has no such setting."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def set_sysctl(name: str, value: str) -> bool:
    """Set `name` to `value`. Returns False where this kernel has no such setting."""
    try:
        fd = os.open(f"{_ROOT}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
    return True
