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

    async def carry_out(self, settings: dict[str, Any]) -> None:
        """Bring the first pending operation into the log; it may be there already, if that could not be noted.

        A checkpoint and the restore that follows it come there by one commit, as somebody waits for that.
        """
        first, *others = self._local.record.pending
        kept = next((each for each in self._local.record.checkpoints if each.id == first.id), None)
        logged = self._logged(first)
        if first.kind == "checkpoint" and logged is None:
            snapshot = self._local.of(first)
            if kept is None:
                # One that was deleted meanwhile is a state of the disk all the same: the next is compared with it.
                await self.log(settings, "root", snapshot, done=(first,))
            elif others and others[0].kind == "restore" and (restored := self._logged(others[0])) is not None:
                done = (first, others[0])
                await self.log(settings, "restore", snapshot, kept=kept, restored=restored, done=done)
            else:
                await self.log(settings, "checkpoint", snapshot, kept=kept, done=(first,))
        elif first.kind == "restore" and logged is not None:
            everything = self._state(logged.root, settings, restored=logged)
            await self._commit(settings, Snapshot(first.sequence), "restore", state=everything, done=(first,))
        elif first.kind == "forget" and logged is not None:
            await self.log(settings, "forget", None, forget=first.id, done=(first,))
        else:
            # It is there; or it is about a checkpoint that was deleted before, and does not come there any more.
            await self._note((first,))

    def _logged(self, operation: Operation) -> Checkpoint | None:
        """The checkpoint of an operation as the log has it; None where it has not."""
        state = self.writer.view.state
        assert state is not None
        return next((each for each in state.checkpoints if each.id == operation.id), None)

    async def _note(self, done: tuple[Operation, ...], **changes: Any) -> None:
        """Change the record, and let it do without the first pending operations, which are done."""
        async with self._local.lock:
            record = self._local.record
            ids = {each.id for each in done}
            checkpoints = tuple(
                msgspec.structs.replace(each, durable=True) if each.id in ids else each for each in record.checkpoints
            )
            await self._local.write(pending=record.pending[len(done) :], checkpoints=checkpoints, **changes)
            for each in done:
                self._local.pending.pop(each.sequence, None)

    async def log(
        self,
        settings: dict[str, Any],
        kind: Kind | None,
        snapshot: Snapshot | None,
        *,
        kept: Kept | None = None,
        restored: Checkpoint | None = None,
        forget: str | None = None,
        done: tuple[Operation, ...] = (),
    ) -> None:
        """Write a commit with everything that it needs.

        Args:
            settings: the sprite's, as they are now.
            kind: None: whatever suits the changes of the disk, and none where nothing has changed.
            snapshot: the new state of the disk; None: it is as the log has it.
            kept: a checkpoint of that state, which the commit names.
            restored: a checkpoint of the log that the disk has become since.
            forget: id of one that it does not name any more.
            done: the first pending operations, which the commit brings into the log; the last made `restored`.
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
            everything = self._state(root, settings, kept=kept, restored=restored, forget=forget)
            disk = snapshot
            if restored is not None and snapshot is not None:
                disk = Snapshot(done[-1].sequence, time=snapshot.time)
            await self._commit(settings, disk, kind, upload, closed=closed, state=everything, done=done)

    async def _commit(
        self,
        settings: dict[str, Any],
        snapshot: Snapshot | None,
        kind: Kind,
        upload: Upload | None = None,
        *,
        done: tuple[Operation, ...] = (),
        **content: Any,
    ) -> None:
        """Write a commit, and note what the disk is compared with from now on, and which operations are done."""
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
        await self._note(done, **changes)
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
        kept: Kept | None = None,
        restored: Checkpoint | None = None,
        forget: str | None = None,
    ) -> State:
        """What a commit says that names everything; `root` is of the disk, or of what it was before `restored`."""
        former = self.writer.view.state
        assert former is not None
        checkpoints = [each for each in former.checkpoints if each.id != forget]
        if kept is not None:
            named = {name: getattr(kept, name) for name in ("id", "time", "comment", "auto", "image")}
            checkpoints.append(Checkpoint(root=root, **named))
        return State(
            root=root if restored is None else restored.root,
            checkpoints=tuple(checkpoints),
            image=former.image if restored is None else restored.image,
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
