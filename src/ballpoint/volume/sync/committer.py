"""What is here of a volume becomes commits of its log."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from ballpoint.core import steps
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import Blob, Reference
from ballpoint.volume.log.commit import Checkpoint, Kind, State
from ballpoint.volume.log.compact import COMMITS_MAX, Compacted, compact
from ballpoint.volume.log.log import Writer
from ballpoint.volume.log.mapped import load_map, load_pages, store_map
from ballpoint.volume.record import Kept, Operation, settings_hash
from ballpoint.volume.sync.differences import differences
from ballpoint.volume.sync.local import Local, Logged, Snapshot
from ballpoint.volume.sync.upload import Place, Upload, Uploads

# A commit that names everything: so often, or after so many changes (32 bytes each to whoever replays the log).
_COMPLETE_EVERY: Final = 64
_COMPLETE_CHANGES: Final = 32_768

_UPLOADED = steps.declare("sync: all packs are stored")
_COMING = steps.declare("sync: the record names the commit that comes")
_COMMITTED = steps.declare("sync: the commit is stored")
_RECORDED = steps.declare("sync: the record names the new base")
_TRIMMED = steps.declare("sync: the log is trimmed")


class Committer:
    """Writes the log of one volume, from when that was begun or taken over to the end of this process.

    Args:
        uploads: shared by all volumes of the node.

    Attributes:
        writer: of the log. What it writes is noted in the record here.
    """

    def __init__(self, local: Local, writer: Writer, store: Store, uploads: Uploads) -> None:
        self._local = local
        self._store = store
        self._uploads = uploads
        self._trim_due = False
        self.writer = writer

    async def settle(self) -> None:
        """Find out whether the last commit is in the log, whose outcome is not known. Errors as `Writer.commit`."""
        await self.writer.settle()
        if (coming := self._local.record.coming) is not None:
            at = self.writer.view.disk
            has_come = (coming.epoch, coming.number) == (at.epoch, at.number)
            await self._local.note(base=coming if has_come else self._local.record.base, coming=None)
        self._local.logged_is_settled(self.writer.view)

    async def append(self, kind: Kind, *, base: int | None = None, logged: int | None = None, **content: Any) -> None:
        """Write a commit. That it is this node's own is noted before, for a process that finds it in the log.

        Args:
            base: sequence of the snapshot that the disk is compared with from then on, where the commit changes that.
            logged: number of the state that the log has of the disk then, likewise.
            content: as `Writer.commit`.
        """
        at = self.writer.view.next
        coming = None if base is None else await asyncio.to_thread(self._local.base, at, base)
        await self._local.note(epoch=at.epoch, number=at.number, coming=coming)
        self._local.coming = Logged.after(at, logged)
        steps.reach(_COMING)
        await self.writer.commit(kind, **content)

    async def carry_out(self, operation: Operation, settings: dict[str, Any]) -> None:
        """Bring the first pending operation into the log; it may be there already, if that could not be noted."""
        state = self.writer.view.state
        assert state is not None
        kept = next((each for each in self._local.record.checkpoints if each.id == operation.id), None)
        logged = next((each for each in state.checkpoints if each.id == operation.id), None)
        if operation.kind == "checkpoint" and logged is None:
            snapshot = self._local.of(operation)
            # One that was deleted meanwhile is a state of the disk all the same: the next is compared with it.
            await self.log(settings, "checkpoint" if kept else "root", snapshot, kept=kept)
        elif operation.kind == "restore":
            # One that was deleted before it was in the log does not come there; something was restored after it.
            if logged is not None:
                everything = self._state(logged.root, settings, image=logged.image)
                await self._commit(settings, Snapshot(operation.sequence), "restore", state=everything)
        elif operation.kind == "forget" and logged is not None:
            await self.log(settings, "forget", None, forget=operation.id)
        await self._settle(operation)

    async def _settle(self, operation: Operation) -> None:
        async with self._local.lock:
            checkpoints = tuple(
                msgspec.structs.replace(each, durable=True) if each.id == operation.id else each
                for each in self._local.record.checkpoints
            )
            await self._local.write(pending=self._local.record.pending[1:], checkpoints=checkpoints)
            self._local.pending.pop(operation.sequence, None)

    async def log(
        self,
        settings: dict[str, Any],
        kind: Kind | None,
        snapshot: Snapshot | None,
        *,
        kept: Kept | None = None,
        forget: str | None = None,
    ) -> None:
        """Write a commit with everything that it needs.

        Args:
            settings: the sprite's, as they are now.
            kind: None: whatever suits the changes of the disk, and none where nothing has changed.
            snapshot: the new state of the disk; None: it is as the log has it.
            kept: a checkpoint of that state, which the commit names.
            forget: id of one that it does not name any more.
        """
        upload = Upload(self._uploads, self._store, self.writer.new_pack)
        try:
            places: list[tuple[int, Place]] = []
            if snapshot is not None:
                view = self.writer.view
                places = await differences(self._store, self._local, view, snapshot, upload, inline=kind is None)
                if kind is None and not places:
                    await self._is_as_before(snapshot)
                    return
            kind = kind or ("data" if len(places) <= _COMPLETE_CHANGES else "root")
            root = await self._root(places, upload) if kind != "data" else None
            closed = await upload.finish()
        finally:
            await upload.cancel()
            self._local.cost.cpu_seconds += upload.cpu_seconds
        steps.reach(_UPLOADED)
        if root is None:
            await self._commit(settings, snapshot, kind, upload, closed=closed, blocks=places)
        else:
            everything = self._state(root, settings, kept=kept, forget=forget)
            await self._commit(settings, snapshot, kind, upload, closed=closed, state=everything)

    async def _commit(
        self,
        settings: dict[str, Any],
        snapshot: Snapshot | None,
        kind: Kind,
        upload: Upload | None = None,
        **content: Any,
    ) -> None:
        """Write a commit, and note what the disk is compared with from now on."""
        base, logged = self._local.valid_base(self.writer.view), self._local.logged_in(self.writer.view)
        if snapshot is not None:
            base, logged = snapshot.sequence, snapshot.number
        await self.append(kind, base=base, logged=logged, **content)
        steps.reach(_COMMITTED)
        self._local.logged = self._local.coming
        changes: dict[str, Any] = {}
        if base is not None or snapshot is not None:
            changes["base"], changes["coming"] = self._local.record.coming, None
        if snapshot is not None:
            changes["snapshot_mtime_ns"] = snapshot.mtime_ns
            changes["snapshot_time"] = snapshot.time or self._local.record.snapshot_time
            changes["bytes_written"] = self._local.allocated(snapshot)
        if kind != "data":
            changes["settings"] = settings_hash(settings)
            self._trim_due = True
        if upload is not None:
            changes["bytes_stored"] = self._local.record.bytes_stored + upload.bytes_stored
        await self._local.note(**changes)
        steps.reach(_RECORDED)

    async def _is_as_before(self, snapshot: Snapshot) -> None:
        """A snapshot turned out to be what the log has."""
        local, view = self._local, self.writer.view
        base = local.record.base
        if local.valid_base(view) is None:
            base = None
            if snapshot.sequence is not None:
                base = await asyncio.to_thread(local.base, view.disk, snapshot.sequence)
        local.logged = Logged.after(view.disk, snapshot.number)
        await local.note(base=base, snapshot_mtime_ns=snapshot.mtime_ns, snapshot_time=snapshot.time)

    def _state(
        self,
        root: Reference,
        settings: dict[str, Any],
        *,
        image: str | None = None,
        kept: Kept | None = None,
        forget: str | None = None,
    ) -> State:
        """What a commit says that names everything."""
        former = self.writer.view.state
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
            trashed=self.writer.view.trashed,
            count=self.writer.view.count + 1,
            next=self._local.record.next,
        )

    async def _root(self, places: list[tuple[int, Place]], upload: Upload) -> Reference:
        """The root of the map with `places` in it; what it needs is in the upload."""
        view = self.writer.view
        assert view.state is not None
        if not places and not view.changes:
            return view.state.root
        await self.writer.recall()
        disk = await load_map(self._store, view)
        await load_pages(self._store, view, disk, (block for block, _ in places))
        for block, place in places:
            disk[block] = await upload.add(place, "block") if isinstance(place, Blob) else place
        return await store_map(disk, view, upload.add)

    async def settings(self, settings: dict[str, Any]) -> None:
        """Bring the sprite's settings into the log, where they are others."""
        if self._local.record.settings != (digest := settings_hash(settings)):
            await self.append("settings", settings=settings)
            await self._local.note(settings=digest)

    async def tidy(self, settings: dict[str, Any]) -> None:
        """Keep the log short for whoever replays it."""
        if len(self.writer.view.changes) >= _COMPLETE_EVERY:
            await self.log(settings, "root", None)
        if self._trim_due:
            await self.writer.trim()
            self._trim_due = False
            steps.reach(_TRIMMED)

    async def compact(self) -> Compacted:
        """Move what is still needed out of objects that are mostly garbage."""
        local, view = self._local, self.writer.view
        base, state, at = local.valid_base(view), local.logged_in(view), view.next
        await local.note(epoch=at.epoch, number=at.number + COMMITS_MAX - 1)
        done = await compact(self._store, self.writer)
        view = self.writer.view
        still = local.record.base if base is None else await asyncio.to_thread(local.base, view.disk, base)
        local.logged = Logged.after(view.disk, state)
        await local.note(number=view.head.number, base=still)
        return done
