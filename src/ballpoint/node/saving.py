"""Saving: every volume of the node is brought into the store, again and again while it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from ballpoint.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from ballpoint.core.errors import BallpointError, FencedError, NotFoundError, UnavailableError
from ballpoint.core.metrics import Metrics
from ballpoint.core.tasks import Tasks
from ballpoint.node.node import Node
from ballpoint.node.running import Running
from ballpoint.node.views import DiskPlace
from ballpoint.registry.records import Sprite
from ballpoint.store.store import Store
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync.hydrate import Filled
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.recover import find
from ballpoint.volume.sync.upload import Uploads

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_AT_ONCE: Final = 4
# How long after its first change a disk is saved, and how long it may have been changing all the time for that.
INTERVALS: Final = ((600.0, 4.0), (1200.0, 14.0), (float("inf"), 29.0))
# A sync may take that share of the time: of a writer's, who waits while the disk is cloned, and of the processors'.
_STALL_FACTOR: Final = 20.0
_CPU_FACTOR: Final = 10.0
# While the store does not answer.
_RETRY_SECONDS: Final = (5.0, 60.0)
_DISCARD_SECONDS: Final = 10.0
# Less than that is not worth the requests, however small the disk.
_GARBAGE_BYTES: Final = 64 << 20


@dataclass
class _Volume:
    """What the saver knows of one volume.

    Attributes:
        since: when it was first seen to have changed since it was saved; None: it has not. As the others, of the
            monotonic clock.
        busy_since: since when it has never been found unchanged for long.
        not_before: when it may be saved again.
        cpu: CPU time of its sprite when it was last looked at, in microseconds.
        failures: how often saving has failed since it last succeeded; trouble: why.
        stored: bytes that had been put into the store for it when garbage was looked for last.
        filled: how far its disk has come from the store; None: it does not come.
    """

    sprite_id: str
    keeper: Keeper
    since: float | None = None
    busy_since: float | None = None
    not_before: float = 0.0
    cpu: int = -1
    failures: int = 0
    trouble: str | None = None
    stored: int = 0
    filled: Filled | None = None
    saving: asyncio.Task[None] | None = None
    one: asyncio.Lock = field(default_factory=asyncio.Lock)


class Saver:
    """Saves the volumes of a node's sprites, and has the keeper of each.

    Args:
        name: the node's, in logs.
        lost: awaited with a sprite whose volume another node has taken over.

    Attributes:
        on_trash: called with the lineage of a volume that was put into the trash.
        on_garbage: called with the lineage of a volume much of which in the store may be garbage.
    """

    def __init__(
        self,
        node: Node,
        pool: VolumePool,
        store: Store,
        name: str,
        metrics: Metrics,
        *,
        lost: Callable[[str, FencedError], Awaitable[None]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._pool = pool
        self._store = store
        self._name = name
        self._saves = metrics.counter("ballpoint_saves_total", "Disks brought into the store.")
        self._failures = metrics.counter("ballpoint_save_failures_total", "Saves that failed, and will be tried again.")
        self._bytes = metrics.counter("ballpoint_saved_bytes_total", "Bytes stored by saves.")
        self._evictions = metrics.counter("ballpoint_evictions_total", "Disks and checkpoints left to the store alone.")
        self._fetches = metrics.counter("ballpoint_fetches_total", "Disks that came back from the store.")
        self._fetched = metrics.counter("ballpoint_fetched_bytes_total", "Bytes of these.")
        metrics.gauge("ballpoint_unsaved_disks", "Disks that have changed since they were saved.", self._unsaved)
        metrics.gauge("ballpoint_lag_seconds_max", "How long the oldest change has waited.", self._longest_lag)
        self._lost = lost
        self._clock = clock
        self._uploads = Uploads()
        self._volumes: dict[str, _Volume] = {}
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.on_trash: Callable[[UUID], None] = lambda lineage: None
        self.on_garbage: Callable[[UUID], None] = lambda lineage: None

    async def close(self) -> None:
        """Stop saving; what is not saved is found dirty by the next start."""
        await self._tasks.close()
        self._uploads.close()

    async def keeper(self, sprite: Sprite) -> Keeper:
        """The keeper of a sprite's volume."""
        return (await self._volume(sprite.id, sprite.volume_id)).keeper

    async def keeper_of(self, running: Running) -> Keeper:
        """The keeper of a running sprite's volume."""
        return (await self._volume(running.sprite_id, running.volume.id)).keeper

    async def _volume(self, sprite_id: str, volume_id: str) -> _Volume:
        if volume_id not in self._volumes:
            keeper = await asyncio.to_thread(
                Keeper.open,
                self._pool,
                volume_id,
                store=self._store,
                uploads=self._uploads,
                writer=self._name,
                clock=self._clock,
            )
            self._volumes.setdefault(volume_id, _Volume(sprite_id, keeper))
        return self._volumes[volume_id]

    async def look_at_all(self) -> None:
        """Find out which volumes were not saved by the process before this one."""
        for sprite in await self._node.registry.all_sprites():
            if sprite.id not in self._node.running:
                await self.changed(sprite.id, sprite.volume_id)

    async def changed(self, sprite_id: str, volume_id: str) -> None:
        """Something may have changed: save it soon."""
        try:
            volume = await self._volume(sprite_id, volume_id)
        except BallpointError as error:
            log.error("volume %s is not saved: %s", volume_id, error)
            return
        if volume.since is None:
            volume.since = self._clock.monotonic()

    async def forget(self, volume_id: str) -> None:
        """Save a volume no more; what is under way is given up. Idempotent."""
        volume = self._volumes.pop(volume_id, None)
        if volume is not None:
            await _give_up(volume)

    async def compact(self, lineage: UUID) -> None:
        """Let the volumes of a lineage that are here give up objects that are mostly garbage.

        Raises:
            UnavailableError: the store does not answer.
        """
        for volume in list(self._volumes.values()):
            if volume.keeper.record.lineage == lineage:
                async with volume.one:
                    sprite = await self._node.registry.sprite_by_id(volume.sprite_id)
                    done = await volume.keeper.compact(settings_of(sprite))
                if done.moved:
                    log.info(
                        "volume %s: %d objects of %d MiB can be removed, %d MiB of it were stored anew",
                        volume.keeper.volume_id, done.packs, done.size >> 20, done.moved >> 20,
                    )  # fmt: skip

    async def take_from_store(self, sprite: Sprite) -> None:
        """Let the volume of a sprite be what the store has of it, in the place of what was here.

        Raises:
            NotFoundError: the store has nothing of it.
        """
        volume = await self._volume(sprite.id, sprite.volume_id)
        found = await find(self._store, volume.keeper.record.volume)
        if found is None:
            raise NotFoundError(f"the store has no volume {volume.keeper.record.volume}")
        await self.forget(sprite.volume_id)
        aside = await asyncio.to_thread(self._pool.put_aside, sprite.volume_id)
        await asyncio.to_thread(self._pool.place, sprite.volume_id, meta={"image": found.image}, record=found.record())
        await self._node.registry.add_event(sprite.id, "kept_aside", f"the disk that was here is in {aside}")

    async def discard(self, sprite: Sprite) -> None:
        """Say in the store that a sprite is destroyed.

        Raises:
            UnavailableError: the store does not answer in time; the sprite stays.
        """
        volume = await self._volume(sprite.id, sprite.volume_id)
        await _give_up(volume)
        try:
            async with asyncio.timeout(_DISCARD_SECONDS), volume.one:
                await volume.keeper.trash()
                self.on_trash(volume.keeper.record.lineage)
        except FencedError as error:
            log.warning("%s is destroyed here only: %s", sprite.name, error)
        except TimeoutError as error:
            raise UnavailableError(
                f"the store does not say within {_DISCARD_SECONDS:g} s that {sprite.name!r} is destroyed",
                hint="try again when the store answers; nothing has changed",
            ) from error

    async def save(self, sprite: Sprite, seconds: float) -> None:
        """Bring everything into the store that was before this call.

        Args:
            seconds: to wait.

        Raises:
            UnavailableError: the store does not answer, or not in time; it goes on being saved.
        """
        saving = await self.start_saving(sprite)
        if not (await asyncio.wait([saving], timeout=seconds))[0]:
            raise UnavailableError(
                f"{sprite.name!r} is not in the store within {seconds:g} s", hint="it goes on being saved"
            )
        saving.result()

    async def start_saving(self, sprite: Sprite) -> asyncio.Task[None]:
        """Begin to `save`; it goes on whoever waits for the task."""
        volume = await self._volume(sprite.id, sprite.volume_id)
        return self._tasks.start(self._save(volume), f"save {sprite.name}")

    def forked_from(self, volume: UUID, checkpoint_id: str) -> bool:
        """Whether a fork of a checkpoint still needs it, because its own log has not begun.

        Args:
            volume: its name in the log.
        """
        origins = [each.keeper.record.origin for each in self._volumes.values()]
        return any(each is not None and (each.volume, each.checkpoint) == (volume, checkpoint_id) for each in origins)

    async def prepare(self, sprite: Sprite) -> None:
        """Have the disk of a sprite here before it is started.

        Raises:
            UnavailableError: it is in the store only, and that does not answer; or the pool has no room for it.
            CorruptError: what the store has of it is damaged.
        """
        volume = await self._volume(sprite.id, sprite.volume_id)
        if volume.keeper.local:
            return
        began = self._clock.monotonic()
        volume.filled = Filled(0, 0)
        await self._node.registry.add_event(sprite.id, "fetching", "its disk is in the store only")

        def told(filled: Filled) -> None:
            volume.filled = filled

        try:
            await volume.keeper.fetch(told)
            size, seconds = volume.filled.total, self._clock.monotonic() - began
        finally:
            volume.filled = None
        self._fetches.add()
        self._fetched.add(size)
        await self._node.registry.add_event(
            sprite.id, "fetched", f"its disk has come from the store: {size >> 20} MiB in {seconds:.1f} s"
        )

    def place(self, sprite: Sprite, keeper: Keeper) -> DiskPlace:
        """Where the disk of a sprite is."""
        volume = self._volumes.get(sprite.volume_id)
        if volume is not None and volume.filled is not None:
            return "partly"
        return "local" if keeper.local else "store"

    async def _make_room(self) -> None:
        """Below the pool's soft mark, leave what is in the store to it: checkpoints first, then what sleeps longest."""
        usage = await asyncio.to_thread(self._pool.usage, len(self._node.running))
        if usage.free >= usage.soft:
            return
        gone = 0
        for volume in list(self._volumes.values()):
            gone += await volume.keeper.evict_checkpoints()
        self._evictions.add(gone)
        if gone:
            log.info("the pool has little room: %d checkpoints are in the store only from now on", gone)
            return
        sleeping = [sprite for sprite in await self._node.registry.all_sprites() if sprite.state == "cold"]
        for sprite in sorted(sleeping, key=lambda each: each.last_running_at or each.created_at):
            if await self._node.evict(sprite, self._evict):
                return

    async def _evict(self, sprite: Sprite) -> bool:
        volume = await self._volume(sprite.id, sprite.volume_id)
        if not volume.keeper.local or not await volume.keeper.evict(settings_of(sprite)):
            return False
        self._evictions.add()
        await self._node.registry.add_event(sprite.id, "evicted", "the pool had little room; its disk is in the store")
        return True

    def _unsaved(self) -> int:
        return sum(volume.since is not None for volume in self._volumes.values())

    def _longest_lag(self) -> float:
        since = [volume.since for volume in self._volumes.values() if volume.since is not None]
        return self._clock.monotonic() - min(since) if since else 0.0

    def durable_at(self, volume_id: str) -> datetime | None:
        """When the newest state of a disk was taken that the store has; None where it has none."""
        volume = self._volumes.get(volume_id)
        saved = volume.keeper.record.snapshot_time if volume is not None else 0
        return moment(saved) if saved else None

    def lag(self, sprite: Sprite) -> float | None:
        """For how many seconds something of a sprite has been waiting to be saved; None: nothing is."""
        volume = self._volumes.get(sprite.volume_id)
        if volume is None or volume.since is None:
            return None
        return self._clock.monotonic() - volume.since

    async def run(self) -> None:
        """Look at all volumes, again and again, and save those that are due."""
        await self.look_at_all()
        while True:
            try:
                await self._tick()
                await self._make_room()
            except (BallpointError, OSError) as error:
                log.error("volumes could not be looked at: %s", error)
            await self._clock.sleep(_TICK_SECONDS)

    async def _tick(self) -> None:
        now = self._clock.monotonic()
        for running in list(self._node.running.values()):
            volume = await self._volume(running.sprite_id, running.volume.id)
            # What a process wrote may be in memory only, and the image's times show nothing of it yet.
            cpu = running.instance.runtime.cgroup.child("inner").cpu_microseconds()
            if volume.since is None and (cpu != volume.cpu or volume.keeper.record.base is None):
                volume.since = now
            volume.cpu = cpu
        # A snapshot holds room, which is what they lack whose writers wait.
        waiting = {running.volume.id for running in self._node.running.values() if running.frozen}
        for volume in list(self._volumes.values()):
            if volume.saving is not None or volume.since is None or volume.keeper.volume_id in waiting:
                continue
            if now >= max(volume.not_before, self._due(volume)):
                volume.saving = self._tasks.start(self._save_quietly(volume), f"save {volume.keeper.volume_id}")

    def _due(self, volume: _Volume) -> float:
        assert volume.since is not None
        busy = self._clock.monotonic() - (volume.busy_since or volume.since)
        return volume.since + next(wait for until, wait in INTERVALS if busy < until)

    async def _save_quietly(self, volume: _Volume) -> None:
        try:
            async with self._slots:
                await self._save(volume)
        except NotFoundError:
            pass  # it has been destroyed meanwhile
        except (BallpointError, OSError) as error:
            log.warning("volume %s is not saved: %s", volume.keeper.volume_id, error)
        finally:
            volume.saving = None

    async def _save(self, volume: _Volume) -> None:
        async with volume.one:
            began = self._clock.monotonic()
            sprite = await self._node.registry.sprite_by_id(volume.sprite_id)
            keeper = volume.keeper
            before = keeper.record.base, keeper.record.settings
            stored = keeper.record.bytes_stored
            keeper.cost.reset()
            try:
                await self._save_source(keeper)
                await keeper.sync(lambda: self._attached(volume.sprite_id), settings_of(sprite))
            except FencedError as error:
                await self._lost(volume.sprite_id, error)
                raise
            except (BallpointError, OSError) as error:
                await self._failed(volume, sprite, str(error))
                raise
            self._saves.add()
            self._bytes.add(keeper.record.bytes_stored - stored)
            await self._succeeded(volume, sprite, began, changed=before != (keeper.record.base, keeper.record.settings))

    async def _save_source(self, keeper: Keeper) -> None:
        """Bring what a fork was made of into the store first: only then can its own log begin."""
        origin = keeper.record.origin
        if origin is None:
            return
        for source in list(self._volumes.values()):
            record = source.keeper.record
            if record.volume == origin.volume and not record.checkpoint(origin.checkpoint).durable:
                try:
                    await self._save(source)
                except FencedError as error:
                    raise UnavailableError(f"what it was forked from is not this node's any more: {error}") from error

    async def _failed(self, volume: _Volume, sprite: Sprite, trouble: str) -> None:
        volume.failures += 1
        self._failures.add()
        first, last = _RETRY_SECONDS
        volume.not_before = self._clock.monotonic() + min(last, first * 2 ** (volume.failures - 1))
        if volume.since is None:
            volume.since = self._clock.monotonic()
        if volume.trouble is None:
            await self._node.registry.add_event(sprite.id, "not_saved", trouble)
        volume.trouble = trouble

    async def _succeeded(self, volume: _Volume, sprite: Sprite, began: float, *, changed: bool) -> None:
        now = self._clock.monotonic()
        cost = volume.keeper.cost
        volume.not_before = now + max(_STALL_FACTOR * cost.stall_seconds, _CPU_FACTOR * cost.cpu_seconds)
        if changed:
            volume.busy_since = volume.busy_since or volume.since or began
        else:
            volume.busy_since = None
        record = volume.keeper.record
        if record.bytes_stored - volume.stored > max(_GARBAGE_BYTES, record.bytes_written):
            volume.stored = record.bytes_stored
            self.on_garbage(record.lineage)
        volume.failures = 0
        if volume.trouble is not None:
            volume.trouble = None
            await self._node.registry.add_event(sprite.id, "saved", "the store has everything again")
        # What came while this one was under way is seen by the next look at it.
        dirty = volume.keeper.dirty(settings_of(await self._node.registry.sprite_by_id(sprite.id)))
        volume.since = began if dirty else None

    def _attached(self, sprite_id: str) -> AttachedVolume | None:
        running: Running | None = self._node.running.get(sprite_id)
        return None if running is None or running.ending or running.frozen else running.volume


async def _give_up(volume: _Volume) -> None:
    if volume.saving is not None:
        volume.saving.cancel()
        await asyncio.gather(volume.saving, return_exceptions=True)


def settings_of(sprite: Sprite) -> dict[str, Any]:
    """What the log has of a sprite beside its disk: all that `recover` needs."""
    return {
        "id": sprite.id,
        "name": sprite.name,
        "organization": {"id": sprite.org_id, "name": sprite.org},
        "labels": sprite.labels,
        "environment": sprite.environment,
        "config": sprite.config,
        "url_settings": sprite.url_settings,
        "privileges": sprite.privileges,
        "created_at": rfc3339(sprite.created_at),
    }


def moment(milliseconds: int) -> datetime:
    """A time of the log."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
