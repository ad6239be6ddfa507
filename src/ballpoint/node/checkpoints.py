"""States of sprites' disks: kept, restored, forked, brought into the store on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError
from ballpoint.core.types import Caller
from ballpoint.node.disks import Disks
from ballpoint.node.node import Node
from ballpoint.node.running import Running
from ballpoint.node.saving import Saver, moment
from ballpoint.node.shown import Shown
from ballpoint.node.views import CheckpointView, DiskView, NewFork, Progress, ProgressKind, SpriteView
from ballpoint.node.watch.space import Space
from ballpoint.registry.records import Sprite
from ballpoint.volume.record import Kept, Record
from ballpoint.volume.sync.keeper import Keeper

log = logging.getLogger(__name__)

# Automatic checkpoints beyond these go, the oldest first.
AUTO_KEPT = 5


class Checkpoints:
    """The verbs of disks' states, for callers."""

    def __init__(
        self, node: Node, disks: Disks, saver: Saver, space: Space, shown: Shown, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._node = node
        self._disks = disks
        self._saver = saver
        self._space = space
        self._shown = shown
        self._clock = clock
        self._restoring: set[str] = set()

    # ---- checkpoints ----

    async def checkpoint(
        self, caller: Caller, name: str, *, comment: str, wait_durable: bool
    ) -> AsyncIterator[Progress]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        cause = f"with token {caller.token_id}"
        kept = await self._node.to_the_end(self._keep(sprite, comment, cause), f"checkpoint {name}")
        yield self._line("info", f"checkpoint {kept.id} of {name} is kept on this node")
        if wait_durable:
            await self._saver.save(sprite)
            yield self._line("info", f"checkpoint {kept.id} is in the store")
        yield self._line("complete", f"Checkpoint {kept.id} created")

    async def _keep(self, sprite: Sprite, comment: str, cause: str) -> Kept:
        async with self._node.lock(sprite.id):
            kept = await self._take(sprite, comment, auto=False)
            self._shown.changed()
        await self._node.registry.add_event(sprite.id, "checkpoint", f"{kept.id} made {cause}")
        return kept

    async def _take(self, sprite: Sprite, comment: str, *, auto: bool) -> Kept:
        """A checkpoint of the disk as it is. The caller holds the sprite's lock."""
        keeper = await self._saver.keeper(sprite)
        running = self._node.running.get(sprite.id)
        disk = running.volume if running is not None else None
        frozen = partial(self._space.frozen, disk) if disk is not None else None
        kept = await keeper.checkpoint(disk, comment=comment, auto=auto, frozen=frozen)
        await self._saver.changed(sprite.id, sprite.volume_id)
        return kept

    async def checkpoints(self, caller: Caller, name: str, *, include_auto: bool) -> list[CheckpointView]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        record = (await self._saver.keeper(sprite)).record
        return [self._view(sprite, record, each) for each in record.checkpoints if include_auto or not each.auto]

    async def get_checkpoint(self, caller: Caller, name: str, checkpoint_id: str) -> CheckpointView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        record = (await self._saver.keeper(sprite)).record
        return self._view(sprite, record, record.checkpoint(checkpoint_id))

    async def forget(self, caller: Caller, name: str, checkpoint_id: str) -> None:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        await self._node.to_the_end(
            self._forget(sprite, checkpoint_id, f"with token {caller.token_id}"), f"forget {checkpoint_id} of {name}"
        )

    async def _forget(self, sprite: Sprite, checkpoint_id: str, cause: str) -> None:
        async with self._node.lock(sprite.id):
            keeper = await self._saver.keeper(sprite)
            keeper.record.checkpoint(checkpoint_id)
            if self._saver.forked_from(keeper.record.volume, checkpoint_id):
                raise ConflictError(
                    f"a fork of {checkpoint_id!r} is not in the store yet", hint="try again in some seconds"
                )
            await keeper.forget(checkpoint_id)
            self._shown.changed()
            await self._saver.changed(sprite.id, sprite.volume_id)
            self._saver.on_garbage(keeper.record.lineage)
        await self._node.registry.add_event(sprite.id, "checkpoint_deleted", f"{checkpoint_id} deleted {cause}")

    # ---- restore ----

    async def restore(self, caller: Caller, name: str, checkpoint_id: str) -> AsyncIterator[Progress]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        keeper = await self._saver.keeper(sprite)
        keeper.record.checkpoint(checkpoint_id)
        if sprite.id in self._restoring:
            raise ConflictError(f"{name!r} is being restored already", hint="wait for that", code="restoring")
        yield self._line("info", f"restoring {name} to {checkpoint_id}")
        cause = f"restored to {checkpoint_id} with token {caller.token_id}"
        self._restoring.add(sprite.id)
        try:
            former = await self._node.to_the_end(self._restore(sprite, keeper, checkpoint_id, cause), f"restore {name}")
        finally:
            self._restoring.discard(sprite.id)
        if former is not None:
            yield self._line("info", f"what {name} was before is kept as {former.id}")
        yield self._line("complete", f"Restored to {checkpoint_id}")

    async def _restore(self, sprite: Sprite, keeper: Keeper, checkpoint_id: str, cause: str) -> Kept:
        """Start the sprite anew over the checkpoint's disk, beside the old one, and then let that take its place.

        Until then a failure leaves the old one as it was: its writers wait from its automatic checkpoint on.
        """
        async with self._node.lock(sprite.id):
            kept = keeper.record.checkpoint(checkpoint_id)
            old = self._node.running.get(sprite.id)
            async with AsyncExitStack() as frozen:
                if old is not None:
                    await frozen.enter_async_context(self._space.frozen(old.volume))
                former = await keeper.checkpoint(
                    old.volume if old else None, comment=f"before it was {cause}", auto=True, frozen=None
                )
                staged = await keeper.stage(checkpoint_id)
                new = await self._start_beside(sprite, kept, staged)
                try:
                    if old is not None:
                        await old.instance.runtime.set_note({"replaced": sprite.id})
                    await keeper.replace_disk(checkpoint_id, staged)
                    await new.instance.runtime.set_note({"sprite": sprite.id})
                except BaseException:
                    if old is not None:
                        await old.instance.runtime.set_note({"sprite": sprite.id})
                    await self._node.starter.stop(new)
                    raise
            await self._node.replace(sprite, new, cause)
            if kept.image != sprite.image_digest:
                await self._node.registry.update_sprite(sprite.id, image_digest=kept.image)
            await self._prune(keeper)
            await self._saver.changed(sprite.id, sprite.volume_id)
        return former

    async def _start_beside(self, sprite: Sprite, kept: Kept, staged: Path) -> Running:
        """Start a sprite over another disk, while it may run over its own. A later process ends such an instance."""
        volume = await asyncio.to_thread(self._disks.attach_staged, sprite.volume_id, staged)
        of_then = msgspec.structs.replace(sprite, image_digest=kept.image)
        return await self._node.starter.start(of_then, volume, note={"restoring": sprite.id})

    async def _prune(self, keeper: Keeper) -> None:
        autos = [each for each in keeper.record.checkpoints if each.auto and each.id != keeper.record.current]
        for each in autos[:-AUTO_KEPT]:
            if not self._saver.forked_from(keeper.record.volume, each.id):
                await keeper.forget(each.id)

    # ---- forks ----

    async def fork(self, caller: Caller, name: str, request: NewFork) -> SpriteView:
        source = await self._node.registry.sprite(caller.org_id, name)
        work = self._fork(caller, source, request)
        return await self._node.to_the_end(work, f"fork {name} to {request.name}")

    async def _fork(self, caller: Caller, source: Sprite, request: NewFork) -> SpriteView:
        await self._node.registry.require_free(caller.org_id, request.name)
        async with self._node.lock(source.id):
            keeper = await self._saver.keeper(source)
            if request.checkpoint is None:
                kept = await self._take(source, f"forked to {request.name}", auto=True)
            else:
                kept = keeper.record.checkpoint(request.checkpoint)
            volume_id = ids.new_uuid()
            await keeper.fork(kept.id, volume_id)
            await self._prune(keeper)
        sprite = self._node.registry.new_sprite(
            caller,
            request.name,
            sprite_id=f"sprite-{ids.new_uuid()}",
            volume_id=volume_id,
            image_digest=kept.image,
            environment=source.environment,
            labels=[],
            config=source.config,
            url_settings={},
        )
        return await self._node.begin(
            sprite, None, f"forked from {source.name} at {kept.id} with token {caller.token_id}"
        )

    # ---- the disk ----

    async def sync(self, caller: Caller, name: str) -> DiskView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        await self._saver.save(sprite)
        return await self.disk(caller, name)

    async def disk(self, caller: Caller, name: str) -> DiskView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        keeper = await self._saver.keeper(sprite)
        record = keeper.record
        return DiskView(
            place=self._saver.place(sprite, keeper),
            bytes_written=record.bytes_written,
            bytes_stored=record.bytes_stored,
            checkpoints=len(record.checkpoints),
            lag_seconds=self._saver.lag(sprite),
            durable_at=self._saver.durable_at(sprite.volume_id),
            size=record.size,
        )

    def _view(self, sprite: Sprite, record: Record, kept: Kept) -> CheckpointView:
        return CheckpointView(
            id=kept.id,
            create_time=moment(kept.time),
            comment=kept.comment,
            is_auto=kept.auto,
            durable=kept.durable,
            source_id=kept.source,
            health="mount_failed" if kept.id in self._shown.failures(sprite.id) else "",
            history=tuple(_ancestors(record, kept)),
        )

    def _line(self, kind: ProgressKind, data: str) -> Progress:
        return Progress(kind=kind, data=data, time=self._clock.now())


def _ancestors(record: Record, kept: Kept) -> list[str]:
    """Checkpoints whose state went before this one, oldest first, as far as they still exist."""
    known = {each.id: each for each in record.checkpoints}
    found: list[str] = []
    while kept.source in known and kept.source not in found:
        found.append(kept.source)
        kept = known[kept.source]
    return found[::-1]
