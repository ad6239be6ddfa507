"""The root filesystem of an inner container, made by the node at the claim.

overlay(lower: standard image, upper: a directory on the volume), both mapped to the instance's ids on the fly, so the
files on disk stay 0-based and any range may be picked next time. Nothing on disk is ever chowned.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ballpoint.core.errors import CorruptError
from ballpoint.host import mount, prctl, staging
from ballpoint.runtime.container.locker import Locker

UPPER, WORK = "upper", "work"
_RDONLY = 1  # ST_RDONLY of statvfs(3)


@dataclass(frozen=True)
class Bind:
    """A directory of the volume that appears in the container as it is, without the overlay.

    Attributes:
        source: path on the volume, relative to its root.
        target: absolute path inside.
    """

    source: str
    target: str


class RootFilesystem:
    """Detached mounts ready to be handed in. Closing it lets go of this side's descriptors only."""

    def __init__(self, root: int, binds: list[tuple[str, int]], stack: ExitStack) -> None:
        self.root = root
        self.binds = binds
        self._stack = stack

    def close(self) -> None:
        self._stack.close()


def make(image: int, volume: int, binds: Sequence[Bind], userns: int, root_uid: int, locker: Locker) -> RootFilesystem:
    """Mount the root of one container.

    Must run in a thread that runs nothing else meanwhile: it borrows the container's root id for its file access.

    Args:
        image: mount of the standard image, as `staging.hold` returned it.
        volume: mount of the volume, likewise.
        userns: the container's user namespace.
        root_uid: host uid of the container's root.

    Raises:
        CorruptError: the overlay came up read-only.
        OSError: a step failed; the kernel's reason is in it.
    """
    with ExitStack() as stack:

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        # All of these but the locked copies are needed here only: an overlay has copies of its layers, too.
        sources = stack.enter_context(ExitStack())

        def held(fd: int) -> int:
            sources.callback(staging.close, staging.hold(fd))
            return fd

        lower = held(_mapped(image, "", userns))
        disk = held(_mapped(volume, "", userns))
        with prctl.file_access_as(root_uid):
            plain = mount.fsmount(
                "overlay",
                {
                    "source": "sprite",
                    "lowerdir": f"/proc/self/fd/{lower}",
                    "upperdir": f"/proc/self/fd/{disk}/{UPPER}",
                    "workdir": f"/proc/self/fd/{disk}/{WORK}",
                    "redirect_dir": "on",
                },
                mount.MOUNT_ATTR_NODEV,
            )
        overlay = held(plain)
        # With an upper whose ids do not map, overlayfs says nothing and mounts read-only.
        if os.fstatvfs(overlay).f_flag & _RDONLY:
            raise CorruptError("the sprite's root came up read-only", hint="dmesg says why")
        root = owned(locker.lock(overlay))
        made = []
        for bind in binds:
            mapped = held(_mapped(volume, bind.source, userns, mount.MOUNT_ATTR_NODEV))
            made.append((bind.target, owned(locker.lock(mapped))))
        sources.close()
        return RootFilesystem(root, made, stack.pop_all())


def make_readable(image: int, disk: int, userns: int, root_uid: int, locker: Locker) -> int:
    """Mount what a checkpoint holds, for reading only: its upper directory over the standard image, with mapped ids.

    Must run in a thread that runs nothing else meanwhile, as `make`.

    Args:
        image, disk: mounts of the standard image and of the checkpoint's disk, as `staging.hold` returned them.
        userns, root_uid: as for `make`.

    Returns:
        A detached mount whose flags nobody inside can clear; the caller owns it.
    """
    with ExitStack() as sources:

        def held(fd: int) -> int:
            sources.callback(staging.close, staging.hold(fd))
            return fd

        lower = held(_mapped(image, "", userns))
        upper = held(_mapped(disk, "", userns))
        attributes = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
        with prctl.file_access_as(root_uid):
            # Without an upper layer, no mount of it is ever writable, whatever its flags.
            plain = mount.fsmount(
                "overlay",
                {
                    "source": "checkpoint",
                    "lowerdir": f"/proc/self/fd/{upper}/{UPPER}:/proc/self/fd/{lower}",
                    "redirect_dir": "follow",
                },
                attributes,
            )
        return locker.lock(held(plain))


def _mapped(source: int, path: str, userns: int, attributes: int = 0) -> int:
    fd = mount.open_tree(path, source)
    try:
        mount.mount_setattr(fd, set_=mount.MOUNT_ATTR_IDMAP | attributes, userns=userns)
    except BaseException:
        os.close(fd)
        raise
    return fd
