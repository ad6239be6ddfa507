"""Where agents keep what sessions wrote (agent/sessions/journal.py): a file system of the node's own, one directory for
each instance.

An agent writes there without asking, so that neither a dead node nor a full disk of its sprite stops it; whoever has
taken an agent's place may do so without end. So it is a file system of a fixed size, and the host's own has no more to
lose than that. It is worth nothing once no instance runs: then a node makes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from ballpoint.host import filesystem, loop, mount, process, staging
from ballpoint.host.files import remove_tree

_MIB = 1 << 20
# Sparse; what it takes of the host's disk is what is in it.
_SIZE, _SIZE_MIN, _SHARE = 8 << 30, 256 * _MIB, 1 / 8
_MKFS_SECONDS = 60.0
_REMOVE_SECONDS = 60.0
# Nothing in it outlives a crash of its host, so it needs no journal of its own.
_MKFS = (
    "mkfs.ext4",
    "-q",
    "-F",
    "-b",
    "4096",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1",
)
_ATTRIBUTES = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC | mount.MOUNT_ATTR_NOATIME


class JournalSpace:
    """The journals of one node's instances.

    Args:
        data: the node's directory, where the file is that holds the file system.
    """

    def __init__(self, data: Path) -> None:
        self._image = data / "journals.img"
        self._root = -1

    def open(self) -> None:
        """Mount it; made anew unless instances use it. Idempotent."""
        if self._root >= 0:
            return
        device = loop.find_by_backing(self._image)
        if device is not None:  # one image behind two devices destroys itself
            self._root = self._mounted(device)
            return
        self._image.unlink(missing_ok=True)
        room = int(filesystem.free_bytes(self._image.parent) * _SHARE)
        with self._image.open("wb") as file:
            file.truncate(max(_SIZE_MIN, min(_SIZE, room)))
        process.run([*_MKFS, str(self._image)], timeout=_MKFS_SECONDS)
        device, fd = loop.attach(self._image, direct_io=loop.may_be_direct(self._image.parent))
        try:
            loop.bound_dirty_data(device, None)
            self._root = self._mounted(device)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of it; instances go on using it. Idempotent."""
        if self._root >= 0:
            staging.close(self._root)
            self._root = -1

    def forget(self) -> None:
        """Remove the file, when no instance is left. Idempotent."""
        self._image.unlink(missing_ok=True)

    def make(self, instance_id: str, uid: int) -> int:
        """Make an instance's directory, which belongs to `uid`.

        Returns:
            A detached mount of it, from which no path leads out; the caller owns it.
        """
        path = self._path(instance_id)
        path.mkdir(mode=0o700)
        os.chown(path, uid, uid)
        return mount.open_tree(path)

    def remove(self, instance_id: str) -> None:
        """Remove an instance's directory. Idempotent."""
        if self._root < 0:
            return
        try:
            remove_tree(self._path(instance_id))
        except RecursionError:  # whoever has taken an agent's place made it deeper than Python can follow
            path = f"/proc/{os.getpid()}/fd/{self._root}/{instance_id}"
            process.run(["rm", "-rf", "--one-file-system", path], timeout=_REMOVE_SECONDS)

    def known(self) -> set[str]:
        """Ids of the instances that have a directory."""
        return set() if self._root < 0 else {path.name for path in self._path("").iterdir()} - {"lost+found"}

    def _path(self, instance_id: str) -> Path:
        return Path(f"/proc/self/fd/{self._root}", instance_id)

    def _mounted(self, device: str) -> int:
        return staging.hold(mount.fsmount("ext4", {"source": device}, _ATTRIBUTES))
