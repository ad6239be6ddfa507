"""Namespaces and process creation: clone3(2), setns(2), unshare(2), pivot_root(2), and the NS_GET_* ioctls."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from ballpoint.host.libc import SYS_clone3, libc, syscall

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# include/uapi/linux/nsfs.h: _IO(0xb7, n)
_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_NS_GET_NSTYPE = 0xB703
_NS_GET_OWNER_UID = 0xB704

_SYS_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41
_SIGCHLD = 17

# The raw clone must not release the GIL between the fork hooks, so it goes through PyDLL.
_python = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long


def clone3(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """Fork this single-threaded interpreter into new namespaces, as os.fork does.

    Args:
        flags: CLONE_NEW*; CLONE_PIDFD is always added.
        cgroup: descriptor of the v2 cgroup directory the child is born in.

    Returns:
        (pid, pidfd) in the parent, (0, -1) in the child.

    Raises:
        OSError: errno of clone3(2).
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup is not None else 0)
    # struct clone_args, version 2 (88 bytes): flags pidfd child_tid parent_tid exit_signal stack stack_size tls
    # set_tid set_tid_size cgroup
    arguments = struct.pack(
        "=11Q", flags, ctypes.addressof(pidfd), 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, cgroup if cgroup is not None else 0
    )
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _python.syscall(ctypes.c_long(SYS_clone3), ctypes.byref(buffer), ctypes.c_long(len(arguments)))
    errno = ctypes.get_errno()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(errno, os.strerror(errno), "clone3")
    return int(pid), pidfd.value


def setns(fd: int, kinds: int) -> None:
    """Join the namespaces behind `fd` (a namespace file, or a pidfd with several CLONE_NEW* kinds)."""
    if libc.setns(ctypes.c_int(fd), ctypes.c_int(kinds)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"setns {kinds:#x}")


def unshare(kinds: int) -> None:
    """Leave the present namespaces of `kinds` for new ones."""
    if libc.unshare(ctypes.c_int(ctypes.c_int32(kinds).value)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"unshare {kinds:#x}")


def pivot_root(new: str | Path, old: str | Path) -> None:
    """Make `new` the root and put the old root at `old`; "." for both stacks the old one underneath."""
    syscall(_SYS_PIVOT_ROOT, os.fsencode(new), os.fsencode(old), what=f"pivot_root {new}")


def ns_type(fd: int) -> int:
    """CLONE_NEW* kind of the namespace behind `fd`. OSError (ENOTTY) where it is no namespace."""
    return fcntl.ioctl(fd, _NS_GET_NSTYPE)


def ns_userns(fd: int) -> int:
    """A new descriptor of the user namespace that owns the namespace behind `fd`."""
    return fcntl.ioctl(fd, _NS_GET_USERNS)


def ns_parent(fd: int) -> int:
    """A new descriptor of the parent of the user or pid namespace behind `fd`."""
    return fcntl.ioctl(fd, _NS_GET_PARENT)


def ns_owner_uid(fd: int) -> int:
    """The uid that made the user namespace behind `fd`, as this process sees it."""
    uid = bytearray(4)
    fcntl.ioctl(fd, _NS_GET_OWNER_UID, uid)
    return int(struct.unpack("=I", uid)[0])


def ns_pids(status: bytes) -> list[int]:
    """NSpid of a proc_pid_status(5): a process's number in our pid namespace, and in each below it that it is in.

    A process chooses its own name, of any bytes, in a line before; in it only line feeds are escaped.
    """
    line = next((line for line in status.split(b"\n") if line.startswith(b"NSpid:")), b"")
    return [int(number) for number in line.split()[1:] if number.isdigit()]
