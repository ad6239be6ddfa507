"""prctl(2), keyctl(2), the file-system ids and pidfd calls: what a process says about itself or of another it holds."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ballpoint.host.libc import SYS_pidfd_getfd, SYS_pidfd_send_signal, libc, syscall

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECBIT_NO_SETUID_FIXUP = 1 << 2

_SYS_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_SECCOMP = 317 if os.uname().machine == "x86_64" else 277
_SECCOMP_SET_MODE_FILTER = 1


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one integer argument."""
    if libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"prctl {option}")


def set_name(name: str) -> None:
    """Name this thread, as ps shows it (15 bytes)."""
    libc.prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]), 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends; at once where it has ended already.

    The kernel forgets it when this process changes its user id, so call it again after that.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def join_session_keyring() -> None:
    """Leave the inherited session keyring for a new anonymous one."""
    syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0, what="keyctl join_session_keyring")


def install_seccomp_filter(program: bytes) -> None:
    """Add a seccomp(2) filter to this thread and what it starts; it stays for good. Needs CAP_SYS_ADMIN.

    Args:
        program: array of struct sock_filter (8 bytes each).
    """
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: unsigned short len, padding, pointer
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(header), what="seccomp")


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsgid(2) and setfsuid(2) of this thread.

    Raises:
        OSError: the ids did not take; the calls themselves cannot say so.
    """
    libc.setfsgid(ctypes.c_uint(gid))
    libc.setfsuid(ctypes.c_uint(uid))
    # Given an id that is invalid, the calls change nothing and return the one in force.
    if libc.setfsgid(ctypes.c_uint(-1)) != gid or libc.setfsuid(ctypes.c_uint(-1)) != uid:
        raise OSError(1, "setfsuid did not take effect", str(uid))


def pidfd_send_signal(pidfd: int, signal: int) -> bool:
    """Signal the process behind `pidfd`. Returns False where it has ended already."""
    try:
        syscall(SYS_pidfd_send_signal, pidfd, signal, None, 0, what="pidfd_send_signal")
    except ProcessLookupError:
        return False
    return True


def wait_pidfd(pidfd: int, seconds: float) -> bool:
    """Wait until the process behind `pidfd` has ended. Returns False where it has not within `seconds`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of descriptor `fd` of the process behind `pidfd`."""
    return syscall(SYS_pidfd_getfd, pidfd, fd, 0, what=f"pidfd_getfd {fd}")


@contextmanager
def file_access_as(uid: int) -> Iterator[None]:
    """Let this thread act on files as `uid` while it keeps every capability, as overlayfs does with who mounts it."""
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    try:
        set_fs_ids(uid, uid)
        yield
    finally:
        set_fs_ids(0, 0)
        prctl(PR_SET_SECUREBITS, 0)
