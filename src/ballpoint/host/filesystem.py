"""File-system calls: reflinks, freezing, trimming, extent hints, flags (ioctl_ficlonerange(2), syncfs(2), fs.h)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from ballpoint.host import mount
from ballpoint.host.libc import libc

_FICLONE = 0x40049409
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FITRIM = 0xC0185879
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IOC_GETVERSION = 0x80087601
_FS_IMMUTABLE_FL = 0x10
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
# struct fsxattr: fsx_xflags fsx_extsize fsx_nextents fsx_projid fsx_cowextsize fsx_pad[8]
_FSXATTR = struct.Struct("=5I8s")
_FS_XFLAG_COWEXTSIZE = 0x00010000
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x1, 0x2


def ficlone(source: int, target: int) -> None:
    """Make the file `target` share all extents of `source`. Not durable before an fsync of the target."""
    fcntl.ioctl(target, _FICLONE, source)


def supports_reflink(directory: Path) -> bool:
    """Whether files in `directory` can share extents: tried, not guessed."""
    first, second = directory / ".reflink-probe-1", directory / ".reflink-probe-2"
    try:
        first.write_bytes(b"x" * 4096)
        with first.open("rb") as source, second.open("wb") as target:
            try:
                ficlone(source.fileno(), target.fileno())
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
                    return False
                raise
        return True
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)


def set_cowextsize(fd: int, size: int) -> None:
    """Hint that a write to a shared extent of the XFS file `fd` shall copy `size` bytes around it, not the default 128
    KiB, which takes 24 times the space under random writes."""
    state = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, state)
    flags, extsize, extents, project, _, padding = _FSXATTR.unpack(state)
    changed = _FSXATTR.pack(flags | _FS_XFLAG_COWEXTSIZE, extsize, extents, project, size, padding)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, bytearray(changed))


def extent_count(fd: int) -> int:
    """Of how many extents the XFS file `fd` consists. The kernel knows without looking at them."""
    state = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, state)
    return int(_FSXATTR.unpack(state)[2])


def is_immutable(fd: int) -> bool:
    """Whether nobody may write to the file `fd` (lsattr(1), i)."""
    flags = ctypes.c_long(0)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    return bool(flags.value & _FS_IMMUTABLE_FL)


def set_immutable(fd: int, immutable: bool) -> None:
    """Let nobody write to, rename or unlink the file `fd`, not even root (chattr(1), +i); or let everybody again."""
    flags = ctypes.c_long(0)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    wanted = flags.value | _FS_IMMUTABLE_FL if immutable else flags.value & ~_FS_IMMUTABLE_FL
    if wanted != flags.value:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, ctypes.c_long(wanted))


def generation(fd: int) -> int:
    """What tells the file `fd` from an earlier one that had the same inode number."""
    number = ctypes.c_long(0)
    fcntl.ioctl(fd, _FS_IOC_GETVERSION, number)
    return number.value & 0xFFFFFFFF


def syncfs(fd: int) -> None:
    """Write everything out that is dirty in the file system of `fd`."""
    if libc.syncfs(fd) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")


def fifreeze(fd: int) -> bool:
    """Freeze the file system of `fd`: writers wait. Returns False where it was frozen already."""
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def fithaw(fd: int) -> bool:
    """Thaw the file system of `fd`. Returns False where it was not frozen."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def fitrim(fd: int, start: int, length: int, minimum: int) -> int | None:
    """Give unused blocks of the file system of `fd` back to the device, in runs of at least `minimum` bytes.

    Args:
        start, length: where to look, in bytes.

    Returns:
        Bytes given back; None where `start` is beyond the file system's end.
    """
    request = bytearray(struct.pack("=3Q", start, length, minimum))
    try:
        fcntl.ioctl(fd, _FITRIM, request)
    except OSError as error:
        if error.errno == errno.EINVAL and start:
            return None
        raise
    return int(struct.unpack("=3Q", request)[1])


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give `length` bytes of a file from `start` on back to the file system; they read as zeros (fallocate(2))."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"punch a hole: {os.strerror(number)}")


def kind(path: Path) -> str:
    """The kind of file system that `path` lies on, as mount(8) names it, by the longest mount point above it."""
    resolved = path.resolve()
    best, found = "", ""
    for each in mount.mounts():
        place = Path(each.point)
        if (resolved == place or place in resolved.parents) and len(each.point) >= len(best):
            best, found = each.point, each.kind
    return found


def free_bytes(path: Path) -> int:
    """Bytes an unprivileged writer may still use on the file system of `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
