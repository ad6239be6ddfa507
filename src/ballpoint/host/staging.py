"""Detached mounts that can be copied and lain under an overlay, on kernels that take only attached ones for either.

From Linux 6.15 on, open_tree(2) copies a detached mount, and overlayfs takes one as a layer. Before, both want a mount
of the caller's own mount namespace. There, `hold` attaches it at a place of its own, on a tmpfs that is shared in the
sense of mount_namespaces(7): a namespace copied from this one loses the mount when this one does, so it pins nothing.
All goes with the process's mount namespace, which should therefore be one of its own.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import threading
from pathlib import Path

from ballpoint.core.config import RUN_ROOT
from ballpoint.host import mount

# Where the tmpfs is mounted; one directory for all processes, each of which sees its own.
PLACE = RUN_ROOT / "mounts"

_making = threading.Lock()
_numbers = itertools.count(1)


@functools.cache
def needed() -> bool:
    """Whether this kernel takes attached mounts only."""
    detached = mount.fsmount("tmpfs", {"source": "probe"})
    try:
        os.close(mount.open_tree("", detached))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True
    finally:
        os.close(detached)
    return False


def hold(fd: int) -> int:
    """Make the detached mount behind `fd` one that can be copied and lain under an overlay.

    Returns:
        `fd`, which from now on is to be closed by `close`. A failure has closed it.
    """
    try:
        if needed():
            place = Path(f"/proc/self/fd/{_stage()}", str(next(_numbers)))
            place.mkdir()
            mount.move_mount(fd, place)
            # It came to share what is mounted on it with its copies, because the tmpfs does.
            mount.mount_setattr(fd, propagation=mount.MS_PRIVATE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def close(fd: int) -> None:
    """Close what `hold` returned; the mount lives on only where something else uses it."""
    try:
        if needed():
            mount.umount2(f"/proc/self/fd/{fd}", mount.MNT_DETACH)
    finally:
        os.close(fd)


def _stage() -> int:
    """Descriptor of the tmpfs."""
    with _making:
        return _made_stage()


@functools.cache
def _made_stage() -> int:
    PLACE.mkdir(parents=True, exist_ok=True)
    fd = mount.fsmount("tmpfs", {"source": "mounts", "mode": "700", "size": "1m"})
    mount.move_mount(fd, PLACE)
    mount.mount_setattr(fd, propagation=mount.MS_SHARED)
    return fd
