"""States of sprites' disks: kept, restored, forked, brought into the store on demand."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError, UnavailableError
from ballpoint.core.types import Caller
from ballpoint.node.disks import Disks
from ballpoint.node.durable.saving import Saver
from ballpoint.node.durable.shown import Shown
from ballpoint.node.durable.volumes import Volumes, moment
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node
from ballpoint.node.standby.forks import Forks
from ballpoint.node.views import CheckpointView, DiskView, NewFork, Progress, ProgressKind, SpriteView
from ballpoint.node.watch.space import Space
from ballpoint.registry.records import Sprite
from ballpoint.volume.record import Kept, Record
from ballpoint.volume.sync.keeper import Keeper

log = logging.getLogger(__name__)

# Automatic checkpoints beyond these go, the oldest first.
AUTO_KEPT = 5
# The front door waits 150 s for an answer's first byte, and clients give up a stream that is silent for 300 s.
_SYNC_SECONDS: Final = 120.0
_SAYING_SECONDS: Final = 30.0
_DURABLE_SECONDS: Final = 600.0
# A restore of what the store has is one commit more, for which it is worth waiting so long.
_STORED_SECONDS: Final = 2.0
# What ran before a restore lets the first command after it pass, and holds memory meanwhile.
_CALM_SECONDS: Final = 0.5

# Is told of what a restored sprite was, and gives whether the store soon has the restore, where that is waited for.
_Told = Callable[[Kept], asyncio.Future[bool] | None]

_STARTED = steps.declare("restore: the sprite runs over its new disk, too")
_STOPPED = steps.declare("restore: what ran before goes on no more")
_RESTORED = steps.declare("restore: what ran before has ended")
_MADE = steps.declare("fork: the volume's keeper knows it")


class Checkpoints:
    """The verbs of disks' states, for callers."""

    def __init__(
        self,
        node: Node,
        disks: Disks,
        volumes: Volumes,
        saver: Saver,
        forks: Forks,
        space: Space,
        shown: Shown,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._disks = disks
        self._volumes = volumes
        self._saver = saver
        self._forks = forks
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
        keeping = self._node.begin_to_the_end(self._keep(sprite.id, comment, cause), f"checkpoint {name}")
        async for line in self._still(keeping, lambda: f"{name} is being checkpointed{self._coming(sprite)}"):
            yield line
        kept = keeping.result()
        yield self._line("info", f"checkpoint {kept.id} of {name} is kept on this node")
        if wait_durable:
            saving = self._saver.start_saving(sprite)
            async for line in self._still(
                saving, lambda: f"checkpoint {kept.id} is not in the store yet", _DURABLE_SECONDS
            ):
                yield line
            if not saving.done():
                raise UnavailableError(
                    f"checkpoint {kept.id} is kept on this node, and not in the store within {_DURABLE_SECONDS:g} s",
                    hint="it goes on being saved; the checkpoint's `durable` says when it is",
                )
            saving.result()
            yield self._line("info", f"checkpoint {kept.id} is in the store")
        yield self._line("complete", f"Checkpoint {kept.id} created")

    async def _still(
        self, work: asyncio.Future[Any], what: Callable[[], str], seconds: float = math.inf
    ) -> AsyncIterator[Progress]:
        """A line now and then until `work` has ended, or for so long: nobody shall take silence for an end."""
        waited = 0.0
        while not (await asyncio.wait({work}, timeout=_SAYING_SECONDS))[0]:
            waited += _SAYING_SECONDS
            if waited >= seconds:
                return
            yield self._line("info", what())

    def _coming(self, sprite: Sprite) -> str:
        """How far its disk is that comes from the store, as the end of a sentence."""
        filled = self._volumes.filled(sprite.volume_id)
        return "" if filled is None else f": {filled.done >> 20} of {filled.total >> 20} MiB have come from the store"

    async def _keep(self, sprite_id: str, comment: str, cause: str) -> Kept:
        async with self._node.lock(sprite_id):
            kept = await self._take(await self._node.living(sprite_id), comment, auto=False)
            self._shown.changed()
        await self._node.registry.add_event(sprite_id, "checkpoint", f"{kept.id} made {cause}")
        return kept

    async def _take(self, sprite: Sprite, comment: str, *, auto: bool) -> Kept:
        """A checkpoint of the disk as it is. The caller holds the sprite's lock."""
        await self._volumes.prepare(sprite)
        keeper = await self._volumes.keeper(sprite)
        running = self._node.running.get(sprite.id)
        disk = running.volume if running is not None else None
        frozen = partial(self._space.frozen, disk) if disk is not None else None
        kept = await keeper.checkpoint(disk, comment=comment, auto=auto, frozen=frozen)
        await self._saver.changed(sprite.id, sprite.volume_id)
        return kept

    async def checkpoints(self, caller: Caller, name: str, *, include_auto: bool) -> list[CheckpointView]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        record = (await self._volumes.keeper(sprite)).record
        return [self._view(sprite, record, each) for each in record.checkpoints if include_auto or not each.auto]

    async def get_checkpoint(self, caller: Caller, name: str, checkpoint_id: str) -> CheckpointView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        record = (await self._volumes.keeper(sprite)).record
        return self._view(sprite, record, record.checkpoint(checkpoint_id))

    async def forget(self, caller: Caller, name: str, checkpoint_id: str) -> None:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        await self._node.to_the_end(
            self._forget(sprite.id, checkpoint_id, f"with token {caller.token_id}"), f"forget {checkpoint_id} of {name}"
        )

    async def _forget(self, sprite_id: str, checkpoint_id: str, cause: str) -> None:
        async with self._node.lock(sprite_id):
            sprite = await self._node.living(sprite_id)
            keeper = await self._volumes.keeper(sprite)
            keeper.record.checkpoint(checkpoint_id)
            if self._volumes.forked_from(keeper.record.volume, checkpoint_id):
                raise ConflictError(
                    f"a fork of {checkpoint_id!r} is not in the store yet", hint="try again in some seconds"
                )
            await keeper.forget(checkpoint_id)
            self._forks.drop(keeper, checkpoint_id)
            self._shown.changed()
            await self._saver.changed(sprite.id, sprite.volume_id)
            self._saver.on_garbage(keeper.record.lineage)
        await self._node.registry.add_event(sprite_id, "checkpoint_deleted", f"{checkpoint_id} deleted {cause}")

    # ---- restore ----

    async def restore(self, caller: Caller, name: str, checkpoint_id: str) -> AsyncIterator[Progress]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        durable = (await self._volumes.keeper(sprite)).record.checkpoint(checkpoint_id).durable
        if sprite.id in self._restoring:
            raise ConflictError(f"{name!r} is being restored already", hint="wait for that", code="restoring")
        self._restoring.add(sprite.id)
        # Whoever has been answered may ask for the next one; that waits until what ran before has ended.
        mark = ExitStack()
        mark.callback(self._restoring.discard, sprite.id)
        cause = f"restored to {checkpoint_id} with token {caller.token_id}"
        runs: asyncio.Future[tuple[Kept, asyncio.Future[bool] | None]] = asyncio.get_running_loop().create_future()

        def told(former: Kept) -> asyncio.Future[bool] | None:
            saved = None
            if durable:
                saved = asyncio.ensure_future(_is_saved(self._saver.start_saving(sprite, present=False)))
                saved.add_done_callback(lambda _: mark.close())
            else:
                mark.close()
            runs.set_result((former, saved))
            return saved

        # Begun before the first line is told: whoever reads no further has asked for it all the same.
        work = self._restore(sprite.id, checkpoint_id, cause, told)
        whole = self._node.begin_to_the_end(work, f"restore {name}")
        whole.add_done_callback(partial(_say_if_failed, name))
        whole.add_done_callback(lambda _: mark.close())
        yield self._line("info", f"restoring {name} to {checkpoint_id}")
        # What ran before is ended after the answer; the next verb waits for that.
        either: set[asyncio.Future[Any]] = {runs, whole}
        first: asyncio.Future[Any] = asyncio.ensure_future(asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED))
        async for line in self._still(first, lambda: f"{name} is being restored{self._coming(sprite)}"):
            yield line
        if not runs.done():
            whole.result()  # why it failed
        former, saved = runs.result()
        yield self._line("info", f"{name} runs; what it was before is kept as {former.id}")
        if saved is not None and not await asyncio.shield(saved):
            yield self._line("info", f"that {name} is {checkpoint_id} again is not yet durable")
        yield self._line("complete", f"Restored to {checkpoint_id}")

    async def _restore(self, sprite_id: str, checkpoint_id: str, cause: str, told: _Told) -> None:
        """Start the sprite anew over the checkpoint's disk, beside the old one, and then let that take its place.

        The rename of the disk decides: until then the old one is as it was, and from then on the new one is the sprite.

        Args:
            told: called with the checkpoint of what it was, once the new one is the sprite. What was is ended after
                what this gives, or a moment: that has somebody who waits for it.
        """
        async with self._node.lock(sprite_id):
            sprite = await self._node.living(sprite_id)
            await self._volumes.prepare(sprite)
            keeper = await self._volumes.keeper(sprite)
            with self._volumes.filling(sprite.volume_id) as filled:
                async with keeper.staged(checkpoint_id, filled) as staged, AsyncExitStack() as afterwards:
                    with self._node.starter.undisturbed():
                        await self._exchange(sprite, keeper, checkpoint_id, staged, cause, told, afterwards)
            await self._prune(keeper)
            await self._saver.changed(sprite_id, sprite.volume_id)

    async def _exchange(
        self,
        sprite: Sprite,
        keeper: Keeper,
        checkpoint_id: str,
        staged: Path,
        cause: str,
        told: _Told,
        afterwards: AsyncExitStack,
    ) -> None:
        """Start `sprite` over a staged disk, keep what it was, and end that `afterwards`."""
        kept = keeper.record.checkpoint(checkpoint_id)
        old = self._node.running.get(sprite.id)
        # The less is left to write out, the shorter it stands still.
        writing = keeper.write_out(old.volume if old is not None else None)
        written = self._node.begin_to_the_end(writing, f"write out {sprite.name}")
        try:
            volume = await asyncio.to_thread(self._disks.attach_staged, sprite.volume_id, staged)
            new = await self._node.starter.start(msgspec.structs.replace(sprite, image_digest=kept.image), volume)
            steps.reach(_STARTED)
        finally:
            await asyncio.wait({written})
        try:
            written.result()
            former, image = await keeper.exchange(
                checkpoint_id,
                staged,
                old.volume if old is not None else None,
                comment=f"before it was {cause}",
                stopped=self._for_good(old) if old is not None else nullcontext(),
            )
            volume.moved(image)
        except BaseException:
            if not await asyncio.shield(asyncio.to_thread(self._disks.pool.is_disk, volume)):
                await asyncio.shield(self._node.starter.stop(new))
                raise
            # Whatever failed came after the rename: there is no way back.
            volume.moved(self._disks.pool.directory(sprite.volume_id) / "disk.img")
            await asyncio.shield(self._become(sprite, new, kept, cause, lambda: None, afterwards))
            raise
        await self._become(sprite, new, kept, cause, lambda: told(former), afterwards)
        steps.reach(_RESTORED)

    async def _become(
        self,
        sprite: Sprite,
        new: Running,
        kept: Kept,
        cause: str,
        told: Callable[[], asyncio.Future[bool] | None],
        afterwards: AsyncExitStack,
    ) -> None:
        """Let `new`, which runs over the disk of a checkpoint, be the sprite, and end what was `afterwards`."""
        old = self._node.replace(sprite, new)
        if old is not None:
            afterwards.push_async_callback(self._end, sprite, old, cause)
        if kept.image != sprite.image_digest:  # who is told that it is done may ask at once what it is on
            await self._node.registry.update_sprite(sprite.id, image_digest=kept.image)
        saved = told()
        await self._node.registry.set_state(sprite.id, "running", kind="restored", cause=cause)
        if saved is not None:
            await asyncio.wait({saved})

    async def _end(self, sprite: Sprite, old: Running, cause: str) -> None:
        """End what ran of a sprite before it was restored, once the first command after that has passed."""
        await self._node.starter.calm(_CALM_SECONDS)
        await self._node.end(sprite, old, cause)

    @asynccontextmanager
    async def _for_good(self, old: Running) -> AsyncIterator[None]:
        """Let the writers of a disk wait, and never go on where it was replaced: it is the sprite's no more."""
        async with self._space.frozen(old.volume):
            yield
            old.instance.runtime.cgroup.child("inner").freeze(True)
            steps.reach(_STOPPED)

    # ---- upgrade ----

    async def upgrade(self, caller: Caller, name: str) -> None:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        cause = f"upgraded with token {caller.token_id}"
        await self._node.to_the_end(self._upgrade(sprite.id, cause), f"upgrade {name}")

    async def _upgrade(self, sprite_id: str, cause: str) -> None:
        """Put a sprite's disk over the node's image: a restore of what it is, on another image.

        Its processes are ended first, so that there is nothing between the two.
        """
        image = self._disks.image.digest
        async with self._node.lock(sprite_id):
            sprite = await self._node.living(sprite_id)
            if sprite.image_digest == image:
                return
            await self._node.stop(sprite, cause)
            await self._volumes.prepare(sprite)
            sprite = await self._node.living(sprite_id)
            keeper = await self._volumes.keeper(sprite)
            comment = f"on the image {image}"
            kept = await keeper.checkpoint(None, comment=comment, auto=True, frozen=None, image=image)
            try:
                async with keeper.staged(kept.id) as staged, AsyncExitStack() as afterwards:
                    with self._node.starter.undisturbed():
                        await self._exchange(sprite, keeper, kept.id, staged, cause, lambda _: None, afterwards)
            except BaseException:
                if sprite_id not in self._node.running:
                    await keeper.forget(kept.id)
                raise
            await self._prune(keeper)
            await self._saver.changed(sprite_id, sprite.volume_id)

    async def _prune(self, keeper: Keeper) -> None:
        record = keeper.record
        autos = [each for each in record.checkpoints if each.auto and each.id not in {record.current, record.restored}]
        for each in autos[:-AUTO_KEPT]:
            if not self._volumes.forked_from(record.volume, each.id):
                await keeper.forget(each.id)

    # ---- forks ----

    async def fork(self, caller: Caller, name: str, request: NewFork) -> SpriteView:
        source = await self._node.registry.sprite(caller.org_id, name)
        work = self._fork(caller, source.id, request)
        return await self._node.to_the_end(work, f"fork {name} to {request.name}")

    async def _fork(self, caller: Caller, source_id: str, request: NewFork) -> SpriteView:
        await self._node.registry.require_free(caller.org_id, request.name)
        async with self._node.lock(source_id):
            source = await self._node.living(source_id)
            keeper = await self._volumes.keeper(source)
            if request.checkpoint is None:
                kept = await self._take(source, f"forked to {request.name}", auto=True)
                await self._prune(keeper)
                volume = await self._forks.make(keeper, kept.id)
            else:
                kept = keeper.record.checkpoint(request.checkpoint)
                volume = await self._forks.take(keeper, kept.id)
            made = self._node.registry.new_sprite(
                caller,
                request.name,
                sprite_id=f"sprite-{ids.new_uuid()}",
                volume_id=volume.id,
                image_digest=kept.image,
                environment=source.environment,
                labels=[],
                config=source.config,
                url_settings={},
            )
            # From here on the checkpoint is known to be needed, and is not deleted before the fork is in the store.
            await self._saver.changed(made.id, volume.id)
            steps.reach(_MADE)
        sprite = msgspec.structs.replace(made, privileges=source.privileges)
        return await self._node.begin(
            sprite, volume, f"forked from {source.name} at {kept.id} with token {caller.token_id}"
        )

    # ---- the disk ----

    async def sync(self, caller: Caller, name: str) -> DiskView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        await self._saver.save(sprite, _SYNC_SECONDS)
        return await self.disk(caller, name)

    async def disk(self, caller: Caller, name: str) -> DiskView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        keeper = await self._volumes.keeper(sprite)
        record = keeper.record
        return DiskView(
            place=self._volumes.place(sprite, keeper),
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


async def _is_saved(saving: asyncio.Future[None]) -> bool:
    """Whether a save succeeds within a moment."""
    await asyncio.wait({saving}, timeout=_STORED_SECONDS)
    return saving.done() and not saving.cancelled() and saving.exception() is None


def _say_if_failed(name: str, whole: asyncio.Future[None]) -> None:
    """A restore may fail after it was answered, or when nobody listens any more."""
    if not whole.cancelled() and (failure := whole.exception()) is not None:
        log.warning("the restore of %s has not come to its end: %s", name, failure)


def _ancestors(record: Record, kept: Kept) -> list[str]:
    """Checkpoints whose state went before this one, oldest first, as far as they still exist."""
    known = {each.id: each for each in record.checkpoints}
    found: list[str] = []
    while kept.source in known and kept.source not in found:
        found.append(kept.source)
        kept = known[kept.source]
    return found[::-1]
