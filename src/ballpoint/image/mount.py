"""An image as a file system."""

from __future__ import annotations

import errno
import os

from ballpoint.host import loop, mount
from ballpoint.image.catalogue import Image

_ATTRIBUTES = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV


def mount_image(image: Image) -> int:
    """Detached read-only mount of `image`; the caller owns the descriptor.

    Straight from the file where the kernel can (6.12 and later), else through a loop device that goes with the mount.
    """
    try:
        return mount.fsmount("erofs", {"source": str(image.path), "ro": None}, _ATTRIBUTES)
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
    device, fd = loop.attach(image.path, read_only=True)
    try:
        return mount.fsmount("erofs", {"source": device, "ro": None}, _ATTRIBUTES)
    finally:
        os.close(fd)
