"""One volume on this node: its disk, the snapshots of it, and the record that names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final
from uuid import UUID

import msgspec

from ballpoint.core import ids, steps
from ballpoint.core.clock import Clock
from ballpoint.core.errors import CorruptError, NotFoundError
from ballpoint.host import filesystem
from ballpoint.volume import snapshots
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.log import View, milliseconds
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.record import Base, Record, read_record, write_record

# Timestamps of files are as coarse as the kernel's tick (10 ms at most): a write soon after a snapshot may bear the
# same one as the last write before it.
_RACY_NS: Final = 20_000_000

_FLUSHED = steps.declare("snapshot: what was dirty is written")
_CLONED = steps.declare("snapshot: the disk is cloned")
_KEPT = steps.declare("snapshot: it is durable")
_REMOVED = steps.declare("sync: a snapshot is removed")

Frozen = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the disk, and what the disk was when it was made.

    Attributes:
        mtime_ns: when it was last written; 0 where that is not known, or a later write might bear the same time.
        time: milliseconds since 1970; 0 where that is not known.
    """

    sequence: int
    mtime_ns: int = 0
    time: int = 0


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

    Attributes:
        directory: where all of it lies.
        record: what is known of the volume; replaced, never changed.
        lock: held by whoever looks at the record to change it.
        cost: of `sync` and `checkpoint`.
    """

    def __init__(self, pool: VolumePool, volume_id: str, record: Record, clock: Clock) -> None:
        self._clock = clock
        self._sequence = max((record.sequence, *record.snapshots))
        self.pool = pool
        self.volume_id = volume_id
        self.directory = pool.directory(volume_id)
        self.record = record
        self.lock = asyncio.Lock()
        self.cost = Cost()

    @classmethod
    def open(cls, pool: VolumePool, volume_id: str, clock: Clock) -> Local:
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
        return cls(pool, volume_id, record, clock)

    @property
    def present(self) -> bool:
        """Whether the disk is here, and not in the store only."""
        return self.pool.is_local(self.volume_id)

    def written_ns(self) -> int:
        """When the disk was last written, in nanoseconds since 1970 as the pool's file system has it."""
        return (self.directory / "disk.img").stat().st_mtime_ns

    async def unchanged(self, disk: AttachedVolume | None) -> bool:
        """Whether the disk is as it was when it last came into the log, also in memory."""
        async with self.lock:
            if not self.present:
                return True
            now = milliseconds(self._clock)
            if disk is not None:
                await asyncio.to_thread(_write_out, disk)
            if self.written_ns() != self.record.snapshot_mtime_ns:
                return False
            self.record = msgspec.structs.replace(self.record, snapshot_time=now)
            return True

    async def snapshot(self, disk: AttachedVolume | None, frozen: Frozen | None) -> Snapshot:
        """A snapshot of the disk, durable here. The caller holds the lock, and notes it."""
        sequence, image, now = self.next_sequence(), self.directory / "disk.img", milliseconds(self._clock)
        if disk is not None:
            await asyncio.to_thread(_write_out, disk)
        await asyncio.to_thread(snapshots.flush, image)
        steps.reach(_FLUSHED)
        try:
            began = self._clock.monotonic()
            async with frozen() if frozen is not None and disk is not None else nullcontext():
                written = self.written_ns()
                await _to_the_end(snapshots.clone, image, self.directory, sequence)
                cloned = self._clock.now().timestamp() * 1e9
            self.cost.stall_seconds = max(self.cost.stall_seconds, self._clock.monotonic() - began)
            steps.reach(_CLONED)
            await _to_the_end(snapshots.keep, self.directory, sequence)
            steps.reach(_KEPT)
        except BaseException:
            snapshots.remove(self.directory, sequence)
            raise
        return Snapshot(sequence, 0 if cloned - written < _RACY_NS else written, now)

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

    async def remove_unless_named(self, snapshot: Snapshot) -> None:
        """Give back the room of a snapshot that nothing came of."""
        if snapshot.sequence not in self.record.snapshots:
            await asyncio.to_thread(snapshots.remove, self.directory, snapshot.sequence)

    def next_sequence(self) -> int:
        """For the next snapshot."""
        self._sequence += 1
        return self._sequence

    async def note(self, **changes: Any) -> None:
        """As `write`, for whoever does not hold the lock."""
        async with self.lock:
            await self.write(**changes)

    async def write(self, **changes: Any) -> None:
        """Change the record, then remove the snapshots that it needs no more. The caller holds the lock."""
        before, after = self.record, msgspec.structs.replace(self.record, **changes)
        try:
            await _to_the_end(write_record, self.directory, after)
        except asyncio.CancelledError:
            self.record = after
            raise
        self.record = after
        for sequence in before.snapshots - after.snapshots:
            await asyncio.to_thread(snapshots.remove, self.directory, sequence)
            steps.reach(_REMOVED)

    def new_id(self, auto: bool) -> str:
        """For the next checkpoint."""
        if not auto:
            return f"v{self.record.next}"
        taken = {each.id for each in self.record.checkpoints} | {each.id for each in self.record.pending}
        stem = self._clock.now().strftime("auto-%Y%m%dT%H%M%SZ")
        return next(name for name in chain([stem], (f"{stem}-{n}" for n in count(2))) if name not in taken)


async def _to_the_end(work: Callable[..., None], *arguments: Any) -> None:
    """Do something in a thread, also where the caller is cancelled meanwhile: who comes next must find it done."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await doing
        raise


def _write_out(disk: AttachedVolume) -> None:
    with disk.opened() as root:
        filesystem.syncfs(root)
