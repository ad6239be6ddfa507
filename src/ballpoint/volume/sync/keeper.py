"""One volume between its disk and its log.

What is done here is done locally first (`local.py`), and noted in the volume's record; `sync` brings it into the log
(`committer.py`), in order.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from ballpoint.core import steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError
from ballpoint.core.threads import to_the_end
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.store.store import Store, list_all
from ballpoint.volume import snapshots
from ballpoint.volume.log.compact import Compacted
from ballpoint.volume.log.keys import commits_prefix, packs_prefix, parse_commit
from ballpoint.volume.log.log import View, milliseconds, read
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.record import Kept, Operation, Origin, Record, settings_hash
from ballpoint.volume.sync.committer import Committer
from ballpoint.volume.sync.hydrate import Progress
from ballpoint.volume.sync.local import Cost, Frozen, Local, Snapshot, write_out
from ballpoint.volume.sync.opening import open_log, require_own, take_over
from ballpoint.volume.sync.place import fetch
from ballpoint.volume.sync.upload import Uploads

_NOTED = steps.declare("checkpoint: the record names it")
_FORKED = steps.declare("fork: the volume is made")
_RESTORING = steps.declare("restore: the record names it")
_REPLACED = steps.declare("restore: the disk is replaced")
_FETCHED = steps.declare("fetch: the snapshot is durable")
_NAMED = steps.declare("fetch: the record names the snapshot")
_LET_GO = steps.declare("evict: the record does without the disk")
_GONE = steps.declare("evict: the disk is removed")
_CHECKPOINTS_GONE = steps.declare("evict: checkpoints are in the store only")
_FORGOTTEN = steps.declare("forget: the record does without the checkpoint")
_TRASHED = steps.declare("trash: the log says that the volume is deleted")

Stopped = Callable[[AttachedVolume], AbstractAsyncContextManager[None]]


class Keeper:
    """Keeps one volume of this node. One exists for each volume; its calls may come side by side.

    Args:
        uploads: shared by all keepers of the node.
        writer: the node's name in logs, for people.
    """

    def __init__(self, local: Local, *, store: Store, uploads: Uploads, writer: str, clock: Clock) -> None:
        self._local = local
        self._store = store
        self._uploads = uploads
        self._name = writer
        self._clock = clock
        self._committer: Committer | None = None
        self._logging = asyncio.Lock()
        self._fetching = asyncio.Lock()
        # How many are about to use the snapshot of a checkpoint.
        self._wanted: Counter[str] = Counter()

    @classmethod
    def open(
        cls,
        pool: VolumePool,
        volume_id: str,
        *,
        store: Store,
        uploads: Uploads,
        writer: str,
        clock: Clock = SYSTEM_CLOCK,
        trace: BlockTrace | None = None,
    ) -> Keeper:
        """The keeper of a volume; removes snapshots that an interrupted step left. Blocks for milliseconds.

        Args:
            trace: what notes writes to disks; None where the kernel cannot: then each snapshot is a clone of the disk.

        Raises:
            NotFoundError: there is no such volume.
            ConflictError: a later version of this program wrote its record.
            CorruptError: its record is damaged.
        """
        return cls(Local.open(pool, volume_id, clock, trace), store=store, uploads=uploads, writer=writer, clock=clock)

    @property
    def volume_id(self) -> str:
        return self._local.volume_id

    @property
    def record(self) -> Record:
        """What is known of the volume; replaced, never changed."""
        return self._local.record

    @property
    def cost(self) -> Cost:
        """Of `sync` and `checkpoint`."""
        return self._local.cost

    @property
    def alarms(self) -> list[str]:
        """What is wrong with what was believed of the disk or of the log; emptied by whoever tells of it.

        The disk has been compared with the log as a whole since, and that has it as it is; or an object of the log is
        damaged.
        """
        return self._local.alarms

    # ---- what is asked for, and answered once it is done here ----

    async def checkpoint(
        self,
        disk: AttachedVolume | None,
        *,
        comment: str,
        auto: bool,
        frozen: Frozen | None,
        image: str | None = None,
    ) -> Kept:
        """Keep the disk as it is now. Done when it is kept here; `sync` brings it into the log.

        Args:
            disk: where it is attached.
            frozen: what stops the writers of an attached disk meanwhile; None where they are stopped.
            image: digest of the standard image that the checkpoint shall be on; None is that of the disk.

        Raises:
            UnavailableError: the pool is full, or the disk cannot be frozen.
            CorruptError: the disk cannot be read or written any more.
        """
        async with self._local.lock:
            snapshot, kept, noted = await self._kept(disk, comment, auto=auto, frozen=frozen, image=image)
            try:
                await self._local.write(**noted)
            finally:
                await self._local.discard(snapshot)
            steps.reach(_NOTED)
            return kept

    async def _kept(
        self, disk: AttachedVolume | None, comment: str, *, auto: bool, frozen: Frozen | None, image: str | None = None
    ) -> tuple[Snapshot, Kept, dict[str, Any]]:
        """A snapshot of the disk, as a checkpoint, and how the record changes that names it. The caller discards it."""
        self._local.pool.require_room()
        snapshot = await self._local.checkpoint(disk, frozen)
        assert snapshot.sequence is not None
        now = milliseconds(self._clock)
        kept = Kept(
            id=self._local.new_id(auto),
            time=now,
            comment=comment,
            auto=auto,
            image=image or self.record.image,
            sequence=snapshot.sequence,
            durable=False,
            source=self.record.current,
        )
        operation = Operation(
            kind="checkpoint",
            id=kept.id,
            sequence=snapshot.sequence,
            mtime_ns=snapshot.mtime_ns,
            time=snapshot.time,
        )
        noted = {
            "checkpoints": (*self.record.checkpoints, kept),
            "next": self.record.next + (not auto),
            "current": kept.id,
            "pending": (*self.record.pending, operation),
        }
        return snapshot, kept, noted

    async def forget(self, checkpoint_id: str) -> None:
        """Delete a checkpoint.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: the disk came from it.
        """
        async with self._local.lock:
            kept = self.record.checkpoint(checkpoint_id)
            if checkpoint_id == self.record.restored:
                raise ConflictError(
                    f"the checkpoint {checkpoint_id!r} is in use", hint="the disk was restored from it", code="in_use"
                )
            # Whether it is in the log already or on its way there.
            pending = (*self.record.pending, Operation(kind="forget", id=checkpoint_id))
            left = tuple(each for each in self.record.checkpoints if each.id != kept.id)
            await self._local.write(checkpoints=left, pending=pending)
            steps.reach(_FORGOTTEN)

    @asynccontextmanager
    async def staged(self, checkpoint_id: str, progress: Progress | None = None) -> AsyncIterator[Path]:
        """An image of a checkpoint, which may become the disk (`replace_disk`); an error that ends this removes it.

        Args:
            progress: is told how far the checkpoint is, where it comes from the store.

        Raises:
            NotFoundError: there is none of that id.
            UnavailableError: the pool is full, or the checkpoint is in the store only and that does not answer.
            CorruptError: what the store has of it is damaged.
        """
        async with self._snapshot_of(checkpoint_id, progress) as sequence:
            with self._local.errors():
                image = await to_the_end(self._local.pool.stage, self.volume_id, sequence)
            try:
                yield image
            except BaseException:
                await to_the_end(self._local.pool.drop_staged, image)
                raise

    async def write_out(self, disk: AttachedVolume | None) -> None:
        """Write out what is dirty of an attached disk: then keeping it takes less long. Errors as `checkpoint`."""
        if disk is not None:
            with self._local.errors():
                await asyncio.to_thread(write_out, disk, disk.image)

    async def replace_disk(self, checkpoint_id: str, staged: Path) -> Path:
        """Let the disk be the one that `staged` made of a checkpoint; a crash leaves the one or the other.

        Returns:
            Where that image is now.
        """
        async with self._local.lock:
            return await self._replace(checkpoint_id, staged, {})

    async def exchange(
        self,
        checkpoint_id: str,
        staged: Path,
        disk: AttachedVolume | None,
        *,
        comment: str,
        stopped: AbstractAsyncContextManager[None],
    ) -> tuple[Kept, Path]:
        """As `replace_disk`, after what the disk was is kept as an automatic checkpoint.

        Args:
            disk: where the former one is attached.
            stopped: what stops its writers meanwhile. It is not entered before nobody else works on the volume.

        Returns:
            That checkpoint, and where the new image is now.

        Raises:
            UnavailableError: the pool is full, or the disk cannot be frozen.
        """
        self._local.hurry()
        async with self._local.lock, stopped:
            snapshot, former, noted = await self._kept(disk, comment, auto=True, frozen=None)
            try:
                return former, await self._replace(checkpoint_id, staged, noted)
            finally:
                await self._local.discard(snapshot)

    async def _replace(self, checkpoint_id: str, staged: Path, noted: dict[str, Any]) -> Path:
        """Let `staged` be the disk.

        Args:
            noted: how else the record changes, at once.
        """
        kept = self.record.checkpoint(checkpoint_id)
        assert kept.sequence is not None
        restore = Operation(
            kind="restore",
            id=kept.id,
            sequence=kept.sequence,
            inode=(await asyncio.to_thread(staged.stat)).st_ino,
            former=(noted.get("current", self.record.current), self.record.restored, self.record.image),
        )
        restored = {
            "current": kept.id,
            "restored": kept.id,
            "image": kept.image,
            "pending": (*noted.get("pending", self.record.pending), restore),
            "snapshot_mtime_ns": 0,
        }
        await self._local.write(**{**noted, **restored})
        steps.reach(_RESTORING)
        await self._local.stop_following()
        with self._local.errors():
            image = await to_the_end(self._local.pool.replace_disk, self._local.volume_id, staged)
        steps.reach(_REPLACED)
        return image

    async def fork(self, checkpoint_id: str, new_volume_id: str) -> None:
        """Make a new volume of a checkpoint. Its log begins with its own first `sync`. Errors as `staged`."""
        async with self._snapshot_of(checkpoint_id) as sequence:
            kept = self.record.checkpoint(checkpoint_id)
            made = Record(
                volume=UUID(new_volume_id),
                lineage=self.record.lineage,
                size=self.record.size,
                image=kept.image,
                sequence=1,
                origin=Origin(volume=self.record.volume, checkpoint=kept.id, sequence=1),
            )
            make = partial(self._local.pool.fork, new_volume_id, of=self.volume_id, sequence=sequence, record=made)
            with self._local.errors():
                await to_the_end(make)
        steps.reach(_FORKED)

    def image_of(self, kept: Kept) -> Path:
        """Where the snapshot of a checkpoint is that has one here."""
        assert kept.sequence is not None
        return snapshots.path_of(self._local.directory, kept.sequence)

    # ---- what is in the store only ----

    async def fetch(self, progress: Progress | None = None) -> None:
        """Bring the disk here, where it is in the store only. Idempotent; a crash half-way is mended by one more call.

        Args:
            progress: is told how far it is.

        Raises:
            UnavailableError: the pool is full, or the store does not answer. What has come here stays for the next
                call, or until `evict_checkpoints`.
            CorruptError: what the store has is damaged.
        """
        async with self._logging:
            if self.local:
                return
            sequence = await self._fetched_disk(progress)
            async with self._local.lock:
                with self._local.errors():
                    staged = await to_the_end(self._local.pool.stage, self._local.volume_id, sequence)
                    await to_the_end(self._local.pool.replace_disk, self._local.volume_id, staged)

    async def _fetched_disk(self, progress: Progress | None) -> int:
        """The sequence of a snapshot that is what the store has of the disk; it is the base from now on."""
        if self.record.base is not None:
            # An earlier call fetched it, and no disk has come of it: the pool was full, or the node died.
            view = await read(self._store, self.record.volume)
            if view is not None and (found := self._local.valid_base(view)) is not None:
                await self._local.note(**self._written_last(view))
                return found
            await self._local.note(base=None)
        sequence = self._local.next_sequence()
        with self._local.errors():
            view = await fetch(
                self._local.pool,
                self.volume_id,
                sequence,
                store=self._store,
                volume=self.record.volume,
                progress=progress,
            )
        async with self._coming(sequence):
            stored = await list_all(self._store, packs_prefix(self.record.volume))
            steps.reach(_FETCHED)
            async with self._local.lock:
                await self._local.write(
                    **self._written_last(view),
                    base=await asyncio.to_thread(self._local.base, view.disk, sequence),
                    snapshot_time=view.time,
                    snapshot_mtime_ns=0,
                    bytes_written=await asyncio.to_thread(snapshots.allocated, self._local.directory, sequence),
                    bytes_stored=sum(item.size for item in stored),
                )
        steps.reach(_NAMED)
        return sequence

    @asynccontextmanager
    async def _coming(self, sequence: int) -> AsyncIterator[None]:
        """A snapshot has come here; one that the record does not name when this ends gives back its room."""
        try:
            yield
        finally:
            await asyncio.shield(self._local.discard(Snapshot(sequence)))

    def _written_last(self, view: View) -> dict[str, int]:
        """For the record: whoever wrote the log last, this node's own state was given up when it was evicted."""
        own, last = (self.record.epoch, self.record.number), (view.last.epoch, view.last.number)
        epoch, number = max(own, last)
        return {"epoch": epoch, "number": number}

    async def evict(self, settings: dict[str, Any]) -> bool:
        """Leave the disk to the store alone, and what is here of its checkpoints. It must not be attached.

        Args:
            settings: the sprite's, as they are now.

        Returns:
            False where something is not in the store yet, or somebody makes a disk of one of its checkpoints: then
            nothing has changed.

        Raises:
            UnavailableError: something uses the disk.
        """
        async with self._logging, self._local.lock:
            if self.record.origin is not None or self.dirty(settings) or self._wanted.total():
                return False
            checkpoints = tuple(msgspec.structs.replace(each, sequence=None) for each in self.record.checkpoints)
            await self._local.write(base=None, coming=None, checkpoints=checkpoints)
            steps.reach(_LET_GO)
            await self._local.stop_following()
            await to_the_end(self._local.pool.evict, self.volume_id)
            steps.reach(_GONE)
            self._rest()
            return True

    async def evict_checkpoints(self) -> int:
        """Leave to the store alone what is there of checkpoints, and a disk that was fetched and is not in use.

        Returns:
            How many of these; restoring or fetching them will take longer.
        """
        async with self._logging, self._local.lock:
            base = self.record.base
            unused = base is not None and not self.local
            needed = {each.sequence for each in self.record.pending}
            if base is not None and not unused:
                needed.add(base.sequence)
            gone = [
                each
                for each in self.record.checkpoints
                if each.durable and each.sequence not in {None, *needed} and not self._wanted[each.id]
            ]
            if gone or unused:
                checkpoints = tuple(
                    msgspec.structs.replace(each, sequence=None) if each in gone else each
                    for each in self.record.checkpoints
                )
                await self._local.write(checkpoints=checkpoints, base=None if unused else base)
                steps.reach(_CHECKPOINTS_GONE)
            return len(gone) + unused

    @asynccontextmanager
    async def _snapshot_of(self, checkpoint_id: str, progress: Progress | None = None) -> AsyncIterator[int]:
        """The sequence of a checkpoint's snapshot, which stays here meanwhile; it comes here where it was not."""
        self._wanted[self.record.checkpoint(checkpoint_id).id] += 1
        try:
            yield await self._fetched(checkpoint_id, progress)
        finally:
            self._wanted[checkpoint_id] -= 1

    async def _fetched(self, checkpoint_id: str, progress: Progress | None) -> int:
        async with self._fetching:
            kept = self.record.checkpoint(checkpoint_id)
            if kept.sequence is not None:
                return kept.sequence
            sequence = self._local.next_sequence()
            await fetch(
                self._local.pool,
                self.volume_id,
                sequence,
                store=self._store,
                volume=self.record.volume,
                checkpoint=checkpoint_id,
                progress=progress,
            )
            async with self._coming(sequence):
                steps.reach(_FETCHED)
                async with self._local.lock:
                    kept = msgspec.structs.replace(self.record.checkpoint(checkpoint_id), sequence=sequence)
                    await self._local.write(checkpoints=self.record.with_checkpoint(kept).checkpoints)
            return sequence

    # ---- a disk that a copy follows ----

    @property
    def followed(self) -> bool:
        """Whether a copy follows the disk, which takes as much of the pool."""
        return self._local.followed

    async def let_go(self) -> None:
        """Remove the copy, where one follows the disk: its sprite starts anew or has gone, or there is no room."""
        self._local.hurry()
        async with self._local.lock:
            await self._local.stop_following()

    # ---- the log ----

    @property
    def busy(self) -> bool:
        """Whether its log is being worked on, as by `sync`, its disk is on its way here, or a snapshot is being made.

        That may take long: a disk that is frozen waits for the kernel.
        """
        return self._logging.locked() or self._fetching.locked() or self._local.lock.locked()

    @property
    def local(self) -> bool:
        """Whether the disk is here, and not in the store only."""
        return self._local.present

    @property
    def known(self) -> bool:
        """Whether anything is known of the disk's difference from the log."""
        return self.record.base is not None or self._local.logged is not None

    def dirty(self, settings: dict[str, Any]) -> bool:
        """Whether something is not in the log, as far as the disk has been written out.

        Args:
            settings: the sprite's, as they are now.
        """
        record = self.record
        if record.pending or record.discarded or record.settings != settings_hash(settings):
            return True
        if not self.local:
            return False
        return not self.known or self._local.written

    async def sync(
        self,
        disk: Callable[[], AttachedVolume | None],
        settings: dict[str, Any],
        stopped: Stopped | None = None,
        *,
        present: bool = True,
    ) -> None:
        """Bring everything into the log that was before this call.

        A crash at any step leaves the disk as it was, and a log that is not newer than it.

        Args:
            disk: gives the attached disk; None where it is not attached.
            settings: the sprite's, as they are now.
            stopped: what stops the writers of an attached disk for a moment; None: a disk is not followed by a copy.
            present: False: only checkpoints, restores and what else has an order, and not the disk as it is now.

        Raises:
            UnavailableError: the store does not answer; nothing is lost, the next call goes on.
            FencedError: another node has written the volume's log: this disk is not the volume's any more.
            CorruptError: what the log names is damaged.
        """
        async with self._logging:
            if not self.dirty(settings) and await self._local.unchanged(disk()):
                if disk() is None:
                    await self.let_go()
                    self._rest()
                return
            committer = await self._opened(settings)
            if committer.writer.view.trashed is not None:
                await committer.append("untrash")  # its sprite was to be destroyed, and was not
            if self.record.discarded:
                await self._local.note(discarded=False)
            while True:
                while self.record.pending:
                    await committer.carry_out(settings)
                if not present:
                    return
                if (self.known or not self.local) and await self._local.unchanged(disk()):
                    break
                if (snapshot := await self._present(disk(), stopped)) is not None:
                    try:
                        await committer.log(settings, None, snapshot)
                    finally:
                        await self._local.discard(snapshot)
                    break
            await committer.settings(settings)
            await committer.tidy(settings)
            if disk() is None:
                self._rest()

    async def require_own(self) -> None:
        """See that nobody else has written the volume's log: one request, where that is so.

        Raises:
            FencedError: another node has: this disk is not the volume's any more.
            UnavailableError: the store does not answer.
        """
        if not self.record.epoch:
            return
        newest = [
            parse_commit(item.key) for item in await self._store.list(commits_prefix(self.record.volume), limit=1)
        ]
        # Whatever this node writes is noted in the record before. What is above may be a seal that nobody followed up.
        if any((name.epoch, name.number) > (self.record.epoch, self.record.number) for name in newest):
            view = await read(self._store, self.record.volume)
            require_own(self.record, view)  # as it is by now: it goes ahead of the log

    async def compact(self, settings: dict[str, Any]) -> Compacted:
        """Move what is still needed out of objects that are mostly garbage, so that `collect` can remove those.

        Args:
            settings: the sprite's, as they are now.

        Raises:
            As `sync`.
        """
        async with self._logging:
            if not self.record.epoch:
                return Compacted()
            committer = await self._opened(settings)
            return await committer.compact()

    async def trash(self) -> None:
        """Say in the log that the volume is deleted; it can be brought back until the retention time is over.

        A volume whose log has not begun was never in the store. Whatever becomes of this, a later `sync` takes it back.

        Raises:
            As `sync`.
        """
        async with self._logging:
            await self._local.note(discarded=True)
            if self._committer is None:
                writer = await take_over(self._store, self._local, writer_name=self._name, clock=self._clock)
                if writer is None:
                    return
                self._committer = Committer(self._local, writer, self._store, self._uploads)
            committer = await self._opened({})
            await committer.append("trash")
            steps.reach(_TRASHED)

    def _rest(self) -> None:
        """Let go of what only a disk in use is likely to need soon: there are many that are not."""
        if self._committer is not None:
            self._committer.writer.rest()

    async def _opened(self, settings: dict[str, Any]) -> Committer:
        if self._committer is None:
            writer = await open_log(self._store, self._local, settings, writer_name=self._name, clock=self._clock)
            self._committer = Committer(self._local, writer, self._store, self._uploads)
        await self._committer.settle()
        return self._committer

    async def _present(self, disk: AttachedVolume | None, stopped: Stopped | None) -> Snapshot | None:
        """A snapshot of the disk as it is; None where another operation comes first."""
        async with self._local.lock:
            if self.record.pending:
                return None
            frozen = partial(stopped, disk) if stopped is not None and disk is not None else None
            return await self._local.snapshot(disk, frozen)
