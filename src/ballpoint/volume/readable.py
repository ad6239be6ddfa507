"""A checkpoint's image, mounted for reading: nothing of it changes, and nothing on it is run as somebody else."""

from __future__ import annotations

import os
from pathlib import Path

from ballpoint.core.errors import CorruptError
from ballpoint.host import loop, mount, staging
from ballpoint.volume.superblock import read_superblock

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
    if read_superblock(image).needs_recovery:
        raise CorruptError(f"{image} was not frozen when it was taken", hint="its journal was not written out")
