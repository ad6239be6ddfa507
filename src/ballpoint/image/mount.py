"""An image as a file system."""

from __future__ import annotations

import errno
import os

from ballpoint.core.errors import CorruptError, UnavailableError
from ballpoint.host import loop, mount, staging
from ballpoint.image.catalogue import Image

_ATTRIBUTES = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV
# What erofs answers to a file that is none, or a damaged one (fs/erofs/super.c).
_DAMAGED = (errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO)


def mount_image(image: Image) -> int:
    """Read-only mount of `image` at no path; the caller owns the descriptor, and closes it by `staging.close`.

    Straight from the file where the kernel can (6.12 and later), else through a loop device that goes with the mount.

    Raises:
        CorruptError: the file is damaged.
        UnavailableError: the kernel has no erofs, or no loop device is free.
    """
    try:
        return staging.hold(_mount(image))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UnavailableError("this kernel has no erofs", hint="modprobe erofs; ballpoint doctor") from error
        if error.errno in _DAMAGED:
            hint = f"rm -r {image.path.parent}, then ballpoint image build {image.recipe}"
            raise CorruptError(f"the image {image.digest[:16]} cannot be mounted: {error}", hint=hint) from error
        raise


def _mount(image: Image) -> int:
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
