"""One volume between its disk and its log.

What is done here is done locally first, and noted in the volume's record; `sync` brings it into the log, in order.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import (
    ConflictError,
    CorruptError,
    FencedError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from ballpoint.host import filesystem
from ballpoint.store.store import Store
from ballpoint.volume import snapshots
from ballpoint.volume.changed import Blocks, changed
from ballpoint.volume.log.blob import BLOCK_BYTES, Blob, Reference
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.commit import Checkpoint, Kind, State
from ballpoint.volume.log.compact import Compacted, compact
from ballpoint.volume.log.fork import fork, found
from ballpoint.volume.log.log import OutdatedError, View, Writer, milliseconds
from ballpoint.volume.log.mapped import load_map, load_pages, store_map
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.record import Base, Kept, Operation, Origin, Record, read_record, settings_hash, write_record
from ballpoint.volume.sync.hydrate import Progress
from ballpoint.volume.sync.place import fetch
from ballpoint.volume.sync.upload import Place, Upload, Uploads, differing, unknown

log = logging.getLogger(__name__)

# Timestamps of files are as coarse as the kernel's tick (10 ms at most): a write soon after a snapshot may bear the
# same one as the last write before it.
_RACY_NS: Final = 20_000_000
# A commit that names everything: so often, or after so many changes (32 bytes each to whoever replays the log).
_COMPLETE_EVERY: Final = 64
_COMPLETE_CHANGES: Final = 32_768
# Of the blocks that the diff calls unchanged, so many are compared all the same.
_SAMPLES: Final = 8

_FLUSHED = steps.declare("snapshot: what was dirty is written")
_CLONED = steps.declare("snapshot: the disk is cloned")
_KEPT = steps.declare("snapshot: it is durable")
_NOTED = steps.declare("checkpoint: the record names it")
_FORKED = steps.declare("fork: the volume is made")
_RESTORING = steps.declare("restore: the record names it")
_REPLACED = steps.declare("restore: the disk is replaced")
_BEGUN = steps.declare("sync: the log has begun")
_UPLOADED = steps.declare("sync: all packs are stored")
_COMMITTED = steps.declare("sync: the commit is stored")
_FETCHED = steps.declare("fetch: the snapshot is durable")
_LET_GO = steps.declare("evict: the record does without the disk")
_RECORDED = steps.declare("sync: the record names the new base")
_REMOVED = steps.declare("sync: a snapshot is removed")
_TRIMMED = steps.declare("sync: the log is trimmed")

Frozen = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class _Snapshot:
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


class Keeper:
    """Keeps one volume of this node. One exists for each volume; its calls may come side by side.

    Args:
        uploads: shared by all keepers of the node.
        writer: the node's name in logs, for people.

    Attributes:
        record: what is known of the volume; replaced, never changed.
        cost: of `sync` and `checkpoint`.
    """

    def __init__(
        self,
        pool: VolumePool,
        volume_id: str,
        record: Record,
        *,
        store: Store,
        uploads: Uploads,
        writer: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._pool = pool
        self._directory = pool.directory(volume_id)
        self._store = store
        self._uploads = uploads
        self._name = writer
        self._clock = clock
        self._writer: Writer | None = None
        self._local = asyncio.Lock()
        self._logging = asyncio.Lock()
        self._fetching = asyncio.Lock()
        self._sequence = max((record.sequence, *record.snapshots))
        self._trim_due = False
        self.cost = Cost()
        self.volume_id = volume_id
        self.record = record

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
    ) -> Keeper:
        """The keeper of a volume; removes snapshots that an interrupted step left. Blocks for milliseconds.

        Raises:
            NotFoundError: there is no such volume.
            ConflictError: a later version of this program wrote its record.
            CorruptError: its record is damaged.
        """
        directory = pool.directory(volume_id)
        try:
            record = read_record(directory)
        except NotFoundError:
            # Its disk is all there is so far. A volume that never comes to the log needs no record.
            meta = pool.meta(volume_id)
            size = (directory / "disk.img").stat().st_size
            record = Record(volume=UUID(volume_id), lineage=UUID(ids.new_uuid()), size=size, image=meta["image"])
        snapshots.remove_others(directory, record.snapshots)
        return cls(pool, volume_id, record, store=store, uploads=uploads, writer=writer, clock=clock)

    # ---- what is asked for, and answered once it is done here ----

    async def checkpoint(self, disk: AttachedVolume | None, *, comment: str, auto: bool, frozen: Frozen | None) -> Kept:
        """Keep the disk as it is now. Done when it is kept here; `sync` brings it into the log.

        Args:
            disk: where it is attached.
            frozen: what stops the writers of an attached disk meanwhile; None where they are stopped.

        Raises:
            UnavailableError: the pool is full, or the disk cannot be frozen.
        """
        async with self._local:
            self._pool.require_room()
            snapshot = await self._snapshot(disk, frozen)
            now = milliseconds(self._clock)
            kept = Kept(
                id=self._new_id(auto),
                time=now,
                comment=comment,
                auto=auto,
                image=self.record.image,
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
            await self._write(
                checkpoints=(*self.record.checkpoints, kept),
                next=self.record.next + (not auto),
                current=kept.id,
                pending=(*self.record.pending, operation),
            )
            steps.reach(_NOTED)
            return kept

    async def forget(self, checkpoint_id: str) -> None:
        """Delete a checkpoint.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: the disk came from it.
        """
        async with self._local:
            kept = self.record.checkpoint(checkpoint_id)
            if checkpoint_id == self.record.restored:
                raise ConflictError(
                    f"the checkpoint {checkpoint_id!r} is in use", hint="the disk was restored from it", code="in_use"
                )
            # Whether it is in the log already or on its way there.
            pending = (*self.record.pending, Operation(kind="forget", id=checkpoint_id))
            left = tuple(each for each in self.record.checkpoints if each.id != kept.id)
            await self._write(checkpoints=left, pending=pending)

    async def stage(self, checkpoint_id: str, progress: Progress | None = None) -> Path:
        """An image of a checkpoint, which may become the disk (`replace_disk`).

        Args:
            progress: is told how far the checkpoint is, where it comes from the store.

        Raises:
            NotFoundError: there is none of that id.
            UnavailableError: the pool is full, or the checkpoint is in the store only and that does not answer.
            CorruptError: what the store has of it is damaged.
        """
        sequence = await self._snapshot_of(checkpoint_id, progress)
        return await asyncio.to_thread(self._pool.stage, self.volume_id, sequence)

    async def replace_disk(self, checkpoint_id: str, staged: Path) -> None:
        """Let the disk be the one that `stage` made of a checkpoint; a crash leaves the one or the other."""
        async with self._local:
            kept = self.record.checkpoint(checkpoint_id)
            assert kept.sequence is not None
            restore = Operation(kind="restore", id=kept.id, sequence=kept.sequence)
            await self._write(
                current=kept.id,
                restored=kept.id,
                image=kept.image,
                pending=(*self.record.pending, restore),
                snapshot_mtime_ns=0,
            )
            steps.reach(_RESTORING)
            await asyncio.to_thread(self._pool.replace_disk, self.volume_id, staged)
            steps.reach(_REPLACED)

    async def fork(self, checkpoint_id: str, new_volume_id: str) -> None:
        """Make a new volume of a checkpoint. Its log begins with its own first `sync`. Errors as `stage`."""
        sequence = await self._snapshot_of(checkpoint_id)
        kept = self.record.checkpoint(checkpoint_id)
        made = Record(
            volume=UUID(new_volume_id),
            lineage=self.record.lineage,
            size=self.record.size,
            image=kept.image,
            sequence=1,
            origin=Origin(volume=self.record.volume, checkpoint=kept.id, sequence=1),
        )
        await asyncio.to_thread(self._pool.fork, new_volume_id, of=self.volume_id, sequence=sequence, record=made)
        steps.reach(_FORKED)

    def image_of(self, kept: Kept) -> Path:
        """Where the snapshot of a checkpoint is that has one here."""
        assert kept.sequence is not None
        return snapshots.path_of(self._directory, kept.sequence)

    # ---- what is in the store only ----

    async def fetch(self, progress: Progress | None = None) -> None:
        """Bring the disk here, where it is in the store only. Idempotent; a crash half-way is mended by one more call.

        Args:
            progress: is told how far it is.

        Raises:
            UnavailableError: the pool is full, or the store does not answer.
            CorruptError: what the store has is damaged.
        """
        async with self._logging:
            if self.local:
                return
            sequence = self._next_sequence()
            view = await fetch(
                self._pool,
                self.volume_id,
                sequence,
                store=self._store,
                volume=self.record.volume,
                progress=progress,
            )
            steps.reach(_FETCHED)
            async with self._local:
                # Whoever wrote it last: this node's own state was given up when it was evicted.
                await self._write(
                    epoch=max(self.record.epoch, view.last.epoch),
                    base=await asyncio.to_thread(self._base, view, sequence),
                    snapshot_time=view.time,
                    snapshot_mtime_ns=0,
                )
                staged = await asyncio.to_thread(self._pool.stage, self.volume_id, sequence)
                await asyncio.to_thread(self._pool.replace_disk, self.volume_id, staged)

    async def evict(self, settings: dict[str, Any]) -> bool:
        """Leave the disk to the store alone, and what is here of its checkpoints. It must not be attached.

        Args:
            settings: the sprite's, as they are now.

        Returns:
            False where something is not in the store yet: then nothing has changed.

        Raises:
            UnavailableError: something uses the disk.
        """
        async with self._logging, self._local:
            if self.record.origin is not None or self.dirty(settings):
                return False
            checkpoints = tuple(msgspec.structs.replace(each, sequence=None) for each in self.record.checkpoints)
            await self._write(base=None, checkpoints=checkpoints)
            steps.reach(_LET_GO)
            await asyncio.to_thread(self._pool.evict, self.volume_id)
            return True

    async def evict_checkpoints(self) -> int:
        """Leave checkpoints to the store alone that are there. Returns how many; restoring them will take longer."""
        async with self._logging, self._local:
            needed = {each.sequence for each in self.record.pending}
            if self.record.base is not None:
                needed.add(self.record.base.sequence)
            gone = [each for each in self.record.checkpoints if each.durable and each.sequence not in {None, *needed}]
            if gone:
                checkpoints = tuple(
                    msgspec.structs.replace(each, sequence=None) if each in gone else each
                    for each in self.record.checkpoints
                )
                await self._write(checkpoints=checkpoints)
            return len(gone)

    async def _snapshot_of(self, checkpoint_id: str, progress: Progress | None = None) -> int:
        """The sequence of a checkpoint's snapshot, which is brought here where it is in the store only."""
        async with self._fetching:
            kept = self.record.checkpoint(checkpoint_id)
            if kept.sequence is not None:
                return kept.sequence
            sequence = self._next_sequence()
            await fetch(
                self._pool,
                self.volume_id,
                sequence,
                store=self._store,
                volume=self.record.volume,
                checkpoint=checkpoint_id,
                progress=progress,
            )
            steps.reach(_FETCHED)
            async with self._local:
                kept = msgspec.structs.replace(self.record.checkpoint(checkpoint_id), sequence=sequence)
                await self._write(checkpoints=self.record.with_checkpoint(kept).checkpoints)
            return sequence

    # ---- the log ----

    @property
    def local(self) -> bool:
        """Whether the disk is here, and not in the store only."""
        return self._pool.is_local(self.volume_id)

    def written_ns(self) -> int:
        """When the disk was last written, in nanoseconds since 1970 as the pool's file system has it."""
        return (self._directory / "disk.img").stat().st_mtime_ns

    def dirty(self, settings: dict[str, Any]) -> bool:
        """Whether something is not in the log, as far as the disk has been written out.

        Args:
            settings: the sprite's, as they are now.
        """
        record = self.record
        if not self.local:
            return record.settings != settings_hash(settings)
        if record.pending or record.base is None or record.settings != settings_hash(settings):
            return True
        return self.written_ns() != record.snapshot_mtime_ns

    async def sync(self, disk: Callable[[], AttachedVolume | None], settings: dict[str, Any]) -> None:
        """Bring everything into the log that was before this call.

        A crash at any step leaves the disk as it was, and a log that is not newer than it.

        Args:
            disk: gives the attached disk; None where it is not attached.
            settings: the sprite's, as they are now.

        Raises:
            UnavailableError: the store does not answer; nothing is lost, the next call goes on.
            FencedError: another node has written the volume's log: this disk is not the volume's any more.
            CorruptError: what the log names is damaged.
        """
        async with self._logging:
            if not self.dirty(settings) and await self._unchanged(disk()):
                return
            writer = await self._open_log(settings)
            if writer.view.trashed is not None:
                await writer.commit("untrash")  # its sprite was to be destroyed, and was not
            while True:
                while self.record.pending:
                    await self._carry_out(writer, self.record.pending[0], settings)
                if (self.record.base is not None or not self.local) and await self._unchanged(disk()):
                    break
                if (snapshot := await self._present(disk())) is not None:
                    await self._log(writer, settings, None, snapshot)
                    break
            if self.record.settings != (digest := settings_hash(settings)):
                await writer.commit("settings", settings=settings)
                await self._note(settings=digest)
            if len(writer.view.changes) >= _COMPLETE_EVERY:
                await self._log(writer, settings, "root", None)
            if self._trim_due:
                await writer.trim()
                self._trim_due = False
                steps.reach(_TRIMMED)

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
            writer = await self._open_log(settings)
            base, before = self._valid_base(writer), writer.view.disk
            done = await compact(self._store, writer)
            if base is not None and writer.view.disk != before:
                await self._note(base=await asyncio.to_thread(self._base, writer.view, base))
            return done

    async def trash(self) -> None:
        """Say in the log that the volume is deleted; it can be brought back until the retention time is over.

        A volume whose log has not begun was never in the store.

        Raises:
            As `sync`.
        """
        async with self._logging:
            if self._writer is None and not self.record.epoch:
                return
            writer = await self._open_log({})
            await writer.commit("trash")

    async def _open_log(self, settings: dict[str, Any]) -> Writer:
        """Begin the log, or take it over; once in the life of this object."""
        if self._writer is None:
            record = self.record
            writer = None
            if record.epoch:
                writer = await Writer.take_over(self._store, record.volume, writer=self._name, clock=self._clock)
            if writer is None:
                writer = await self._begin(settings)
            elif writer.view.last.epoch > record.epoch:
                raise FencedError(
                    f"volume {record.volume} was written by another node",
                    hint="what is here and was not in the store is kept aside",
                )
            else:
                # The log of a fork may have begun without its origin being forgotten.
                base, origin = record.base, record.origin
                if origin is not None and (writer.view.disk.epoch, writer.view.disk.number) == (1, 1):
                    base = await asyncio.to_thread(self._base, writer.view, origin.sequence)
                await self._note(epoch=writer.epoch, base=base, origin=None)
            self._writer = writer
        return self._writer

    async def _begin(self, settings: dict[str, Any]) -> Writer:
        record, origin = self.record, self.record.origin
        # Before anything of it is in the store: a log that a later process of this node finds there is its own.
        await self._note(epoch=1)
        if origin is None:
            writer = await found(
                self._store,
                record.volume,
                record.lineage,
                image=record.image,
                size=record.size,
                settings=settings,
                writer=self._name,
                clock=self._clock,
            )
        else:
            writer = await self._begin_fork(origin, settings)
        steps.reach(_BEGUN)
        if writer is None:
            raise UnavailableError(f"the log of volume {record.volume} has begun meanwhile", hint="try again")
        base = None if origin is None else await asyncio.to_thread(self._base, writer.view, origin.sequence)
        await self._note(base=base, origin=None, settings=settings_hash(settings))
        return writer

    async def _begin_fork(self, origin: Origin, settings: dict[str, Any]) -> Writer | None:
        try:
            return await fork(
                self._store,
                origin.volume,
                origin.checkpoint,
                self.record.volume,
                settings=settings,
                writer=self._name,
                clock=self._clock,
            )
        except NotFoundError as error:
            raise UnavailableError(
                f"volume {self.record.volume} is a fork of a checkpoint that is not in the store yet"
            ) from error
        except OutdatedError:
            # The name is used up; as a volume of another one, with all blocks of its own, it loses nothing.
            await self._note(volume=UUID(ids.new_uuid()), lineage=UUID(ids.new_uuid()), epoch=0, origin=None)
            raise

    async def _carry_out(self, writer: Writer, operation: Operation, settings: dict[str, Any]) -> None:
        """Bring the first pending operation into the log; it may be there already, if that could not be noted."""
        state = writer.view.state
        assert state is not None
        kept = next((each for each in self.record.checkpoints if each.id == operation.id), None)
        logged = next((each for each in state.checkpoints if each.id == operation.id), None)
        if operation.kind == "checkpoint" and logged is None:
            snapshot = _Snapshot(operation.sequence, operation.mtime_ns, operation.time)
            # One that was deleted meanwhile is a state of the disk all the same: the next is compared with it.
            await self._log(writer, settings, "checkpoint" if kept else "root", snapshot, kept=kept)
        elif operation.kind == "restore":
            if logged is None:
                raise InternalError(f"the checkpoint {operation.id} was restored, and is not in the log")
            everything = self._state(writer, logged.root, settings, image=logged.image)
            await self._commit(writer, settings, _Snapshot(operation.sequence), "restore", state=everything)
        elif operation.kind == "forget" and logged is not None:
            await self._log(writer, settings, "forget", None, forget=operation.id)
        await self._settle(operation)

    async def _settle(self, operation: Operation) -> None:
        async with self._local:
            checkpoints = tuple(
                msgspec.structs.replace(each, durable=True) if each.id == operation.id else each
                for each in self.record.checkpoints
            )
            await self._write(pending=self.record.pending[1:], checkpoints=checkpoints)

    async def _log(
        self,
        writer: Writer,
        settings: dict[str, Any],
        kind: Kind | None,
        snapshot: _Snapshot | None,
        *,
        kept: Kept | None = None,
        forget: str | None = None,
    ) -> None:
        """Write a commit with everything that it needs.

        Args:
            kind: None: whatever suits the changes of the disk, and none where nothing has changed.
            snapshot: the new state of the disk; None: it is as the log has it.
            kept: a checkpoint of that state, which the commit names.
            forget: id of one that it does not name any more.
        """
        upload = Upload(self._uploads, self._store, writer.new_pack)
        try:
            places: list[tuple[int, Place]] = []
            if snapshot is not None:
                places = await self._differences(writer, snapshot.sequence, upload, inline=kind is None)
                if kind is None and not places:
                    await self._note(snapshot_mtime_ns=snapshot.mtime_ns, snapshot_time=snapshot.time)
                    await asyncio.to_thread(snapshots.remove, self._directory, snapshot.sequence)
                    return
            kind = kind or ("data" if len(places) <= _COMPLETE_CHANGES else "root")
            root = await self._root(writer, places, upload) if kind != "data" else None
            closed = await upload.finish()
        finally:
            await upload.cancel()
            self.cost.cpu_seconds += upload.cpu_seconds
        steps.reach(_UPLOADED)
        if root is None:
            await self._commit(writer, settings, snapshot, kind, upload, closed=closed, blocks=places)
        else:
            everything = self._state(writer, root, settings, kept=kept, forget=forget)
            await self._commit(writer, settings, snapshot, kind, upload, closed=closed, state=everything)

    async def _commit(
        self,
        writer: Writer,
        settings: dict[str, Any],
        snapshot: _Snapshot | None,
        kind: Kind,
        upload: Upload | None = None,
        **content: Any,
    ) -> None:
        """Write a commit, and note what the disk is compared with from now on."""
        base_stays = self._valid_base(writer)
        await writer.commit(kind, **content)
        steps.reach(_COMMITTED)
        changes: dict[str, Any] = {}
        if snapshot is not None:
            changes["base"] = await asyncio.to_thread(self._base, writer.view, snapshot.sequence)
            changes["snapshot_mtime_ns"] = snapshot.mtime_ns
            changes["bytes_written"] = snapshots.allocated(self._directory, snapshot.sequence)
            changes["snapshot_time"] = snapshot.time or self.record.snapshot_time
        elif base_stays is not None:
            changes["base"] = await asyncio.to_thread(self._base, writer.view, base_stays)
        if kind != "data":
            changes["settings"] = settings_hash(settings)
            self._trim_due = True
        if upload is not None:
            changes["bytes_stored"] = self.record.bytes_stored + upload.bytes_stored
        await self._note(**changes)
        steps.reach(_RECORDED)

    def _state(
        self,
        writer: Writer,
        root: Reference,
        settings: dict[str, Any],
        *,
        image: str | None = None,
        kept: Kept | None = None,
        forget: str | None = None,
    ) -> State:
        """What a commit says that names everything."""
        former = writer.view.state
        assert former is not None
        checkpoints = [each for each in former.checkpoints if each.id != forget]
        if kept is not None:
            named = {name: getattr(kept, name) for name in ("id", "time", "comment", "auto", "image")}
            checkpoints.append(Checkpoint(root=root, **named))
        return State(
            root=root,
            checkpoints=tuple(checkpoints),
            image=image or former.image,
            size=former.size,
            settings=settings,
            trashed=writer.view.trashed,
            count=writer.view.count + 1,
            next=self.record.next,
        )

    async def _root(self, writer: Writer, places: list[tuple[int, Place]], upload: Upload) -> Reference:
        """The root of the map with `places` in it; what it needs is in the upload."""
        view = writer.view
        assert view.state is not None
        if not places and not view.changes:
            return view.state.root
        disk = await load_map(self._store, view)
        await load_pages(self._store, view, disk, (block for block, _ in places))
        for block, place in places:
            disk[block] = await upload.add(place, "block") if isinstance(place, Blob) else place
        return await store_map(disk, view, upload.add)

    async def _differences(
        self, writer: Writer, sequence: int, upload: Upload, *, inline: bool
    ) -> list[tuple[int, Place]]:
        """The blocks of a snapshot that are not as the log has them, and where they are from now on."""
        base = self._valid_base(writer)
        with ExitStack() as stack:
            new = stack.enter_context(snapshots.opened(self._directory, sequence))
            if base is not None:
                old = stack.enter_context(snapshots.opened(self._directory, base))
                found = await asyncio.to_thread(changed, old, new)
                if await asyncio.to_thread(_sampled, new, old, found):
                    return await upload.blocks(partial(differing, new, old), _numbers(found), inline=inline)
                log.error("volume %s: a changed block was called unchanged; all are looked at", self.volume_id)
            # Nothing is known of the disk's difference from the log, so every block is compared with the map.
            disk = await load_map(self._store, writer.view)
            await load_pages(self._store, writer.view, disk, (page * PAGE_BLOCKS for page in disk.pages))
            here = set(_numbers(await asyncio.to_thread(changed, None, new)))
            there = {change.block for page in (*disk.pages, *disk.dirty()) for change in disk.page(page)}

            def known(block: int) -> bytes | None:
                place = disk[block]
                return None if place is None else place.piece.hash

            return await upload.blocks(partial(unknown, new, known), sorted(here | there), inline=inline)

    def _valid_base(self, writer: Writer) -> int | None:
        """The sequence of the snapshot that is what the log has of the disk; None where that is not known."""
        base = self.record.base
        if base is None or (base.epoch, base.number) != (writer.view.disk.epoch, writer.view.disk.number):
            return None
        if snapshots.identity(self._directory, base.sequence) != (base.inode, base.generation):
            return None
        return base.sequence

    def _base(self, view: View, sequence: int) -> Base:
        """That a snapshot is what the log has of the disk as of now."""
        identity = snapshots.identity(self._directory, sequence)
        if identity is None:
            raise CorruptError(f"snapshot {sequence} of volume {self.volume_id} has gone", hint="look at the pool")
        at = view.disk
        return Base(sequence=sequence, inode=identity[0], generation=identity[1], epoch=at.epoch, number=at.number)

    # ---- steps of both ----

    async def _unchanged(self, disk: AttachedVolume | None) -> bool:
        """Whether the disk is as it was when it last came into the log, also in memory."""
        async with self._local:
            if not self.local:
                return True
            now = milliseconds(self._clock)
            if disk is not None:
                await asyncio.to_thread(_write_out, disk)
            if self.written_ns() != self.record.snapshot_mtime_ns:
                return False
            self.record = msgspec.structs.replace(self.record, snapshot_time=now)
            return True

    async def _present(self, disk: AttachedVolume | None) -> _Snapshot | None:
        """A snapshot of the disk as it is; None where another operation comes first."""
        async with self._local:
            if self.record.pending:
                return None
            return await self._snapshot(disk, None)

    async def _snapshot(self, disk: AttachedVolume | None, frozen: Frozen | None) -> _Snapshot:
        """A snapshot of the disk, durable here. The caller holds the local lock, and notes it."""
        sequence, image, now = self._next_sequence(), self._directory / "disk.img", milliseconds(self._clock)
        if disk is not None:
            await asyncio.to_thread(_write_out, disk)
        await asyncio.to_thread(snapshots.flush, image)
        steps.reach(_FLUSHED)
        began = self._clock.monotonic()
        async with frozen() if frozen is not None and disk is not None else nullcontext():
            written = self.written_ns()
            await asyncio.to_thread(snapshots.clone, image, self._directory, sequence)
            cloned = self._clock.now().timestamp() * 1e9
        self.cost.stall_seconds = max(self.cost.stall_seconds, self._clock.monotonic() - began)
        steps.reach(_CLONED)
        await asyncio.to_thread(snapshots.keep, self._directory, sequence)
        steps.reach(_KEPT)
        return _Snapshot(sequence, 0 if cloned - written < _RACY_NS else written, now)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    async def _note(self, **changes: Any) -> None:
        async with self._local:
            await self._write(**changes)

    async def _write(self, **changes: Any) -> None:
        """Change the record, then remove the snapshots that it needs no more. The caller holds the local lock."""
        before, after = self.record, msgspec.structs.replace(self.record, **changes)
        await asyncio.to_thread(write_record, self._directory, after)
        self.record = after
        for sequence in before.snapshots - after.snapshots:
            await asyncio.to_thread(snapshots.remove, self._directory, sequence)
            steps.reach(_REMOVED)

    def _new_id(self, auto: bool) -> str:
        if not auto:
            return f"v{self.record.next}"
        taken = {each.id for each in self.record.checkpoints} | {each.id for each in self.record.pending}
        stem = self._clock.now().strftime("auto-%Y%m%dT%H%M%SZ")
        return next(name for name in chain([stem], (f"{stem}-{n}" for n in count(2))) if name not in taken)


def _write_out(disk: AttachedVolume) -> None:
    with disk.opened() as root:
        filesystem.syncfs(root)


def _numbers(blocks: Blocks) -> Iterator[int]:
    return chain.from_iterable(_runs(blocks))


def _runs(blocks: Blocks) -> list[range]:
    return sorted((*blocks.data, *blocks.holes), key=lambda run: run.start)


def _sampled(new: int, old: int, found: Blocks) -> bool:
    """Compare some blocks that are called unchanged: whether they are."""
    size = os.fstat(new).st_size
    runs = _runs(found)
    starts = [run.start for run in runs]
    for _ in range(_SAMPLES):
        try:
            block = os.lseek(new, ids.random_below(size), os.SEEK_DATA) // BLOCK_BYTES
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no data behind that place
                continue
            raise
        position = bisect_right(starts, block) - 1
        if position >= 0 and block in runs[position]:
            continue
        if differing(new, old, [block]).blocks:
            return False
    return True
