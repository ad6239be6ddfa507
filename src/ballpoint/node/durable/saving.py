"""Saving: every volume of the node is brought into the store, again and again while it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from ballpoint.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from ballpoint.core.errors import (
    BallpointError,
    ConflictError,
    CorruptError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from ballpoint.core.metrics import Metrics
from ballpoint.core.tasks import Tasks
from ballpoint.node.durable.volumes import Held, Volumes, give_up, moment
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node
from ballpoint.registry.records import Sprite
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.record import Origin
from ballpoint.volume.sync.keeper import Keeper, Stopped

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_AT_ONCE: Final = 4
# How long after its first change a disk is saved, and how long it may have been changing all the time for that.
INTERVALS: Final = ((600.0, 4.0), (1200.0, 14.0), (float("inf"), 29.0))
# A sync may take that share of the time: of a writer's, who waits while the disk is cloned, and of the processors'.
_STALL_FACTOR: Final = 20.0
_CPU_FACTOR: Final = 10.0
# Processors are not spared where the oldest change would then wait for longer than that.
_LAG_SECONDS: Final = 110.0
# While the store does not answer.
_RETRY_SECONDS: Final = (5.0, 60.0)
_DISCARD_SECONDS: Final = 10.0
# Less than that is not worth the requests, however small the disk.
_GARBAGE_BYTES: Final = 64 << 20


class _NotNow(UnavailableError):
    """The disk is between two states, and is saved when it is in the next: nothing is wrong."""


class Saver:
    """Saves the volumes of a node's sprites.

    Args:
        stopped: what stops the writers of a disk for a moment.

    Attributes:
        on_trash: called with the lineage of a volume that was put into the trash.
        on_garbage: called with the lineage of a volume much of which in the store may be garbage.
        on_first: called with the image below a volume that the store has nothing of yet.
    """

    def __init__(
        self,
        node: Node,
        volumes: Volumes,
        pool: VolumePool,
        metrics: Metrics,
        *,
        stopped: Stopped,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._volumes = volumes
        self._pool = pool
        self._saves = metrics.counter("ballpoint_saves_total", "Disks brought into the store.")
        self._failures = metrics.counter("ballpoint_save_failures_total", "Saves that failed, and will be tried again.")
        self._bytes = metrics.counter("ballpoint_saved_bytes_total", "Bytes stored by saves.")
        self._alarms = metrics.counter("ballpoint_alarms_total", "Times that what was believed of a disk was wrong.")
        metrics.gauge("ballpoint_unsaved_disks", "Disks that have changed since they were saved.", self._unsaved)
        metrics.gauge("ballpoint_lag_seconds_max", "How long the oldest change has waited.", self._longest_lag)
        self._stopped = stopped
        self._clock = clock
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # Running sprites' volumes that nothing can be done for, and why.
        self._unsaved_for: dict[str, str] = {}
        self.on_trash: Callable[[UUID], None] = lambda lineage: None
        self.on_garbage: Callable[[UUID], None] = lambda lineage: None
        self.on_first: Callable[[str], None] = lambda digest: None

    async def close(self) -> None:
        """Stop saving; what is not saved is found dirty by the next start."""
        await self._tasks.close()

    async def look_at_all(self) -> None:
        """Find out which volumes were not saved by the process before this one."""
        for sprite in await self._node.registry.all_sprites():
            if sprite.id not in self._node.running:
                await self.changed(sprite.id, sprite.volume_id)

    async def changed(self, sprite_id: str, volume_id: str) -> None:
        """Something may have changed: save it soon."""
        try:
            volume = await self._volumes.held(sprite_id, volume_id)
        except (BallpointError, OSError) as error:
            log.error("volume %s is not saved: %s", volume_id, error)
            return
        if volume.since is None:
            volume.since = self._clock.monotonic()

    async def compact(self, lineage: UUID) -> None:
        """Let the volumes of a lineage that are here give up objects that are mostly garbage.

        Raises:
            UnavailableError: the store does not answer.
        """
        for volume in self._volumes.all():
            if volume.keeper.record.lineage == lineage:
                async with volume.one:
                    sprite = await self._node.registry.sprite_by_id(volume.sprite_id)
                    done = await volume.keeper.compact(settings_of(sprite))
                if done.moved:
                    log.info(
                        "volume %s: %d objects of %d MiB can be removed, %d MiB of it were stored anew",
                        volume.keeper.volume_id, done.packs, done.size >> 20, done.moved >> 20,
                    )  # fmt: skip

    @asynccontextmanager
    async def discarded(self, sprite: Sprite) -> AsyncIterator[None]:
        """Say in the store that a sprite is destroyed, before what is done within; where that fails, it lives on.

        Raises:
            UnavailableError: the store does not answer in time; the sprite stays.
        """
        try:
            await self._discard(sprite)
            yield
        except BaseException:
            await asyncio.shield(self._spare(sprite))
            raise

    async def _discard(self, sprite: Sprite) -> None:
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                volume = await self._volumes.placed(sprite)
                # From here on nothing is begun that would take it out of the trash again.
                volume.ended = ConflictError(f"the sprite {sprite.name!r} is being destroyed")
                await give_up(volume)
                async with volume.one:
                    await volume.keeper.trash()
                    self.on_trash(volume.keeper.record.lineage)
        except CorruptError as error:
            if await self._volumes.in_store(sprite) is not None:
                raise
            log.warning("%s is destroyed, and the store had nothing of it: %s", sprite.name, error)
        except FencedError as error:
            log.warning("%s is destroyed here only: %s", sprite.name, error)
        except TimeoutError as error:
            raise UnavailableError(
                f"the store does not say within {_DISCARD_SECONDS:g} s that {sprite.name!r} is destroyed",
                hint="try again when the store answers; nothing has changed",
            ) from error

    async def _spare(self, sprite: Sprite) -> None:
        """What the store may have heard of its end is taken back."""
        volume = self._volumes.get(sprite.volume_id)
        if volume is not None and isinstance(volume.ended, ConflictError):
            volume.ended = None
            await self.changed(sprite.id, sprite.volume_id)

    async def save(self, sprite: Sprite, seconds: float) -> None:
        """Bring everything into the store that was before this call.

        Args:
            seconds: to wait.

        Raises:
            UnavailableError: the store does not answer, or not in time; it goes on being saved.
        """
        saving = self.start_saving(sprite)
        if not (await asyncio.wait([saving], timeout=seconds))[0]:
            raise UnavailableError(
                f"{sprite.name!r} is not in the store within {seconds:g} s", hint="it goes on being saved"
            )
        saving.result()

    def start_saving(self, sprite: Sprite, *, present: bool = True) -> asyncio.Task[None]:
        """Begin to `save`; it goes on whoever waits for the task.

        Args:
            present: as of `Keeper.sync`.
        """
        saving = self._save_settled(sprite.id, partial(self._volumes.usable, sprite), present=present)
        return self._tasks.start(saving, f"save {sprite.name}")

    async def _save_settled(self, sprite_id: str, find: Callable[[], Awaitable[Held]], *, present: bool = True) -> None:
        """Save what `find` gives; while its sprite is being stopped, started or restored, wait for that."""
        while True:
            try:
                return await self._save(await find(), present=present)
            except _NotNow as error:
                running = self._node.running.get(sprite_id)
                if running is not None and running.frozen:
                    raise  # its writers wait for room, and that may take for ever
                async with self._node.lock(sprite_id):
                    if running is not None and self._node.running.get(sprite_id) is running and running.ending:
                        raise UnavailableError(f"{error.message}, and something holds it", hint="try again") from error

    def _unsaved(self) -> int:
        return sum(volume.since is not None for volume in self._volumes.all())

    def _longest_lag(self) -> float:
        since = [volume.since for volume in self._volumes.all() if volume.since is not None]
        return self._clock.monotonic() - min(since) if since else 0.0

    def durable_at(self, volume_id: str) -> datetime | None:
        """When the newest state of a disk was taken that the store has; None where it has none."""
        volume = self._volumes.get(volume_id)
        saved = volume.keeper.record.snapshot_time if volume is not None else 0
        return moment(saved) if saved else None

    def trouble(self, volume_id: str) -> str | None:
        """Why a disk could not be saved last; None while nothing is wrong."""
        volume = self._volumes.get(volume_id)
        return None if volume is None or volume.trouble is None else f"its disk is not saved: {volume.trouble}"

    def lag(self, sprite: Sprite) -> float | None:
        """For how many seconds something of a sprite has been waiting to be saved; None: nothing is."""
        volume = self._volumes.get(sprite.volume_id)
        if volume is None or volume.since is None:
            return None
        return self._clock.monotonic() - volume.since

    async def run(self) -> None:
        """Look at all volumes, again and again, and save those that are due."""
        looked = False
        while True:
            try:
                if not looked:
                    await self.look_at_all()
                    looked = True
                await self._tick()
            except (BallpointError, OSError) as error:
                log.error("volumes could not be looked at: %s", error)
            await self._clock.sleep(_TICK_SECONDS)

    async def _tick(self) -> None:
        now = self._clock.monotonic()
        for running in list(self._node.running.values()):
            try:
                volume = await self._volumes.used_by(running)
            except BallpointError as error:
                # One whose record is damaged holds up no other.
                if self._unsaved_for.get(running.volume.id) != str(error):
                    self._unsaved_for[running.volume.id] = str(error)
                    await self._node.registry.add_event(running.sprite_id, "not_saved", str(error))
                continue
            self._unsaved_for.pop(running.volume.id, None)
            volume.tried = True
            # What a process wrote may be in memory only, and the image's times show nothing of it yet.
            cpu = running.instance.runtime.cgroup.child("inner").cpu_microseconds()
            if volume.since is None and (cpu != volume.cpu or not volume.keeper.known):
                volume.since = now
            volume.cpu = cpu
        # A snapshot holds room, which is what they lack whose writers wait; what is being stopped is saved after that.
        waiting = {each.volume.id for each in self._node.running.values() if each.frozen or each.ending}
        for volume in self._volumes.all():
            if volume.saving is not None or volume.since is None or volume.ended is not None:
                continue
            if volume.keeper.volume_id in waiting:
                continue
            if now >= max(volume.not_before, self._due(volume)):
                volume.saving = self._tasks.start(self._save_quietly(volume), f"save {volume.keeper.volume_id}")

    def _due(self, volume: Held) -> float:
        assert volume.since is not None
        busy = self._clock.monotonic() - (volume.busy_since or volume.since)
        return volume.since + next(wait for until, wait in INTERVALS if busy < until)

    async def _save_quietly(self, volume: Held) -> None:
        try:
            async with self._slots:
                await self._save(volume)
        except (NotFoundError, _NotNow):
            pass  # it has been destroyed meanwhile, or is being stopped
        except (BallpointError, OSError) as error:
            log.warning("volume %s is not saved: %s", volume.keeper.volume_id, error)
        finally:
            volume.saving = None

    async def _save(self, volume: Held, *, present: bool = True) -> None:
        async with volume.one:
            if volume.ended is not None:
                raise volume.ended
            began = self._clock.monotonic()
            sprite = await self._node.registry.sprite_by_id(volume.sprite_id)
            keeper = volume.keeper
            before = keeper.record.epoch, keeper.record.number
            running = self._node.running.get(volume.sprite_id)
            if not keeper.record.epoch:
                self.on_first(sprite.image_digest)
            stored = keeper.record.bytes_stored
            keeper.cost.reset()
            try:
                await self._save_source(keeper)
                await self._require_sound(volume, settings_of(sprite))
                await self._sync(volume, settings_of(sprite), present=present)
            except FencedError as error:
                await self._volumes.fenced(volume, error)
                raise
            except _NotNow:
                raise
            except (BallpointError, OSError) as error:
                if error is volume.ended:
                    raise
                if running is not None and (running.ending or self._node.running.get(volume.sprite_id) is not running):
                    raise _NotNow(f"{sprite.name!r} was stopped meanwhile", hint="try again") from error
                await self._failed(volume, sprite, str(error))
                raise
            finally:
                await self._tell_alarms(keeper, sprite)
            self._bytes.add(keeper.record.bytes_stored - stored)
            if not present:
                return  # it is due as before
            self._saves.add()
            await self._succeeded(volume, sprite, began, changed=before != (keeper.record.epoch, keeper.record.number))

    async def _sync(self, volume: Held, settings: dict[str, Any], *, present: bool) -> None:
        """Let the keeper bring a volume into the store, up to when that ends (`give_up`).

        Raises:
            ConflictError: it is being destroyed; others as `Keeper.sync`.
        """
        work = volume.keeper.sync(lambda: self._attached(volume.sprite_id), settings, self._stopped, present=present)
        volume.syncing = asyncio.ensure_future(work)
        try:
            await volume.syncing
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if volume.ended is None or (caller is not None and caller.cancelling()):
                raise
            raise volume.ended from None
        finally:
            volume.syncing = None

    async def _save_source(self, keeper: Keeper) -> None:
        """Bring what a fork was made of into the store first: only then can its own log begin."""
        origin = keeper.record.origin
        if origin is None:
            return
        for source in self._volumes.all():
            if _is_to_come(origin, source):
                try:
                    find = partial(self._volumes.held, source.sprite_id, source.keeper.volume_id)
                    await self._save_settled(source.sprite_id, find)
                except ConflictError:
                    if source.ended is None:
                        raise
                    continue  # it is being destroyed, and the fork's log begins without it
                except FencedError as error:
                    raise UnavailableError(f"what it was forked from is not this node's any more: {error}") from error
                except _NotNow as error:
                    raise UnavailableError(f"what it was forked from is not saved now: {error.message}") from error

    async def _require_sound(self, volume: Held, settings: dict[str, Any]) -> None:
        """Refuse a damaged disk: it must not take the place of what the store has.

        A disk that changed while no process of this node had it is looked at once, and well.

        Raises:
            DamagedDiskError: it is damaged.
        """
        keeper = volume.keeper
        if not keeper.local or not keeper.dirty(settings):
            return
        look = self._pool.require_disk if volume.tried else self._pool.require_mountable
        await asyncio.to_thread(look, keeper.volume_id)
        volume.tried = True

    async def _tell_alarms(self, keeper: Keeper, sprite: Sprite) -> None:
        while keeper.alarms:
            self._alarms.add()
            await self._node.registry.add_event(sprite.id, "alarm", keeper.alarms.pop(0))

    async def _failed(self, volume: Held, sprite: Sprite, trouble: str) -> None:
        volume.failures += 1
        self._failures.add()
        first, last = _RETRY_SECONDS
        volume.not_before = self._clock.monotonic() + min(last, first * 2 ** (volume.failures - 1))
        if volume.since is None:
            volume.since = self._clock.monotonic()
        before, volume.trouble = volume.trouble, trouble
        if before is None:
            await self._node.registry.add_event(sprite.id, "not_saved", trouble)

    async def _succeeded(self, volume: Held, sprite: Sprite, began: float, *, changed: bool) -> None:
        now = self._clock.monotonic()
        cost = volume.keeper.cost
        # What came as this save began waits for it, for the next one, and for what is between them.
        left = max(0.0, _LAG_SECONDS - 2 * (now - began))
        volume.not_before = now + max(_STALL_FACTOR * cost.stall_seconds, min(_CPU_FACTOR * cost.cpu_seconds, left))
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
        """A sprite's disk where it is attached.

        Raises:
            _NotNow: it is attached, and what its file system holds in memory cannot be written out.
        """
        running: Running | None = self._node.running.get(sprite_id)
        if running is None:
            return None
        if running.ending:
            raise _NotNow(f"the disk of sprite {sprite_id} is being let go", hint="try again")
        if running.frozen:
            raise _NotNow("the pool is full, and the sprite's writers wait", hint="destroy or delete something")
        return running.volume


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


def _is_to_come(origin: Origin, source: Held) -> bool:
    """Whether what a fork was made of is in that volume, and on its way into the log."""
    record = source.keeper.record
    return source.ended is None and record.volume == origin.volume and record.is_coming(origin.checkpoint)
