"""The mount system calls: fsopen(2), fsconfig, fsmount(2), open_tree(2), move_mount(2), mount_setattr(2), fspick(2),
umount2(2).

A detached mount is a descriptor: it has no path, dies with its last holder, and is invisible to other processes, which
therefore cannot pin it by copying the mount table.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ballpoint.host.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_open_tree,
    libc,
    syscall,
)

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x100000

MS_RDONLY = 0x1
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_FSPICK_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def fsmount(kind: str, options: Mapping[str, str | None], attributes: int = 0) -> int:
    """Make a filesystem and return its detached mount: fsopen, fsconfig for each option, create, fsmount.

    Args:
        kind: filesystem type, such as "ext4" or "overlay".
        options: option -> value, or None for a flag; `source` is one of them.
        attributes: MOUNT_ATTR_* of the mount.

    Raises:
        OSError: with the kernel's own words for it (read back from the fsopen descriptor) where it gives any.
    """
    fs = syscall(SYS_fsopen, kind.encode(), _FSOPEN_CLOEXEC, what=f"fsopen {kind}")
    try:
        try:
            for name, value in options.items():
                command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
                text = None if value is None else value.encode()
                syscall(SYS_fsconfig, fs, command, name.encode(), text, 0, what=f"fsconfig {kind} {name}={value}")
            syscall(SYS_fsconfig, fs, _FSCONFIG_CMD_CREATE, None, None, 0, what=f"fsconfig {kind} create")
            return syscall(SYS_fsmount, fs, _FSMOUNT_CLOEXEC, attributes, what=f"fsmount {kind}")
        except OSError as error:
            said = _messages(fs)
            if said:
                raise OSError(error.errno, f"{error.strerror}: {said}", error.filename) from error
            raise
    finally:
        os.close(fs)


def reconfigure(path: str | Path, options: Mapping[str, str | None]) -> None:
    """Change the options of the filesystem mounted at `path`, for all its mounts (fspick(2)).

    Args:
        options: as `fsmount` takes them. Which of those left out stay as they are is each filesystem's own rule.
    """
    fs = syscall(SYS_fspick, AT_FDCWD, os.fsencode(path), _FSPICK_CLOEXEC, what=f"fspick {path}")
    try:
        for name, value in options.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else value.encode()
            syscall(SYS_fsconfig, fs, command, name.encode(), text, 0, what=f"fsconfig {path} {name}")
        syscall(SYS_fsconfig, fs, _FSCONFIG_CMD_RECONFIGURE, None, None, 0, what=f"fsconfig {path} reconfigure")
    finally:
        os.close(fs)


def _messages(fs: int) -> str:
    said: list[str] = []
    with suppress(OSError):
        while line := os.read(fs, 4096):
            said.append(line.decode(errors="replace").strip())
    return "; ".join(said)


def open_tree(path: str | Path, dir_fd: int = AT_FDCWD, *, clone: bool = True, recursive: bool = False) -> int:
    """Descriptor of the mount at `path`; with `clone`, of a detached copy of it. An empty path is `dir_fd` itself."""
    flags = _OPEN_TREE_CLOEXEC | (_OPEN_TREE_CLONE if clone else 0) | (AT_RECURSIVE if recursive else 0)
    if str(path) in ("", "."):
        path, flags = "", flags | AT_EMPTY_PATH
    return syscall(SYS_open_tree, dir_fd, os.fsencode(path), flags, what=f"open_tree {path}")


def move_mount(mount: int, path: str | Path, dir_fd: int = AT_FDCWD) -> None:
    """Attach the detached `mount` at `path`."""
    what = f"move_mount to {path}"
    syscall(SYS_move_mount, mount, b"", dir_fd, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH, what=what)


def mount_setattr(
    mount: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change attributes of the mount behind `mount`.

    Args:
        set_, clear: MOUNT_ATTR_*; IDMAP needs `userns`, a user namespace's descriptor, and a detached mount.
        propagation: MS_PRIVATE, MS_SLAVE or MS_SHARED.
    """
    attr = _MountAttr(set_, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attr)
    syscall(SYS_mount_setattr, mount, b"", flags, ctypes.byref(attr), size, what="mount_setattr")


def mount_at(path: str | Path, kind: str, options: Mapping[str, str | None], attributes: int = 0) -> None:
    """`fsmount`, attached at `path`."""
    fd = fsmount(kind, options, attributes)
    try:
        move_mount(fd, path)
    finally:
        os.close(fd)


def mount(source: str, target: str | Path, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2), for what the newer calls do not cover (remount, propagation of a path)."""
    result = libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {source} on {target}")


def umount2(target: str | Path, flags: int = 0) -> bool:
    """Unmount `target`. Returns False where nothing was mounted there."""
    if libc.umount2(os.fsencode(target), ctypes.c_int(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    raise OSError(number, os.strerror(number), f"umount2 {target}")


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        root: of the file system, what is mounted. options: of the file system, not of the mount.
    """

    root: str
    point: str
    kind: str
    options: list[str]


def mounts(mountinfo: str | None = None) -> Iterator[Mount]:
    """What is mounted here, in the kernel's order.

    Args:
        mountinfo: the text to read it from instead.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    for line in text.splitlines():
        # id parent dev ROOT POINT options... - KIND source OPTIONS
        front, _, back = line.partition(" - ")
        fields, (kind, _, options) = front.split(" "), back.split(" ", 2)
        yield Mount(fields[3], fields[4], kind, options.split(","))
