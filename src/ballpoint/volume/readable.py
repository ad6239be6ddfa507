"""A checkpoint's image, mounted for reading: nothing of it changes, and nothing on it is run as somebody else."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ballpoint.core.errors import CorruptError
from ballpoint.host import loop, mount, staging

# Documentation/filesystems/ext4/super.rst: at 1024, s_magic at 0x38, s_feature_incompat at 0x60.
_SUPERBLOCK, _SIZE = 1024, 1024
_MAGIC, _MAGIC_AT = 0xEF53, 0x38
_INCOMPAT_AT, _INCOMPAT_RECOVER = 0x60, 0x4
_ATTRIBUTES = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOATIME


def mount_readable(image: Path) -> int:
    """Mount the ext4 file system in `image` over a read-only loop device, which goes with its last user.

    Returns:
        A detached mount that `staging.close` closes; the caller owns it.

    Raises:
        CorruptError: it is no such file system, or its journal holds what it lacks. Without its journal it would be
            mounted happily, and not show files that had been fsynced.
        OSError: a step failed; the kernel's reason is in it.
    """
    _require_clean(image)
    device, fd = loop.attach(image, read_only=True)
    try:
        options = {"source": device, "ro": None, "noload": None, "no_prefetch_block_bitmaps": None}
        return staging.hold(mount.fsmount("ext4", options, _ATTRIBUTES))
    finally:
        os.close(fd)


def _require_clean(image: Path) -> None:
    with image.open("rb") as file:
        superblock = os.pread(file.fileno(), _SIZE, _SUPERBLOCK)
    if len(superblock) < _SIZE or struct.unpack_from("<H", superblock, _MAGIC_AT)[0] != _MAGIC:
        raise CorruptError(f"{image} is no ext4 file system")
    if struct.unpack_from("<I", superblock, _INCOMPAT_AT)[0] & _INCOMPAT_RECOVER:
        raise CorruptError(f"{image} was not frozen when it was taken", hint="its journal was not written out")
