"""The volume pool of a node: where disk images live, share extents, and are attached from.

Layout below DATA/pool (docs/volume-layout.md): templates/KEY.img, staging/, trash/,
volumes/ID/{disk.img,volume.json,record.json,snapshots/}.
A volume exists from the rename out of staging/ to the rename into trash/; both directories are emptied at the start.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from ballpoint.core.errors import (
    DISK_FULL,
    BallpointError,
    ConflictError,
    CorruptError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from ballpoint.host import filesystem, loop, mount, process, staging
from ballpoint.host.files import fsync_directory, remove_tree, try_flock, write_new
from ballpoint.volume import snapshots
from ballpoint.volume.record import Record, read_record, write_first_record
from ballpoint.volume.superblock import DamagedDiskError, read_superblock

log = logging.getLogger(__name__)

_GIB = 1 << 30
_MIB = 1 << 20
# mkfs.xfs refuses a smaller one (300 MB, with some room for its log).
_POOL_MIN = 512 * _MIB
_POOL_SHARE = 0.8
_MKFS_SECONDS = 120.0
_DETACH_SECONDS = 10.0
# The kernel holds back this much dirty data before it makes writers wait; it must still fit when the pool fills up.
_DIRTY_BYTES = 1 * _GIB
_RESERVE_PER_VOLUME = 64 * _MIB
_RESERVE_MAX_SHARE = 0.25
# What one volume may have unwritten: 256 MiB costs a writer about a tenth, and a small pool has no room for that.
_LOOP_DIRTY_MIN, _LOOP_DIRTY_MAX, _LOOP_DIRTY_SHARE = 16 * _MIB, 256 * _MIB, 1 / 64

DIRECTORIES = ("upper", "work", "binds/docker", "binds/containers")
# No discard while mounted: trimming runs when the volume is idle. A journal that loses data makes the disk read-only.
# No reading ahead of block bitmaps: a kernel thread would go through the 800 groups of a disk of 100 GB at each mount.
_EXT4_OPTIONS = {"errors": "remount-ro", "data_err": "abort", "no_prefetch_block_bitmaps": None}
_EXT4_FEATURES = "64bit,metadata_csum,^fast_commit,^casefold,^quota"
_EXT4_EXTENDED = "assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0"
# Of volume.json; a higher one says that a later version of this program must be asked.
_FORMAT = 1
# What ext4 answers to a mount of something damaged: EUCLEAN and EBADMSG are its EFSCORRUPTED and EFSBADCRC.
_DAMAGED = {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ENOENT, errno.ENOTDIR}
# A check looks at what is in use of a disk: seconds, or a minute for one with millions of files.
_CHECK_SECONDS = 600.0
# e2fsck(8), exit code: errors were corrected, and the system should be rebooted, which is for mounted ones.
_E2FSCK_DONE = 1 | 2
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class PoolUsage:
    """Space of the pool, in bytes.

    Attributes:
        total, free: of the pool; free is never more than what the file system below still has.
        soft: below this much free space, cold data is given back.
        hard: below this, writers are stopped before data is lost.
    """

    total: int
    free: int
    soft: int
    hard: int

    @property
    def resume(self) -> int:
        """From this much free space on, stopped writers go on: half-way between the marks.

        Above the hard mark, so that they are not stopped at once again; below the soft one, as nothing need be left
        that could be given back up to there.
        """
        return (self.soft + self.hard) // 2


class AttachedVolume:
    """A volume whose file system is mounted, at no path.

    Attributes:
        id: the volume's.
        image: where its image is, as far as it was told; another one may have taken the name of a former disk's.
        mount: descriptor of the whole ext4 root.
        device: its loop device.
        repaired: damage that the kernel had met in its file system was repaired before it was mounted.
    """

    repaired = False

    def __init__(self, volume_id: str, image: Path, mount_fd: int, device: str, attachments: loop.Attachments) -> None:
        self._attachments = attachments
        self._file = loop.identity(image)
        self.id = volume_id
        self.image = image
        self.mount = mount_fd
        self.device = device

    @property
    def inode(self) -> int:
        """Of its image, which has it for as long as it is attached, under whatever name."""
        return self._file[1]

    def detach(self, timeout: float = _DETACH_SECONDS) -> None:
        """Let go of it, and prove that nobody else holds it. Idempotent.

        Raises:
            UnavailableError: something still uses it after `timeout` seconds; the image must not be touched.
        """
        if self.mount >= 0:
            staging.close(self.mount)
            self.mount = -1
        self._attachments.wait_file_released(self._file, self.image, timeout)

    def release(self) -> None:
        """Let go of this process's descriptor only; the sprite goes on using the disk."""
        if self.mount >= 0:
            staging.close(self.mount)
            self.mount = -1

    def moved(self, image: Path) -> None:
        """Say that its image has another name by now."""
        self.image = image

    def allocated(self) -> int:
        """Bytes of the pool its image takes, shared ones included."""
        return self.image.stat().st_blocks * 512

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor that takes ioctls; `mount` itself is only a path (O_PATH, fsmount(2))."""
        with _opened(self.mount) as root:
            yield root


class VolumePool:
    """One node's pool. All calls block for at most seconds; any thread may make them."""

    def __init__(self, root: Path, below: Path, lock: int, mounted: bool) -> None:
        self.root = root
        self._below = below
        self._lock = lock
        self._mounted = mounted
        self.volumes_directory = root / "volumes"
        # Between the look for a loop device and the making of one: two on one image destroy it.
        self._attaching = threading.Lock()
        self._attachments = loop.Attachments()

    @classmethod
    def open(cls, data: Path, *, pool_gb: int) -> VolumePool:
        """Open the pool below `data`, made if there is none, and empty what an interrupted step left.

        A directory on XFS with reflinks is used as it is. Otherwise pool.img is made beside it and mounted in this
        process's mount namespace; where an earlier process's volumes keep it alive, its loop device is used again,
        because one image behind two loop devices destroys itself.

        Args:
            pool_gb: apparent size of pool.img; 0 takes a share of the free space.

        Raises:
            ConflictError: another node uses this directory.
            UnavailableError: there is no room for a pool.
        """
        data.mkdir(parents=True, exist_ok=True)
        root = data / "pool"
        root.mkdir(exist_ok=True)
        with ExitStack() as stack:
            lock = os.open(data / "pool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            if not try_flock(lock):
                raise ConflictError(
                    f"another node uses {data}", hint="stop it (ballpoint down), or choose another --data"
                )
            own = filesystem.kind(root) == "xfs" and filesystem.supports_reflink(root)
            if not own:
                _mount_image(data / "pool.img", root, pool_gb)
            pool = cls(root, data, lock, mounted=not own)
            if not own:
                stack.callback(mount.umount2, root, mount.MNT_DETACH)
            for name in ("templates", "volumes", "staging", "trash"):
                (root / name).mkdir(exist_ok=True)
            pool._sweep()
            stack.pop_all()
            return pool

    def close(self) -> None:
        """Let go of the pool; volumes in use keep it alive underneath. Idempotent."""
        if self._lock < 0:
            return
        if self._mounted:
            mount.umount2(self.root, mount.MNT_DETACH)
        os.close(self._lock)
        self._lock = -1

    def _sweep(self) -> None:
        for name in ("staging", "trash"):
            for entry in (self.root / name).iterdir():
                if entry.is_dir():
                    self._attachments.wait_released(entry / "disk.img", _DETACH_SECONDS)
                    remove_tree(entry)
                else:
                    # What may run over it still is another's to end; the file is there for as long.
                    entry.unlink()

    def ensure_template(self, key: str, disk_gb: int, populate: Callable[[int], None]) -> None:
        """Make the formatted image new volumes are clones of, if it is missing. It appears whole, by a rename.

        Args:
            key: names it; what it is made from belongs into the key.
            disk_gb: apparent size.
            populate: is given the mounted root's descriptor to put files in.
        """
        _check_id(key)
        target = self.root / "templates" / f"{key}.img"
        if target.exists():
            return
        partial = self.root / "staging" / f"{key}.img"
        partial.unlink(missing_ok=True)
        with partial.open("wb") as file:
            file.truncate(disk_gb * _GIB)
        process.run(
            ["mkfs.ext4", "-q", "-b", "4096", "-J", "size=32", "-m", "0", "-O", _EXT4_FEATURES, "-E", _EXT4_EXTENDED,
             "-L", "sprite", str(partial)],
            timeout=_MKFS_SECONDS,
        )  # fmt: skip
        attached = self._attach(key, partial)
        try:
            for name in DIRECTORIES:
                Path(f"/proc/self/fd/{attached.mount}", name).mkdir(parents=True)
            populate(attached.mount)
        finally:
            attached.detach()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(target)
        fsync_directory(target.parent)

    def drop_templates(self, keep: set[str]) -> None:
        """Remove templates whose key is not in `keep`; volumes made from them have their own extents by reference."""
        for entry in (self.root / "templates").glob("*.img"):
            if entry.stem not in keep:
                entry.unlink()

    def create(self, volume_id: str, *, template: str, meta: dict[str, str]) -> None:
        """Make a volume that shares all its blocks with `template`. Durable when it returns; a crash leaves none.

        Args:
            meta: kept beside it; see `meta`.

        Raises:
            ConflictError: the volume exists.
            NotFoundError: there is no such template.
            UnavailableError: the pool is full.
        """
        _check_id(template)
        source = self.root / "templates" / f"{template}.img"
        if not source.exists():
            raise NotFoundError(f"there is no template {template}")
        self._create(volume_id, source, meta, lambda staged: None)

    def fork(self, volume_id: str, *, of: str, sequence: int, record: Record) -> None:
        """Make a volume of a snapshot of another, which becomes its own first snapshot, too. It shares all blocks.

        Args:
            of: id of the other volume.
            sequence: of its snapshot.
            record: of the new volume, whose `sequence` its first snapshot gets.

        Raises:
            CorruptError: the snapshot is not there; others as `create`.
        """
        source = snapshots.path_of(self.directory(of), sequence)
        if not source.exists():
            raise CorruptError(f"the snapshot {source} is not there", hint="the pool has lost a file")

        def complete(staged: Path) -> None:
            snapshots.clone(source, staged, record.sequence)
            snapshots.protect(staged, record.sequence)
            write_first_record(staged, record)

        self._create(volume_id, source, self.meta(of), complete)

    def _create(self, volume_id: str, source: Path, meta: dict[str, str], complete: Callable[[Path], None]) -> None:
        def clone_and_complete(staged: Path) -> None:
            _clone_disk(source, staged / "disk.img")
            complete(staged)

        self.require_room()
        self._make(volume_id, meta, clone_and_complete)

    def _make(self, volume_id: str, meta: dict[str, str], fill: Callable[[Path], None]) -> None:
        """Make the directory of a volume; what `fill` puts into it is there when it appears."""
        _check_id(volume_id)
        final = self.volumes_directory / volume_id
        if final.exists():
            raise ConflictError(f"volume {volume_id} exists")
        staged = self.root / "staging" / volume_id
        remove_tree(staged)
        staged.mkdir()
        try:
            with self.room():
                fill(staged)
                write_new(staged / "volume.json", json.dumps({"format": _FORMAT, **meta}).encode())
        except BaseException:
            remove_tree(staged)  # it shares blocks, which nobody would get back before the next start
            raise
        staged.rename(final)
        # All clones and names with it: XFS writes its log in order, up to this.
        fsync_directory(self.volumes_directory)

    def place(self, volume_id: str, *, meta: dict[str, str], record: Record) -> None:
        """Make a volume whose disk is in the store only. Durable when it returns; a crash leaves none.

        Args:
            meta: kept beside it; see `meta`.

        Raises:
            ConflictError: the volume exists.
        """
        self._make(volume_id, meta, lambda staged: write_first_record(staged, record))

    # ---- another image for a volume ----

    def stage(self, volume_id: str, sequence: int) -> Path:
        """An image that may become the disk of a volume: a clone of one of its snapshots. The next start removes it.

        It is durable once it has become the disk: XFS writes its log in order.

        Raises:
            UnavailableError: the pool is full.
            CorruptError: the snapshot is not there.
        """
        self.require_room()
        staged = self.root / "staging" / f"{volume_id}.img"
        source = snapshots.path_of(self.directory(volume_id), sequence)
        if not source.exists():
            raise CorruptError(f"the snapshot {source} is not there", hint="the pool has lost a file")
        self._attachments.wait_released(staged, _DETACH_SECONDS)
        staged.unlink(missing_ok=True)
        with self.room():
            _clone_disk(source, staged)
        return staged

    def drop_staged(self, staged: Path) -> None:
        """Remove an image that did not become a disk. Idempotent.

        Raises:
            UnavailableError: it is attached.
        """
        self._attachments.wait_released(staged, _DETACH_SECONDS)
        staged.unlink(missing_ok=True)

    def attach_staged(self, volume_id: str, staged: Path) -> AttachedVolume:
        """Mount a staged image, beside the volume's own that may be attached."""
        with self._attaching:
            return self._attach(volume_id, staged)

    def is_disk(self, volume: AttachedVolume) -> bool:
        """Whether what is attached is its volume's disk, and not a former or a staged one."""
        try:
            return (self.directory(volume.id) / "disk.img").stat().st_ino == volume.inode
        except FileNotFoundError:
            return False

    def replace_disk(self, volume_id: str, staged: Path) -> Path:
        """Let a staged image be the disk of a volume. What used the old one goes on using that, under no name.

        A crash leaves the one or the other.

        Returns:
            Where the staged image is now.
        """
        image = self.directory(volume_id) / "disk.img"
        staged.rename(image)
        fsync_directory(image.parent)
        return image

    def evict(self, volume_id: str) -> int:
        """Remove the disk of a volume that nobody uses, once its state is in the store. Idempotent.

        Its directory stays, with what else is kept there. A crash leaves the disk or none.

        Returns:
            Bytes of the pool that it took, those included that it shared.

        Raises:
            NotFoundError: there is no such volume.
            UnavailableError: it is attached.
        """
        directory = self.directory(volume_id)
        image = directory / "disk.img"
        with self._attaching:
            try:
                size = image.stat().st_blocks * 512
            except FileNotFoundError:
                return 0
            self._attachments.wait_released(image, 0)
            image.unlink()
        fsync_directory(directory)
        return size

    def is_local(self, volume_id: str) -> bool:
        """Whether the disk of a volume is here, and not in the store only."""
        return (self.directory(volume_id) / "disk.img").exists()

    def directory(self, volume_id: str) -> Path:
        """Where everything of a volume is kept.

        Raises:
            NotFoundError: there is no such volume.
        """
        _check_id(volume_id)
        directory = self.volumes_directory / volume_id
        if not directory.is_dir():
            raise NotFoundError(f"there is no volume {volume_id}")
        return directory

    def attach(self, volume_id: str) -> AttachedVolume:
        """Mount a volume.

        Raises:
            NotFoundError: there is no such volume.
            ConflictError: it is attached already, or a later version made it.
            DamagedDiskError: its description or its file system is damaged, in a way that a check does not repair.
        """
        self.meta(volume_id)
        image = self._image(volume_id)
        if self._attachments.find(image) is not None:
            raise ConflictError(f"volume {volume_id} is attached already")
        repaired = _repair(image)
        with self._attaching:
            if self._attachments.find(image) is not None:
                raise ConflictError(f"volume {volume_id} is attached already")
            attached = self._attach(volume_id, image)
        try:
            _require_directories(attached)
        except BaseException:
            attached.release()
            raise
        attached.repaired = repaired
        return attached

    def adopt(self, volume_id: str) -> AttachedVolume | None:
        """A volume that an earlier process attached and something still uses; None where it is not attached."""
        image = self.directory(volume_id) / "disk.img"
        if not image.exists():
            return None
        device = self._attachments.find(image)
        if device is None:
            return None
        # The same block device gives the same superblock, so this is one more mount of it, not a second one.
        volume = AttachedVolume(volume_id, image, _mount_ext4(device), device, self._attachments)
        with volume.opened() as root:
            filesystem.fithaw(root)  # whoever froze it may have died before he could thaw it
        return volume

    def thaw_all(self) -> None:
        """Thaw every disk that something uses, whatever its image is called by now.

        Whoever froze one may have died together with the freezer, and its writers cannot even be killed.
        """
        for device in self._attachments.on(self.root.stat().st_dev):
            try:
                mounted = _mount_ext4(device)
                try:
                    with _opened(mounted) as root:
                        filesystem.fithaw(root)
                finally:
                    staging.close(mounted)
            except OSError as error:
                log.warning("whether the disk at %s is frozen is not known: %s", device, error)

    def destroy(self, volume_id: str) -> bool:
        """Remove a volume that nobody uses. Idempotent; returns whether it was there. A crash is finished by `open`.

        Raises:
            UnavailableError: it is attached.
            ConflictError: a later version made it, which may have more to remove.
        """
        _check_id(volume_id)
        directory = self.volumes_directory / volume_id
        if not directory.exists():
            return False
        with suppress(CorruptError):
            _description(directory)
        self._attachments.wait_released(directory / "disk.img", _DETACH_SECONDS)
        trash = self.root / "trash" / volume_id
        with self._attaching:
            self._attachments.wait_released(directory / "disk.img", 0)  # somebody may have attached it since
            directory.rename(trash)
        fsync_directory(self.volumes_directory)
        remove_tree(trash)
        return True

    def put_aside(self, volume_id: str) -> Path:
        """Keep all that is here of a volume that nobody uses, where no sprite finds it any more. Returns where that is.

        Raises:
            NotFoundError: there is no such volume.
            UnavailableError: it is attached.
        """
        directory = self.directory(volume_id)
        self._attachments.wait_released(directory / "disk.img", _DETACH_SECONDS)
        places = self.root / "aside"
        places.mkdir(exist_ok=True)
        aside = next(
            place
            for place in (places / name for name in chain([volume_id], (f"{volume_id}.{n}" for n in count(2))))
            if not place.exists()
        )
        directory.rename(aside)
        fsync_directory(places)
        fsync_directory(self.volumes_directory)
        return aside

    def require_disk(self, volume_id: str) -> None:
        """
        Raises:
            NotFoundError: there is no such volume, or its disk is not here.
            DamagedDiskError: its disk is no file system at all.
        """
        read_superblock(self._image(volume_id))

    def require_mountable(self, volume_id: str) -> None:
        """As `require_disk`, by trying a clone: what is damaged so that the disk could not be attached is found.

        Raises:
            UnavailableError: the pool is full.
        """
        image, clone = self._image(volume_id), self.root / "staging" / f"{volume_id}.tried.img"
        self._attachments.wait_released(clone, _DETACH_SECONDS)
        clone.unlink(missing_ok=True)
        with self.room():
            _clone_disk(image, clone)
        try:
            _repair(clone)
            with self._attaching:
                attached = self._attach(volume_id, clone)
            try:
                _require_directories(attached)
            finally:
                attached.detach()
        except DamagedDiskError as error:
            raise DamagedDiskError(error.message.replace(str(clone), str(image))) from error
        finally:
            clone.unlink()

    def has(self, volume_id: str) -> bool:
        """Whether there is such a volume, wherever its disk is."""
        _check_id(volume_id)
        return (self.volumes_directory / volume_id).is_dir()

    def volumes(self) -> list[str]:
        """Ids of all volumes."""
        return sorted(entry.name for entry in self.volumes_directory.iterdir())

    def images(self) -> set[str]:
        """Digests of the standard images that volumes or their checkpoints here are on, as far as can be read."""
        records = filter(None, map(self._record, self.volumes()))
        return {image for record in records for image in (record.image, *(each.image for each in record.checkpoints))}

    def image_of(self, volume_id: str) -> str | None:
        """Digest of the standard image that a volume is on; None where that cannot be read."""
        record = self._record(volume_id)
        return None if record is None else record.image

    def _record(self, volume_id: str) -> Record | None:
        try:
            return read_record(self.directory(volume_id))
        except BallpointError:  # it has none yet, or is another's to mend
            return None

    def meta(self, volume_id: str) -> dict[str, str]:
        """What `create` was told to keep beside the volume.

        Raises:
            NotFoundError: there is no such volume.
            ConflictError: a later version of this program made it.
            DamagedDiskError: it cannot be read.
        """
        return _description(self.directory(volume_id))

    def shortfall(self) -> int:
        """As the function `shortfall`; 0 where the pool needs no file."""
        return shortfall(self._below) if self._mounted else 0

    def require_room(self, size: int = 0) -> None:
        """Refuse where no more volumes may be made, or nothing of so many bytes.

        Raises:
            UnavailableError: the pool is full.
        """
        usage = self.usage()
        if usage.free - size < usage.hard:
            raise _full()

    @staticmethod
    @contextmanager
    def room() -> Iterator[None]:
        """Turns the system's error where something does not fit into the pool into ours.

        Raises:
            UnavailableError: the pool is full.
        """
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _full() from error
            raise

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor on the pool's own file system that takes ioctls."""
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)

    def usage(self, attached: int = 0) -> PoolUsage:
        """Space left, with the marks for `attached` running volumes."""
        stat = os.statvfs(self.root)
        total, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
        if self._mounted:
            free = min(free, filesystem.free_bytes(self._below))
        per_volume = min(attached * _RESERVE_PER_VOLUME, int(total * _RESERVE_MAX_SHARE))
        hard = min(_DIRTY_BYTES + per_volume, int(total * _RESERVE_MAX_SHARE))
        return PoolUsage(total, free, soft=min(2 * hard, total // 2), hard=hard)

    def _image(self, volume_id: str) -> Path:
        image = self.directory(volume_id) / "disk.img"
        if not image.exists():
            raise NotFoundError(f"the disk of volume {volume_id} is not here", hint="it is in the store only")
        return image

    def _attach(self, volume_id: str, image: Path) -> AttachedVolume:
        device, fd = self._attachments.attach(image)
        try:
            loop.bound_dirty_data(device, _loop_dirty(self.usage().total))
            try:
                mounted = _mount_ext4(device)
            except OSError as error:
                raise _damaged(image, error) from error
            return AttachedVolume(volume_id, image, mounted, device, self._attachments)
        finally:
            os.close(fd)  # the mount holds the device from now on


def shortfall(data: Path) -> int:
    """Bytes that the pool's file in `data` may still grow by and the file system below has not got.

    Writers are stopped in time all the same, but the pool shows room that it cannot give.
    """
    try:
        stat = (data / "pool.img").stat()
    except FileNotFoundError:
        return 0
    return max(0, stat.st_size - stat.st_blocks * 512 - filesystem.free_bytes(data))


def _clone_disk(source: Path, target: Path) -> None:
    from_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        to_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            filesystem.set_cowextsize(to_fd, 4096)
            filesystem.ficlone(from_fd, to_fd)
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)


def _full() -> UnavailableError:
    hint = "destroy sprites or their files, or give the node a larger disk"
    return UnavailableError("the volume pool is full", hint=hint, code=DISK_FULL)


def _description(directory: Path) -> dict[str, str]:
    """Content of a volume's `volume.json`; raises as `VolumePool.meta`."""
    file = directory / "volume.json"
    try:
        found = json.loads(file.read_bytes())
        written = int(found["format"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedDiskError(
            f"{file} is damaged: {error}", hint="docs/volume-layout.md says what belongs there"
        ) from error
    if written > _FORMAT:
        raise ConflictError(
            f"the volume {directory.name} has the format {written}, and this version knows {_FORMAT} at most",
            hint="start the later version that made it",
        )
    return {key: str(value) for key, value in found.items() if key != "format"}


def _repair(image: Path) -> bool:
    """Repair a file system in which the kernel has met damage. Returns whether it had.

    Raises:
        DamagedDiskError: it has no superblock, or damage that only somebody who looks can repair.
    """
    if not read_superblock(image).errors:
        return False
    try:
        process.run(["e2fsck", "-p", "-f", str(image)], timeout=_CHECK_SECONDS)
    except process.CommandFailedError as error:
        if error.returncode & ~_E2FSCK_DONE:
            raise DamagedDiskError(f"{image} is damaged: {error}") from error
    return True


def _require_directories(volume: AttachedVolume) -> None:
    try:
        for name in DIRECTORIES:
            os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=volume.mount))
    except OSError as error:
        raise _damaged(volume.image, error) from error


def _damaged(image: Path, error: OSError) -> Exception:
    """What to raise for an error of the file system in `image`."""
    if error.errno in _DAMAGED:
        return DamagedDiskError(f"the file system in {image} is damaged: {error}")
    return error


@contextmanager
def _opened(mounted: int) -> Iterator[int]:
    """A descriptor of the root of a mount, that takes ioctls."""
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    try:
        yield root
    finally:
        os.close(root)


def _mount_ext4(device: str) -> int:
    return staging.hold(mount.fsmount("ext4", {"source": device, **_EXT4_OPTIONS}, mount.MOUNT_ATTR_NOATIME))


def _mount_image(image: Path, root: Path, pool_gb: int) -> None:
    device = loop.find_by_backing(image)
    if device is not None:
        loop.bound_dirty_data(device, None)
        mount.mount_at(root, "xfs", {"source": device}, mount.MOUNT_ATTR_NOATIME)
        return
    if not image.exists():
        _make_image(image, pool_gb)
    # Past the page cache of the file system below, where whoever syncs a file of the pool would wait until all is on
    # the disk that anybody has written. Where that cannot do it for sectors of 512 bytes, as XFS has them here, the
    # kernel goes through the cache.
    device, fd = loop.attach(image, direct_io=loop.may_be_direct(image.parent), block_size=512)
    try:
        loop.bound_dirty_data(device, None)
        mount.mount_at(root, "xfs", {"source": device}, mount.MOUNT_ATTR_NOATIME)
    finally:
        os.close(fd)


def _make_image(image: Path, pool_gb: int) -> None:
    size = pool_gb * _GIB or int(filesystem.free_bytes(image.parent) * _POOL_SHARE)
    if size < _POOL_MIN:
        raise UnavailableError(
            f"{image.parent} has no room for a volume pool", hint=f"at least {_POOL_MIN // _MIB} MiB must be free"
        )
    partial = image.with_name(f".{image.name}.new")
    partial.unlink(missing_ok=True)
    with partial.open("wb") as file:
        file.truncate(size)
    process.run(["mkfs.xfs", "-q", "-m", "reflink=1", "-b", "size=4096", str(partial)], timeout=_MKFS_SECONDS)
    partial.rename(image)
    fsync_directory(image.parent)


def _loop_dirty(pool_bytes: int) -> int:
    """How many bytes one sprite may have unwritten, for that to fit into the pool's reserve."""
    return min(_LOOP_DIRTY_MAX, max(_LOOP_DIRTY_MIN, int(pool_bytes * _LOOP_DIRTY_SHARE)))


def _check_id(volume_id: str) -> None:
    if not _ID.fullmatch(volume_id):
        raise InvalidError(f"{volume_id[:80]!r} is not a volume id")
