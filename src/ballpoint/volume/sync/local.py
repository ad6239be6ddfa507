"""One volume on this node: its disk, the snapshots of it, and the record that names them.

There are two ways to a snapshot. A clone of the disk shares blocks with it, and tells by these what has changed; but a
disk that is written at random falls apart by it. That one is followed by a copy instead (`following.py`), and the
kernel's notes tell what has changed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from ballpoint.core import ids, steps
from ballpoint.core.clock import Clock
from ballpoint.core.errors import BallpointError, CorruptError, NotFoundError, UnavailableError
from ballpoint.core.threads import to_the_end
from ballpoint.host import filesystem
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.volume import snapshots
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.log import View, milliseconds
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.record import Base, Operation, Record, read_record, write_record
from ballpoint.volume.sync.following import Following, MissedError, remove_copy
from ballpoint.volume.sync.source import Source

log = logging.getLogger(__name__)

# Timestamps of files are as coarse as the kernel's tick (10 ms at most): a write soon after a snapshot may bear the
# same one as the last write before it.
_RACY_NS: Final = 20_000_000
# A disk in more pieces than that is followed: a clone takes 5 to 30 us for each, for which its writers wait. So is one
# in fewer pieces whose writers have waited so long.
_PIECES_MANY = 20_000
_PIECES_SOME, _STALL_SECONDS = 2_000, 0.1
# Writes that go on while they are copied make for more to copy at the freeze.
_APPROACHES: Final = 2
_TRIES: Final = 3
# After it failed, a disk is not followed for so long.
_REFUSED_SECONDS: Final = 600.0

# Blocks that are called unchanged are compared with the log so often at most: it takes two requests each time.
_SAMPLE_SECONDS = 60.0

# What XFS and ext4 answer when a device fails or they find themselves damaged: EUCLEAN and EBADMSG are their
# EFSCORRUPTED and EFSBADCRC; EROFS is what they are from then on.
_DAMAGED: Final = {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EROFS}

_FLUSHED = steps.declare("snapshot: what was dirty is written")
_CLONED = steps.declare("snapshot: the disk is cloned")
_KEPT = steps.declare("snapshot: it is durable")
_COPIED = steps.declare("snapshot: the copy is the disk")
_REMOVED = steps.declare("sync: a snapshot is removed")

Frozen = Callable[[], AbstractAsyncContextManager[None]]


_numbers = count(1)


@dataclass(frozen=True)
class Snapshot:
    """A state of the disk, and what the disk was when it had it.

    Attributes:
        sequence: of its file; None: there is none, and `source` reads it.
        mtime_ns: when it was last written; 0 where that is not known, or a later write might bear the same time.
        time: milliseconds since 1970; 0 where that is not known.
        source: owned by whoever asked for the snapshot.
        since: the blocks that may differ from an earlier state, by the number of each state for which that is known.
        number: tells this state from all others of this process.
    """

    sequence: int | None
    mtime_ns: int = 0
    time: int = 0
    source: Source | None = None
    since: Mapping[int, frozenset[int]] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))

    def close(self) -> None:
        """Nobody reads it any more. Idempotent."""
        if self.source is not None:
            self.source.close()


@dataclass(frozen=True)
class Logged:
    """That the log has a state of the disk.

    Attributes:
        number: the state's.
        epoch, commit: the newest commit of the log that says what is on the disk.
    """

    number: int
    epoch: int
    commit: int

    @classmethod
    def after(cls, at: CommitName, number: int | None) -> Logged | None:
        """What is known once the log has that state after that commit; None, too, where the state is not known."""
        return None if number is None else cls(number, at.epoch, at.number)

    def holds(self, view: View) -> bool:
        return (self.epoch, self.commit) == (view.disk.epoch, view.disk.number)


@dataclass
class Cost:
    """What bringing a volume into the log has cost since this was reset.

    Attributes:
        stall_seconds: for how long writers of the disk may have waited at most, at a time.
        cpu_seconds: of all threads.
    """

    stall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def reset(self) -> None:
        self.stall_seconds = self.cpu_seconds = 0.0


class Local:
    """What is on this node of one volume. Nothing here knows the store.

    Args:
        trace: what notes writes to disks; None where the kernel cannot.

    Attributes:
        directory: where all of it lies.
        record: what is known of the volume; replaced, never changed.
        lock: held by whoever looks at the record to change it.
        cost: of `sync` and `checkpoint`.
        pending: states that are not in the log yet, by the sequence of their files, as far as this process made them.
        logged: which state the log has; None where this process has not brought it there.
        coming: the same, once a commit is in the log whose outcome is not known.
        alarms: what is wrong with what was believed of the disk, or of the log; emptied by whoever tells of it.
    """

    def __init__(
        self, pool: VolumePool, volume_id: str, record: Record, clock: Clock, trace: BlockTrace | None = None
    ) -> None:
        self._clock = clock
        self._trace = trace
        self._following: Following | None = None
        self._copying: Following | None = None
        self._last: Snapshot | None = None
        self._refused_until = 0.0
        self._sample_due = -math.inf
        self._stall_seconds = 0.0
        self._sequence = max((record.sequence, *record.snapshots))
        self.pool = pool
        self.volume_id = volume_id
        self.directory = pool.directory(volume_id)
        self.record = record
        self.lock = asyncio.Lock()
        self.cost = Cost()
        self.pending: dict[int, Snapshot] = {}
        self.logged: Logged | None = None
        self.coming: Logged | None = None
        self.alarms: list[str] = []

    @classmethod
    def open(cls, pool: VolumePool, volume_id: str, clock: Clock, trace: BlockTrace | None = None) -> Local:
        """As `Keeper.open`."""
        directory = pool.directory(volume_id)
        try:
            record = read_record(directory)
        except NotFoundError:
            # Its disk is all there is so far. A volume that never comes to the log needs no record.
            meta = pool.meta(volume_id)
            if not pool.is_local(volume_id):
                raise NotFoundError(f"volume {volume_id} has neither a disk here nor a record") from None
            size = (directory / "disk.img").stat().st_size
            record = Record(volume=UUID(volume_id), lineage=UUID(ids.new_uuid()), size=size, image=meta["image"])
        snapshots.remove_others(directory, record.snapshots)
        remove_copy(directory)
        return cls(pool, volume_id, record, clock, trace)

    @property
    def present(self) -> bool:
        """Whether the disk is here, and not in the store only."""
        return self.pool.is_local(self.volume_id)

    @property
    def written(self) -> bool:
        """Whether the disk may be another than the log has, as far as it has been written out."""
        if self._following is None or self._last is None:
            return self._written_ns() != self.record.snapshot_mtime_ns
        known = self.logged is not None and self.logged.number == self._last.number
        return not known or self._following.written()

    def _written_ns(self) -> int:
        """When the disk was last written, in nanoseconds since 1970 as the pool's file system has it."""
        return (self.directory / "disk.img").stat().st_mtime_ns

    async def unchanged(self, disk: AttachedVolume | None) -> bool:
        """Whether the disk is as it was when it last came into the log, also in memory."""
        async with self.lock:
            if not self.present:
                return True
            now = milliseconds(self._clock)
            if disk is not None:
                with self.errors():
                    await asyncio.to_thread(_syncfs, disk)
            if self.written:
                return False
            self.record = msgspec.structs.replace(self.record, snapshot_time=now)
            return True

    def alarm(self, text: str) -> None:
        """Say that something was not as it had been believed to be: a defect, or damage."""
        log.error("volume %s: %s", self.volume_id, text)
        if text not in self.alarms:
            self.alarms.append(text)

    def is_sample_due(self) -> bool:
        """Whether blocks that are called unchanged are to be compared with the log; then not again for a while."""
        now = self._clock.monotonic()
        if now < self._sample_due:
            return False
        self._sample_due = now + _SAMPLE_SECONDS
        return True

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the system says of the volume's files into our errors.

        Raises:
            UnavailableError: the pool is full, or refuses for another reason.
            CorruptError: the disk, or the pool below it, cannot be read or written any more.
        """
        try:
            with self.pool.room():
                yield
        except OSError as error:
            if error.errno in _DAMAGED:
                raise CorruptError(
                    f"the files of volume {self.volume_id} cannot be read or written: {error.strerror}",
                    hint="the kernel's log says what is wrong; a restart of the sprite checks its disk",
                ) from error
            raise UnavailableError(
                f"the pool refuses what volume {self.volume_id} needs: {error.strerror}", hint="look at the pool"
            ) from error

    # ---- snapshots; the caller holds the lock, and notes them ----

    async def checkpoint(self, disk: AttachedVolume | None, frozen: Frozen | None) -> Snapshot:
        """A snapshot of the disk that stays, durable here, of a file system that is clean.

        Args:
            frozen: what stops the writers of an attached disk meanwhile; None where they are stopped.

        Raises:
            As `errors`.
        """
        snapshot = None
        # Where its writers are stopped already, they would wait for a first copy.
        if disk is not None and (self._follows(disk) or (frozen is not None and await self._begin_to_follow(disk))):
            snapshot = await self._followed(disk, frozen, named=True)
        if snapshot is None:
            with self.errors():
                snapshot = await self._cloned(disk, frozen)
        assert snapshot.sequence is not None
        self.pending[snapshot.sequence] = snapshot
        return snapshot

    async def snapshot(self, disk: AttachedVolume | None, frozen: Frozen | None) -> Snapshot:
        """The disk as it is, for the log. The caller closes it.

        Args:
            frozen: what stops the writers of an attached disk; None: they cannot be stopped.

        Raises:
            As `errors`.
        """
        snapshot = None
        if disk is not None and frozen is not None and (self._follows(disk) or await self._begin_to_follow(disk)):
            snapshot = await self._followed(disk, frozen, named=False)
        if snapshot is None:
            with self.errors():
                snapshot = await self._cloned(disk, None)
        return snapshot

    async def _cloned(self, disk: AttachedVolume | None, frozen: Frozen | None) -> Snapshot:
        sequence, image, now = self.next_sequence(), self.directory / "disk.img", milliseconds(self._clock)
        since = await self._since_it_was_followed() if disk is None else {}
        await asyncio.to_thread(write_out, disk, image)
        steps.reach(_FLUSHED)
        try:
            began = self._clock.monotonic()
            async with frozen() if frozen is not None and disk is not None else nullcontext():
                written = self._written_ns()
                await to_the_end(snapshots.clone, image, self.directory, sequence)
                cloned = self._clock.now().timestamp() * 1e9
            if disk is not None:
                self._stalled(began)
            steps.reach(_CLONED)
            await to_the_end(snapshots.keep, self.directory, sequence)
            steps.reach(_KEPT)
        except BaseException:
            snapshots.remove(self.directory, sequence)
            raise
        return Snapshot(sequence, 0 if cloned - written < _RACY_NS else written, now, since=since)

    def _stalled(self, began: float) -> None:
        self._stall_seconds = self._clock.monotonic() - began
        self.cost.stall_seconds = max(self.cost.stall_seconds, self._stall_seconds)

    # ---- a disk that is followed ----

    @property
    def followed(self) -> bool:
        """Whether a copy follows the disk."""
        return self._following is not None

    def hurry(self) -> None:
        """Let whoever holds the lock not wait until its copy is the disk, which is about to be followed no more."""
        if self._copying is not None:
            self._copying.end()

    async def stop_following(self) -> None:
        """Let go of the disk, and remove its copy. The caller holds the lock. Idempotent."""
        following, self._following, self._last = self._following, None, None
        if following is not None:
            await asyncio.to_thread(following.close)

    def _follows(self, disk: AttachedVolume) -> bool:
        return self._following is not None and self._following.device == disk.device

    async def _begin_to_follow(self, disk: AttachedVolume) -> bool:
        """Follow a disk that clones would ruin, or have ruined, where there is room for its copy."""
        if self._trace is None or self._clock.monotonic() < self._refused_until:
            return False
        if not await asyncio.to_thread(self._falls_apart):
            return False
        await self.stop_following()  # it was another disk
        usage = await asyncio.to_thread(self.pool.usage)
        if usage.free - (self.directory / "disk.img").stat().st_blocks * 512 < usage.soft:
            return False
        try:
            self._following = await asyncio.to_thread(Following, self._trace, disk, self.directory)
        except (BallpointError, OSError) as error:
            self._refuse(error)
            return False
        log.info("volume %s is written at random: a copy follows it", self.volume_id)
        return True

    def _falls_apart(self) -> bool:
        fd = os.open(self.directory / "disk.img", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = filesystem.extent_count(fd)
        finally:
            os.close(fd)
        return pieces > _PIECES_MANY or (pieces > _PIECES_SOME and self._stall_seconds > _STALL_SECONDS)

    def _refuse(self, error: BallpointError | OSError) -> None:
        log.warning("volume %s is cloned, and not followed: %s", self.volume_id, error)
        self._refused_until = self._clock.monotonic() + _REFUSED_SECONDS

    async def _followed(self, disk: AttachedVolume, frozen: Frozen | None, *, named: bool) -> Snapshot | None:
        """The disk as it is when the copy has reached it; None where that failed, and the disk is not followed."""
        following = self._following
        assert following is not None
        self._copying = following
        try:
            with self.pool.room():
                return await self._reached(following, disk, frozen, named=named)
        except (BallpointError, OSError) as error:
            if isinstance(error, MissedError):
                self.alarm(f"{error}; now all of the disk is compared with the store")
            if not following.ended:
                self._refuse(error)
            await self.stop_following()
            return None
        finally:
            self._copying = None

    async def _reached(
        self, following: Following, disk: AttachedVolume, frozen: Frozen | None, *, named: bool
    ) -> Snapshot:
        now, arrived = milliseconds(self._clock), False
        for _ in range(_TRIES):
            for _ in range(_APPROACHES):
                await asyncio.to_thread(_syncfs, disk)
                await following.run(following.approach)
            began = self._clock.monotonic()
            async with frozen() if frozen is not None else nullcontext():
                arrived = await following.run(following.arrive)
            self._stalled(began)
            if arrived:
                break
        else:
            raise UnavailableError(f"the copy of volume {self.volume_id} does not come up with it")
        steps.reach(_COPIED)
        blocks = await following.run(following.changed)
        following.settle()
        snapshot = Snapshot(
            self.next_sequence() if named else None,
            time=now,
            since=self._since(blocks),
            source=None if named else following.source(),
        )
        self._last = snapshot
        try:
            # A freeze writes the file system out; a commit must be able to rely on it that the image has that, too.
            await following.run(following.flush)
            steps.reach(_FLUSHED)
            if snapshot.sequence is not None:
                await to_the_end(snapshots.clone, following.path, self.directory, snapshot.sequence)
                steps.reach(_CLONED)
                await to_the_end(snapshots.keep, self.directory, snapshot.sequence)
                steps.reach(_KEPT)
        except BaseException:
            snapshot.close()
            if snapshot.sequence is not None:
                snapshots.remove(self.directory, snapshot.sequence)
            raise
        return snapshot

    def _since(self, blocks: frozenset[int] | None) -> dict[int, frozenset[int]]:
        """What may differ from earlier states, of those that the log may come to have before the present one.

        Args:
            blocks: what may differ from the last state of the copy; None: anything.
        """
        if self._last is None or blocks is None:
            return {}
        wanted = {each.number for each in self.pending.values()}
        if self.logged is not None:
            wanted.add(self.logged.number)
        earlier = {number: before | blocks for number, before in self._last.since.items() if number in wanted}
        return {**earlier, self._last.number: blocks}

    async def _since_it_was_followed(self) -> dict[int, frozenset[int]]:
        """The same, of a disk that is detached now: it is followed no more."""
        following = self._following
        if following is None or not await following.run(following.unmounted):
            return {}
        try:
            await following.run(following.approach)
            if await following.run(following.arrive):
                return self._since(await following.run(following.changed))
            return {}
        except (BallpointError, OSError) as error:
            if isinstance(error, MissedError):
                self.alarm(str(error))
            log.warning("volume %s is compared with its map: %s", self.volume_id, error)
            return {}
        finally:
            await self.stop_following()

    # ---- what the log has ----

    @contextmanager
    def opened(self, snapshot: Snapshot) -> Iterator[Source]:
        """What reads a snapshot.

        Raises:
            CorruptError: its file is not there.
        """
        if snapshot.sequence is None:
            assert snapshot.source is not None
            yield snapshot.source
            return
        with snapshots.opened(self.directory, snapshot.sequence) as fd:
            source = Source(os.dup(fd))
        try:
            yield source
        finally:
            source.close()

    def of(self, operation: Operation) -> Snapshot:
        """The state of the disk that a pending checkpoint is."""
        known = self.pending.get(operation.sequence)
        return known or Snapshot(operation.sequence, operation.mtime_ns, operation.time)

    def logged_in(self, view: View) -> int | None:
        """Number of the state that the log has; None where that is not known."""
        logged = self.logged
        return logged.number if logged is not None and logged.holds(view) else None

    def logged_is_settled(self, view: View) -> None:
        """The commit whose outcome was not known is in the log, or it is not and will not be."""
        if self.coming is not None and self.coming.holds(view):
            self.logged = self.coming

    def base(self, at: CommitName, sequence: int) -> Base:
        """That a snapshot is what the log has of the disk after a commit."""
        identity = snapshots.identity(self.directory, sequence)
        if identity is None:
            raise CorruptError(f"snapshot {sequence} of volume {self.volume_id} has gone", hint="look at the pool")
        return Base(sequence=sequence, inode=identity[0], generation=identity[1], epoch=at.epoch, number=at.number)

    def valid_base(self, view: View) -> int | None:
        """The sequence of the snapshot that is what the log has of the disk; None where that is not known."""
        base = self.record.base
        if base is None or (base.epoch, base.number) != (view.disk.epoch, view.disk.number):
            return None
        if snapshots.identity(self.directory, base.sequence) != (base.inode, base.generation):
            return None
        return base.sequence

    async def discard(self, snapshot: Snapshot) -> None:
        """Be done with a snapshot: where the record does not name it, it gives back its room."""
        snapshot.close()
        if snapshot.sequence is not None and snapshot.sequence not in self.record.snapshots:
            self.pending.pop(snapshot.sequence, None)
            await asyncio.to_thread(snapshots.remove, self.directory, snapshot.sequence)

    def allocated(self, snapshot: Snapshot) -> int:
        """Bytes of a snapshot that are no hole."""
        with self.opened(snapshot) as source:
            return source.allocated()

    def next_sequence(self) -> int:
        """For the next snapshot."""
        self._sequence += 1
        return self._sequence

    async def note(self, **changes: Any) -> None:
        """As `write`, for whoever does not hold the lock."""
        async with self.lock:
            await self.write(**changes)

    async def write(self, **changes: Any) -> None:
        """Change the record, then remove the snapshots that it needs no more. The caller holds the lock.

        Raises:
            As `errors`: the record is the old one.
        """
        before, after = self.record, msgspec.structs.replace(self.record, **changes)
        cancelled: asyncio.CancelledError | None = None
        try:
            with self.errors():
                await to_the_end(write_record, self.directory, after)
        except asyncio.CancelledError as error:
            cancelled = error  # what the record names no more would stay until the next start
        self.record = after
        for sequence in before.snapshots - after.snapshots:
            try:
                await to_the_end(snapshots.remove, self.directory, sequence)
            except asyncio.CancelledError as error:
                cancelled = error
            steps.reach(_REMOVED)
        if cancelled is not None:
            raise cancelled

    def new_id(self, auto: bool) -> str:
        """For the next checkpoint."""
        if not auto:
            return f"v{self.record.next}"
        taken = {each.id for each in self.record.checkpoints} | {each.id for each in self.record.pending}
        stem = self._clock.now().strftime("auto-%Y%m%dT%H%M%SZ")
        return next(name for name in chain([stem], (f"{stem}-{n}" for n in count(2))) if name not in taken)


def write_out(disk: AttachedVolume | None, image: Path) -> None:
    """Write out what is in memory of a disk, and of its image.

    Args:
        disk: where it is attached.
    """
    if disk is not None:
        _syncfs(disk)
    snapshots.flush(image)


def _syncfs(disk: AttachedVolume) -> None:
    with disk.opened() as root:
        filesystem.syncfs(root)
