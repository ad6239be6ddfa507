"""Saving: every volume of the node is brought into the store, again and again while it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.node.node import Node
from ballpoint.node.running import Running
from ballpoint.node.views import DiskPlace
from ballpoint.registry.records import Sprite
from ballpoint.store.store import Store
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync.hydrate import Filled, Progress
from ballpoint.volume.sync.keeper import Keeper, Stopped
from ballpoint.volume.sync.recover import Found, find, inventory
from ballpoint.volume.sync.threads import to_the_end
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


class _NotNow(UnavailableError):
    """The disk is between two states, and is saved when it is in the next: nothing is wrong."""


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
        tried: its disk has been attached by this process, or could have been.
        ended: why nothing of it is saved any more: it is destroyed, or another node's.
        one: held by whoever brings it into the store.
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
    tried: bool = False
    ended: ConflictError | FencedError | None = None
    saving: asyncio.Task[None] | None = None
    one: asyncio.Lock = field(default_factory=asyncio.Lock)


class Saver:
    """Saves the volumes of a node's sprites, and has the keeper of each.

    Args:
        name: the node's, in logs.
        lost: awaited with a sprite whose volume another node has taken over.
        stopped: what stops the writers of a disk for a moment.
        trace: what notes writes to disks, which this closes; None where the kernel cannot.

    Attributes:
        on_trash: called with the lineage of a volume that was put into the trash.
        on_garbage: called with the lineage of a volume much of which in the store may be garbage.
        on_first: called with the image below a volume that the store has nothing of yet.
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
        stopped: Stopped,
        trace: BlockTrace | None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._pool = pool
        self._store = store
        self._name = name
        self._saves = metrics.counter("ballpoint_saves_total", "Disks brought into the store.")
        self._failures = metrics.counter("ballpoint_save_failures_total", "Saves that failed, and will be tried again.")
        self._bytes = metrics.counter("ballpoint_saved_bytes_total", "Bytes stored by saves.")
        self._alarms = metrics.counter("ballpoint_alarms_total", "Times that what was believed of a disk was wrong.")
        self._fetches = metrics.counter("ballpoint_fetches_total", "Disks that came back from the store.")
        self._fetched = metrics.counter("ballpoint_fetched_bytes_total", "Bytes of these.")
        metrics.gauge("ballpoint_unsaved_disks", "Disks that have changed since they were saved.", self._unsaved)
        metrics.gauge("ballpoint_lag_seconds_max", "How long the oldest change has waited.", self._longest_lag)
        metrics.gauge("ballpoint_followed_disks", "Disks in use that a copy follows.", self._followed)
        self._lost = lost
        self._stopped = stopped
        self._trace = trace
        self._clock = clock
        self._uploads = Uploads()
        self._volumes: dict[str, _Volume] = {}
        self._tasks = Tasks()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._placing = asyncio.Lock()
        # Whoever opens a keeper removes snapshots that its record does not name: another one must not make any then.
        self._opening = asyncio.Lock()
        # Volumes whose state in the store was taken in the place of a damaged disk, and has not run since.
        self._tried: set[str] = set()
        # Running sprites' volumes that nothing can be done for, and why.
        self._unsaved_for: dict[str, str] = {}
        self.on_trash: Callable[[UUID], None] = lambda lineage: None
        self.on_garbage: Callable[[UUID], None] = lambda lineage: None
        self.on_first: Callable[[str], None] = lambda digest: None

    async def close(self) -> None:
        """Stop saving; what is not saved is found dirty by the next start."""
        await self._tasks.close()
        for volume in self._volumes.values():
            await volume.keeper.let_go()
        if self._trace is not None:
            self._trace.close()
        self._uploads.close()

    async def keeper(self, sprite: Sprite) -> Keeper:
        """The keeper of a sprite's volume.

        Raises:
            CorruptError: the pool has lost the volume, and the store does not have it; or its record is damaged.
            UnavailableError: the pool has lost it, and the store does not answer.
        """
        return (await self._usable(sprite)).keeper

    async def keeper_of(self, running: Running) -> Keeper:
        """The keeper of a running sprite's volume."""
        return (await self._volume(running.sprite_id, running.volume.id)).keeper

    def keepers(self) -> dict[str, Keeper]:
        """Those of all volumes that are known, by their ids."""
        return {name: volume.keeper for name, volume in self._volumes.items()}

    async def _volume(self, sprite_id: str, volume_id: str) -> _Volume:
        if volume_id in self._volumes and not self._pool.has(volume_id):
            await self.forget(volume_id)
        if volume_id not in self._volumes:
            async with self._opening:
                if volume_id not in self._volumes:
                    keeper = await to_the_end(
                        partial(
                            Keeper.open,
                            self._pool,
                            volume_id,
                            store=self._store,
                            uploads=self._uploads,
                            writer=self._name,
                            clock=self._clock,
                            trace=self._trace,
                        )
                    )
                    self._volumes[volume_id] = _Volume(sprite_id, keeper)
        return self._volumes[volume_id]

    async def _usable(self, sprite: Sprite) -> _Volume:
        """A sprite's volume, whatever the sprite is doing. Errors as `keeper`."""
        if sprite.id not in self._node.running:
            return await self._placed(sprite)
        try:
            return await self._volume(sprite.id, sprite.volume_id)
        except NotFoundError as error:
            raise CorruptError(
                f"the pool has lost the directory of {sprite.name!r}, which still runs: what it writes is not saved",
                hint="copy what matters out of it; a restart takes its disk from the store",
            ) from error

    async def _placed(self, sprite: Sprite) -> _Volume:
        """A sprite's volume; where the pool has lost it, what the store has takes its place. Errors as `keeper`."""
        with suppress(NotFoundError):
            return await self._volume(sprite.id, sprite.volume_id)
        async with self._placing:
            with suppress(NotFoundError):
                return await self._volume(sprite.id, sprite.volume_id)  # somebody else was faster
            found = await self._in_store(sprite)
            if found is None:
                raise _lost(sprite)
            await self._take(sprite, found, "the pool of this node has lost its disk")
        return await self._volume(sprite.id, sprite.volume_id)

    async def _in_store(self, sprite: Sprite) -> Found | None:
        """What the store has of a sprite's disk."""
        names = [UUID(sprite.volume_id)]
        with suppress(NotFoundError, CorruptError):
            names.insert(0, (await self._volume(sprite.id, sprite.volume_id)).keeper.record.volume)
        for name in names:
            if (found := await find(self._store, name)) is not None:
                return found
        # Its log may have got another name (`opening.py`), which only the record knew: rare, and worth reading all.
        same = [
            each
            async for each in inventory(self._store)
            if isinstance(each, Found)
            and each.settings.get("id") == sprite.id
            and each.trashed is None
            and not each.bare
        ]
        return max(same, key=lambda each: each.time, default=None)

    async def _take(self, sprite: Sprite, found: Found, why: str) -> None:
        """Let what the store has be a sprite's volume; what is here of it, if anything is, is kept aside."""
        registry = self._node.registry
        async with self._opening:  # or somebody would look at the old one meanwhile, and keep it
            await self.forget(sprite.volume_id)
            if self._pool.has(sprite.volume_id):
                aside = await asyncio.to_thread(self._pool.put_aside, sprite.volume_id)
                await registry.add_event(sprite.id, "kept_aside", f"the disk that was here is in {aside}")
            await asyncio.to_thread(
                self._pool.place, sprite.volume_id, meta={"image": found.image}, record=found.record()
            )
        if found.image != sprite.image_digest:
            await registry.update_sprite(sprite.id, image_digest=found.image)
        head, as_of = found.head, rfc3339(moment(found.time))
        await registry.add_event(
            sprite.id,
            "recovered",
            f"{why}: it goes on with what the store has, as of {as_of}; what was written later is not in it",
            {"volume": str(found.volume), "epoch": head.epoch, "number": head.number},
        )

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
            await volume.keeper.let_go()

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
            CorruptError: the store has nothing of it any more.
            UnavailableError: the store does not answer.
        """
        found = await self._in_store(sprite)
        if found is None:
            raise CorruptError(
                f"another node has ended the disk of {sprite.name!r} in the store",
                hint="what was here is in the pool; destroy the sprite, or look there",
            )
        await self._take(sprite, found, "another node has written its disk")

    async def mend(self, sprite: Sprite, damage: CorruptError) -> None:
        """Let what the store has be the disk of a sprite that does not run, in the place of a damaged one.

        Raises:
            CorruptError: the store has nothing, or what it has was tried before; nothing has changed.
            UnavailableError: the store does not answer.
        """
        try:
            found = await self._in_store(sprite)
        except UnavailableError as error:
            raise UnavailableError(
                f"the disk of {sprite.name!r} is damaged here, and the store does not say what it has: {error.message}",
                hint="try again when the store answers",
            ) from error
        if found is None:
            raise CorruptError(f"{damage.message}; the store has nothing of it", hint=damage.hint) from damage
        as_of = rfc3339(moment(found.time))
        if sprite.volume_id in self._tried:
            raise CorruptError(
                f"{damage.message}; so is what the store has, as of {as_of}", hint="restore one of its checkpoints"
            ) from damage
        self._tried.add(sprite.volume_id)
        log.warning("%s: %s", sprite.name, damage)
        await self._take(sprite, found, f"its disk here was damaged ({damage.message})")

    async def discard(self, sprite: Sprite) -> None:
        """Say in the store that a sprite is destroyed.

        Raises:
            UnavailableError: the store does not answer in time; the sprite stays.
        """
        try:
            await self._discard(sprite)
        except BaseException:
            await asyncio.shield(self.spare(sprite))
            raise

    async def _discard(self, sprite: Sprite) -> None:
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                volume = await self._placed(sprite)
                # From here on nothing is begun that would take it out of the trash again.
                volume.ended = ConflictError(f"the sprite {sprite.name!r} is being destroyed")
                await _give_up(volume)
                async with volume.one:
                    await volume.keeper.trash()
                    self.on_trash(volume.keeper.record.lineage)
        except CorruptError as error:
            if await self._in_store(sprite) is not None:
                raise
            log.warning("%s is destroyed, and the store had nothing of it: %s", sprite.name, error)
        except FencedError as error:
            log.warning("%s is destroyed here only: %s", sprite.name, error)
        except TimeoutError as error:
            raise UnavailableError(
                f"the store does not say within {_DISCARD_SECONDS:g} s that {sprite.name!r} is destroyed",
                hint="try again when the store answers; nothing has changed",
            ) from error

    async def spare(self, sprite: Sprite) -> None:
        """A sprite that was to be destroyed lives on: what the store may have heard of that is taken back."""
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
        saving = self._save_settled(sprite.id, partial(self._usable, sprite), present=present)
        return self._tasks.start(saving, f"save {sprite.name}")

    async def _save_settled(
        self, sprite_id: str, find: Callable[[], Awaitable[_Volume]], *, present: bool = True
    ) -> None:
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
        try:
            volume = await self._placed(sprite)
        except CorruptError as damage:
            if not self._pool.has(sprite.volume_id):
                raise
            await self.mend(sprite, damage)  # its record
            volume = await self._placed(sprite)
        if isinstance(volume.ended, FencedError):
            if sprite.id in self._node.running:
                raise volume.ended  # it is about to be stopped
            await self.take_from_store(sprite)
            volume = await self._placed(sprite)
        if sprite.id not in self._node.running:
            await volume.keeper.let_go()
            volume.failures, volume.not_before = 0, 0.0  # what kept it from being saved may be mended by the start
        if volume.keeper.local:
            if sprite.id not in self._node.running:
                self._tasks.start(self._require_own(volume), f"whose is {sprite.name}")
            return
        began = self._clock.monotonic()
        # An eviction leaves no base.
        why = "its disk is in the store only" if volume.keeper.record.base is None else "its disk was not here any more"
        await self._node.registry.add_event(sprite.id, "fetching", why)
        with self.filling(sprite.volume_id) as told:
            told(Filled(0, 0))
            try:
                await volume.keeper.fetch(told)
            except NotFoundError as error:
                raise _lost(sprite) from error
            size = volume.filled.total if volume.filled is not None else 0
        seconds = self._clock.monotonic() - began
        self._fetches.add()
        self._fetched.add(size)
        as_of = rfc3339(moment(volume.keeper.record.snapshot_time))
        await self._node.registry.add_event(
            sprite.id,
            "fetched",
            f"its disk has come from the store, as of {as_of}: {size >> 20} MiB in {seconds:.1f} s",
        )

    async def _require_own(self, volume: _Volume) -> None:
        """Find out whether another node has written it, while its sprite starts: before much work is lost by that."""
        try:
            await volume.keeper.require_own()
        except FencedError as error:
            await self._fenced(volume, error)
        except BallpointError as error:
            log.info("whose volume %s is will show when it is saved: %s", volume.keeper.volume_id, error)

    async def _fenced(self, volume: _Volume, error: FencedError) -> None:
        if volume.ended is None and self._volumes.get(volume.keeper.volume_id) is volume:
            volume.ended = error
            await self._lost(volume.sprite_id, error)

    def is_fenced(self, volume_id: str) -> bool:
        """Whether what is here of a volume is another node's, and has not been replaced yet."""
        volume = self._volumes.get(volume_id)
        return volume is not None and isinstance(volume.ended, FencedError)

    def filled(self, volume_id: str) -> Filled | None:
        """How far what comes from the store is, of a disk or a checkpoint; None where nothing does."""
        volume = self._volumes.get(volume_id)
        return None if volume is None else volume.filled

    @contextmanager
    def filling(self, volume_id: str) -> Iterator[Progress]:
        """Tells how far something of a volume is that comes from the store meanwhile, to whoever asks `filled`."""
        volume = self._volumes[volume_id]

        def told(filled: Filled) -> None:
            volume.filled = filled

        try:
            yield told
        finally:
            volume.filled = None

    def place(self, sprite: Sprite, keeper: Keeper) -> DiskPlace:
        """Where the disk of a sprite is."""
        if keeper.local:
            return "local"
        return "store" if self.filled(sprite.volume_id) is None else "partly"

    def _followed(self) -> int:
        return sum(volume.keeper.followed for volume in self._volumes.values())

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
        await self.look_at_all()
        while True:
            try:
                await self._tick()
            except (BallpointError, OSError) as error:
                log.error("volumes could not be looked at: %s", error)
            await self._clock.sleep(_TICK_SECONDS)

    async def _tick(self) -> None:
        now = self._clock.monotonic()
        for running in list(self._node.running.values()):
            self._tried.discard(running.volume.id)
            try:
                volume = await self._volume(running.sprite_id, running.volume.id)
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
        for volume in list(self._volumes.values()):
            if volume.saving is not None or volume.since is None or volume.ended is not None:
                continue
            if volume.keeper.volume_id in waiting:
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
        except (NotFoundError, _NotNow):
            pass  # it has been destroyed meanwhile, or is being stopped
        except (BallpointError, OSError) as error:
            log.warning("volume %s is not saved: %s", volume.keeper.volume_id, error)
        finally:
            volume.saving = None

    async def _save(self, volume: _Volume, *, present: bool = True) -> None:
        async with volume.one:
            if volume.ended is not None:
                raise volume.ended
            began = self._clock.monotonic()
            sprite = await self._node.registry.sprite_by_id(volume.sprite_id)
            keeper = volume.keeper
            before = keeper.record.epoch, keeper.record.number
            if not keeper.record.epoch:
                self.on_first(sprite.image_digest)
            stored = keeper.record.bytes_stored
            keeper.cost.reset()
            try:
                await self._save_source(keeper)
                await self._require_sound(volume, settings_of(sprite))
                await keeper.sync(
                    lambda: self._attached(volume.sprite_id), settings_of(sprite), self._stopped, present=present
                )
            except FencedError as error:
                await self._fenced(volume, error)
                raise
            except _NotNow:
                raise
            except (BallpointError, OSError) as error:
                await self._failed(volume, sprite, str(error))
                raise
            finally:
                await self._tell_alarms(keeper, sprite)
            self._bytes.add(keeper.record.bytes_stored - stored)
            if not present:
                return  # it is due as before
            self._saves.add()
            await self._succeeded(volume, sprite, began, changed=before != (keeper.record.epoch, keeper.record.number))

    async def _save_source(self, keeper: Keeper) -> None:
        """Bring what a fork was made of into the store first: only then can its own log begin."""
        origin = keeper.record.origin
        if origin is None:
            return
        for source in list(self._volumes.values()):
            record = source.keeper.record
            if source.ended is None and record.volume == origin.volume and record.is_coming(origin.checkpoint):
                try:
                    find = partial(self._volume, source.sprite_id, source.keeper.volume_id)
                    await self._save_settled(source.sprite_id, find)
                except FencedError as error:
                    raise UnavailableError(f"what it was forked from is not this node's any more: {error}") from error
                except _NotNow as error:
                    raise UnavailableError(f"what it was forked from is not saved now: {error.message}") from error

    async def _require_sound(self, volume: _Volume, settings: dict[str, Any]) -> None:
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

    async def _failed(self, volume: _Volume, sprite: Sprite, trouble: str) -> None:
        volume.failures += 1
        self._failures.add()
        first, last = _RETRY_SECONDS
        volume.not_before = self._clock.monotonic() + min(last, first * 2 ** (volume.failures - 1))
        if volume.since is None:
            volume.since = self._clock.monotonic()
        before, volume.trouble = volume.trouble, trouble
        if before is None:
            await self._node.registry.add_event(sprite.id, "not_saved", trouble)

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


async def _give_up(volume: _Volume) -> None:
    if volume.saving is not None:
        volume.saving.cancel()
        await asyncio.gather(volume.saving, return_exceptions=True)
        volume.saving = None  # it may not even have begun


def _lost(sprite: Sprite) -> CorruptError:
    return CorruptError(
        f"the disk of {sprite.name!r} is lost: neither the pool of this node nor the store has it",
        hint="bring back the pool or what was in the store, or destroy the sprite",
    )


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
