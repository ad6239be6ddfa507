"""System calls that Python lacks, by number through libc's `syscall(2)`; errno becomes an `OSError`.

Numbers are those of x86-64 and, from 424 on, of every architecture (the kernel unified them in 5.1).
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

SYS_pidfd_send_signal = 424
SYS_open_tree = 428
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_fspick = 433
SYS_pidfd_open = 434
SYS_clone3 = 435
SYS_close_range = 436
SYS_pidfd_getfd = 438
SYS_mount_setattr = 442

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100


def syscall(number: int, *args: object, what: str) -> int:
    """Make system call `number`; integers are passed as 64-bit values, the rest as ctypes takes it.

    Args:
        what: the call's name and object, for the error's text.

    Raises:
        OSError: it failed; `filename` holds `what`.
    """
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)
    return result
