"""A node: the sprites of one host, and everything a caller may do with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import (
    BallpointError,
    ConflictError,
    CorruptError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from ballpoint.core.hosts import Site, sprite_label
from ballpoint.core.tasks import Tasks
from ballpoint.core.types import Caller
from ballpoint.host.changes import Changes
from ballpoint.node.disks import Disks
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.lifecycle.running import IDLE_TIMEOUT, Awake, Running, Starter
from ballpoint.node.logbook import Logbook
from ballpoint.node.standby.spares import Spares
from ballpoint.node.views import (
    ActivityView,
    CheckStatus,
    CheckView,
    NewSprite,
    SpriteConfig,
    SpriteView,
    Status,
    UrlSettings,
)
from ballpoint.registry.records import Sprite
from ballpoint.registry.registry import Registry
from ballpoint.volume.pool import AttachedVolume
from ballpoint.volume.superblock import DamagedDiskError

log = logging.getLogger(__name__)

T = TypeVar("T")

# An init gives its processes 5 s before it ends them, and the kernel then needs some time for what waits for a disk.
_END_SECONDS = 15.0
# An agent that is asked whether it is quiet.
_QUIET_SECONDS = 2.0

_BEGUN = steps.declare("create: the sprite runs")
_RECORDED = steps.declare("create: the registry knows it")
_DISCARDED = steps.declare("destroy: the store knows")
_DELETING = steps.declare("destroy: the registry knows")
_ENDED = steps.declare("destroy: nothing runs any more")
_DESTROYED = steps.declare("destroy: the volume is removed")
_FORGOTTEN = steps.declare("destroy: the registry has forgotten it")


class Saving(Protocol):
    """What brings disks into the store, as far as a node must tell it what becomes of its sprites."""

    async def changed(self, sprite_id: str, volume_id: str) -> None:
        """A volume is to be looked at."""

    def durable_at(self, volume_id: str) -> datetime | None:
        """When the newest state of a disk was taken that the store has; None where it has none."""

    def trouble(self, volume_id: str) -> str | None:
        """Why a disk could not be saved last; None while nothing is wrong."""

    def discarded(self, sprite: Sprite) -> AbstractAsyncContextManager[None]:
        """A sprite is to be destroyed: that is in the store within, or UnavailableError is raised.

        It lives on where what is done within fails.
        """


class Volumes(Protocol):
    """What has the disks of sprites, as far as a node needs them."""

    async def prepare(self, sprite: Sprite) -> None:
        """A sprite is to be started: its disk is here when this returns."""

    def is_fenced(self, volume_id: str) -> bool:
        """Whether what is here of a volume is another node's, and has not been replaced yet."""

    async def take_from_store(self, sprite: Sprite) -> None:
        """What is here of a sprite's volume is not the sprite's any more: it is kept aside, and the store's is."""

    async def mend(self, sprite: Sprite, damage: CorruptError) -> None:
        """The disk of a sprite here is damaged: it is kept aside, and the store's is the sprite's; or an error."""

    async def forget(self, volume_id: str) -> None:
        """A volume is about to be removed here. Idempotent."""


class Idling(Protocol):
    """What knows why sprites are awake."""

    def activity(self, running: Running) -> ActivityView:
        """Why one is, or for how long nothing has kept it so."""


class Health(Protocol):
    """What knows whether sprites are well."""

    async def check(self, running: Running, *, now: bool = False) -> str | None:
        """Why one is degraded, or None. With `now`, also its disk is asked where it was not used."""


class Node:
    """The sprites of one host. Every verb runs to its end, even when its caller goes away.

    At most one verb changes a sprite at a time; what is running is known by `running`, and nowhere else.

    Args:
        changes: counts whenever something that ran is not to be used as before: it ends, sleeps or is in trouble.
    """

    def __init__(
        self,
        registry: Registry,
        disks: Disks,
        logbook: Logbook,
        leases: Leases,
        clock: Clock = SYSTEM_CLOCK,
        *,
        site: Site,
        changes: Changes,
    ) -> None:
        self.registry = registry
        self.changes = changes
        self.logbook = logbook
        self.leases = leases
        self.running: dict[str, Running] = {}
        self._disks = disks
        self._clock = clock
        self._site = site
        self._starter: Starter | None = None
        self._spares: Spares | None = None
        self._volumes: Volumes | None = None
        self._saving: Saving | None = None
        self._idling: Idling | None = None
        self._health: Health | None = None
        # Sprites whose disk is damaged or lost, and how: until they are started all the same.
        self._broken: dict[str, str] = {}
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks = Tasks()

    def use(
        self, starter: Starter, spares: Spares, volumes: Volumes, saving: Saving, idling: Idling, health: Health
    ) -> None:
        """Where starting goes, where disks come from, who saves and who watches; given once, as they know this."""
        self._idling = idling
        self._health = health
        self._starter = starter
        self._spares = spares
        self._volumes = volumes
        self._saving = saving

    @property
    def volumes(self) -> Volumes:
        assert self._volumes is not None
        return self._volumes

    @property
    def saving(self) -> Saving:
        assert self._saving is not None
        return self._saving

    @property
    def spares(self) -> Spares:
        assert self._spares is not None
        return self._spares

    @property
    def starter(self) -> Starter:
        assert self._starter is not None
        return self._starter

    async def close(self) -> None:
        """Stop working on sprites; those that run go on."""
        await self._tasks.close()
        for running in self.running.values():
            running.instance.runtime.release()
            running.volume.release()
        self.running.clear()

    # ---- verbs of the control API ----

    async def create(self, caller: Caller, request: NewSprite) -> SpriteView:
        """Make a sprite, running and ready for its first command."""
        return await self.to_the_end(self._create(caller, request), f"create {request.name}")

    async def _create(self, caller: Caller, request: NewSprite) -> SpriteView:
        await self.registry.require_free(caller.org_id, request.name)
        volume = await self.spares.take()
        config = {key: value for key, value in msgspec.to_builtins(request.config).items() if value is not None}
        if request.idle_timeout is not None:
            config[IDLE_TIMEOUT] = request.idle_timeout
        sprite = self.registry.new_sprite(
            caller,
            request.name,
            sprite_id=f"sprite-{ids.new_uuid()}",
            volume_id=volume.id,
            image_digest=self._disks.image.digest,
            environment=request.environment,
            labels=list(request.labels),
            config=config,
            url_settings=msgspec.to_builtins(request.url_settings),
        )
        cause = f"created with token {caller.token_id}"
        return await self.begin(sprite, volume, cause, patient=request.wait_for_capacity)

    async def begin(
        self, sprite: Sprite, volume: AttachedVolume | None, cause: str, *, patient: bool = False
    ) -> SpriteView:
        """Start a sprite that is not recorded yet, and record it. A failure leaves nothing of it, nor of its volume.

        Args:
            volume, patient: as `Starter.start`.
        """
        async with self.lock(sprite.id):
            try:
                self.running[sprite.id] = await self.starter.start(sprite, volume, patient=patient)
                steps.reach(_BEGUN)
                # Last: a crash before it leaves a volume and an instance of no sprite, which the next start removes.
                await self.registry.create_sprite(sprite, cause)
                steps.reach(_RECORDED)
            except BaseException as error:
                try:
                    await asyncio.shield(self._remove(sprite, f"create failed: {error}"))
                except BallpointError as left:
                    log.error("what was made for %s stays until the next start: %s", sprite.name, left)
                raise
        return self.view(sprite)

    async def get(self, caller: Caller, name: str) -> SpriteView:
        return self.view(await self.registry.sprite(caller.org_id, name))

    async def destroy(self, caller: Caller, name: str) -> None:
        sprite = await self.registry.sprite(caller.org_id, name)
        await self.to_the_end(self._destroy(sprite, f"destroyed with token {caller.token_id}"), f"destroy {name}")

    async def _destroy(self, sprite: Sprite, cause: str) -> None:
        async with self.lock(sprite.id):
            sprite = await self.registry.sprite_by_id(sprite.id)  # somebody else may have been faster
            if sprite.state != "deleting":
                await self._discard(sprite, cause)
            await self._remove(sprite, cause)

    async def _discard(self, sprite: Sprite, cause: str) -> None:
        async with self.saving.discarded(sprite):
            steps.reach(_DISCARDED)
            await self.registry.set_state(sprite.id, "deleting", kind="deleting", cause=cause)
        steps.reach(_DELETING)

    async def restart(self, caller: Caller, name: str) -> SpriteView:
        sprite = await self.registry.sprite(caller.org_id, name)
        cause = f"restarted with token {caller.token_id}"
        return await self.to_the_end(self._restart(sprite.id, cause), f"restart {name}")

    async def _restart(self, sprite_id: str, cause: str) -> SpriteView:
        async with self.lock(sprite_id):
            await self._stop(sprite_id, cause, gently=True)
            return self.view(await self._start(sprite_id, "restarted", cause))

    async def sleep(self, caller: Caller, name: str) -> SpriteView:
        sprite = await self.registry.sprite(caller.org_id, name)
        cause = f"put to sleep with token {caller.token_id}"
        return await self.to_the_end(self._sleep(sprite.id, cause), f"sleep {name}")

    async def _sleep(self, sprite_id: str, cause: str) -> SpriteView:
        async with self.lock(sprite_id):
            sprite = await self.living(sprite_id)
            if sprite_id in self.running:
                await self._stop(sprite_id, cause, gently=True)
                sprite = await self.registry.set_state(sprite_id, "cold", kind="cold", cause=cause)
            return self.view(sprite)

    async def wake(self, caller: Caller, name: str) -> SpriteView:
        await self.touch(caller, name, f"woken with token {caller.token_id}")
        return await self.get(caller, name)

    async def activity(self, caller: Caller, name: str) -> ActivityView:
        sprite = await self.get(caller, name)
        running = self.running.get(sprite.id)
        if running is None or running.ending or running.warm:
            return ActivityView(status=sprite.status)
        assert self._idling is not None
        return self._idling.activity(running)

    async def check(self, caller: Caller, name: str) -> CheckView:
        sprite = await self.get(caller, name)
        running = self.running.get(sprite.id)
        begun = self._clock.monotonic()
        trouble: str | None = None
        if running is not None and not running.ending:
            assert self._health is not None
            trouble = running.trouble if running.frozen else await self._health.check(running, now=not running.warm)
            if self.running.get(sprite.id) is running and not running.frozen:
                await self.report_trouble(running, trouble)
        asleep = running is None or running.ending or running.warm
        reason = trouble or (sprite.health_reason if asleep else None)
        status: CheckStatus = "unhealthy" if reason else "hibernated" if asleep else "healthy"
        elapsed = self._clock.monotonic() - begun
        return CheckView(sprite=sprite, status=status, reason=reason, checked_at=self._clock.now(), elapsed=elapsed)

    # ---- another disk for a sprite; the caller holds its lock ----

    def replace(self, sprite: Sprite, new: Running) -> Running | None:
        """Let `new` be what runs of a sprite. Returns what did before, which is to be ended (`end`)."""
        old = self.running.get(sprite.id)
        self.running[sprite.id] = new
        self._broken.pop(sprite.id, None)
        if old is not None:
            self._ends(old)
        return old

    async def end(self, sprite: Sprite, old: Running, cause: str) -> None:
        """End what ran of a sprite before it was replaced; what does not end stays until the next start."""
        old.said = old.instance.runtime.logs() or old.said
        try:
            await self.starter.stop(old)
        except UnavailableError as error:
            log.error("the former instance of %s stays until the next start: %s", sprite.name, error)
        await asyncio.to_thread(self.logbook.add, sprite.id, old.said, cause)

    async def stop(self, sprite: Sprite, cause: str) -> None:
        """End what runs of a sprite, gently. Idempotent."""
        if sprite.id in self.running:
            await self._stop(sprite.id, cause, gently=True)
            await self.registry.set_state(sprite.id, "cold", kind="cold", cause=cause)

    async def evict(self, sprite: Sprite, how: Callable[[Sprite], Awaitable[bool]]) -> bool:
        """Let `how` remove the disk of a sprite that does not run, unless somebody else is changing the sprite."""
        lock = self.lock(sprite.id)
        if lock.locked():
            return False
        async with lock:
            return sprite.id not in self.running and await how(sprite)

    # ---- what the edge needs ----

    async def touch(self, caller: Caller, name: str, cause: str, refused: str | None = None) -> Running:
        """The sprite, running: started from its disk where it is not.

        Args:
            refused: socket of an agent that has just said that it does not serve, as its container ends: what comes
                after that end is wanted.

        Raises:
            UnavailableError: it is degraded, or cannot be started now.
        """
        return await self.touch_sprite(await self.registry.sprite_id(caller.org_id, name), name, cause, refused)

    async def touch_sprite(self, sprite_id: str, name: str, cause: str, refused: str | None = None) -> Running:
        """As `touch`, for who knows the sprite's id, and has decided that it may be touched."""
        running = self.running.get(sprite_id)
        if running is not None and refused == str(running.instance.runtime.socket):
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await running.ends.wait()
            except TimeoutError as error:
                raise UnavailableError(
                    f"the sprite {name!r} is stopping and does not end", hint="restart it"
                ) from error
        if running is None or not running.awake:
            running = await self.to_the_end(self._wake(sprite_id, cause), f"wake {name}")
        if running.trouble is not None:
            raise UnavailableError(
                f"the sprite {name!r} is degraded: {running.trouble}", hint="restart it", code="degraded"
            )
        return running

    async def _wake(self, sprite_id: str, cause: str) -> Running:
        async with self.lock(sprite_id):
            if sprite_id not in self.running:
                await self._start(sprite_id, "running", cause)
            running = self.running[sprite_id]
            if running.warm:
                self._thaw(running, cause)
            return running

    # ---- between running and warm ----

    async def pause(self, running: Running, cause: str, idle: Callable[[], bool]) -> bool:
        """Freeze a sprite that is idle. Returns whether it is warm now.

        Args:
            idle: whether it still is; asked again whenever that might have changed.
        """
        async with self.lock(running.sprite_id):
            if self.running.get(running.sprite_id) is not running or not running.awake or not idle():
                return False
            running.pausing = True
            self.changes.change()
            try:
                # One that does not answer is not idle but in trouble, which is another's to find out.
                await running.instance.runtime.ping(_QUIET_SECONDS)
                if not idle() or not await running.instance.runtime.freeze():
                    return False
                if running.ending or not idle():
                    running.instance.runtime.thaw()
                    return False
                running.warm = True
                running.changed = self._clock.monotonic()
            finally:
                running.pausing = False
            self._record(running, "warm", cause)
        return True

    def _thaw(self, running: Running, cause: str) -> None:
        """Let a warm sprite go on. The caller holds its lock."""
        running.instance.runtime.thaw()
        running.warm = False
        running.changed = self._clock.monotonic()
        self._record(running, "running", cause)

    def _record(self, running: Running, state: Awake, cause: str) -> None:
        """Record what has happened, and let nobody wait. What is recorded later comes later: it has one writer."""
        self._tasks.start(self._recorded(running, state, cause), f"{state} {running.sprite_id}")

    async def _recorded(self, running: Running, state: Awake, cause: str) -> None:
        try:
            await self.registry.set_state(running.sprite_id, state, kind=state, cause=cause)
        except NotFoundError:
            return  # it has been destroyed since
        running.recorded = state
        await self.registry.refresh()

    def activity_changed(self, running: Running) -> None:
        """Its agent has something to do, or no more: one that is warm cannot do it."""
        if running.instance.runtime.busy and not running.awake:
            cause = "a command on a control socket"
            self._tasks.start(self.rouse(running, cause), f"wake {running.sprite_id}")
        running.changed = self._clock.monotonic()

    async def rouse(self, running: Running, cause: str) -> None:
        """Let a warm sprite go on for which something is there to do. Idempotent."""
        async with self.lock(running.sprite_id):
            if self.running.get(running.sprite_id) is running and running.warm:
                self._thaw(running, cause)

    async def cool(self, running: Running, cause: str) -> None:
        """Let a warm sprite go cold, unless it is wanted meanwhile."""
        async with self.lock(running.sprite_id):
            if self.running.get(running.sprite_id) is running and running.warm:
                await self._stop(running.sprite_id, cause, gently=True)
                await self.registry.set_state(running.sprite_id, "cold", kind="cold", cause=cause)

    # ---- what instances report ----

    def instance_died(self, running: Running) -> None:
        """Its anchor has gone, and everything with it."""
        self._ends(running)
        self._tasks.start(self._lost(running, "its anchor died"), f"lost {running.sprite_id}")

    def inner_exited(self, running: Running, how: str) -> None:
        """Its inner container has ended: by its own reboot or halt, or by force."""
        self._ends(running)
        if how == "reboot":
            self._tasks.start(self._rebooted(running), f"reboot {running.sprite_id}")
        elif how == "halt":
            self._tasks.start(self._lost(running, "halted from inside"), f"halt {running.sprite_id}")
        else:
            self._tasks.start(self._lost(running, f"its container ended: {how}"), f"lost {running.sprite_id}")

    async def volume_lost(self, sprite_id: str, error: FencedError) -> None:
        """Another node has the volume: what runs here is stopped, and its disk is no sprite's any more."""
        self._tasks.start(self._give_up(sprite_id, str(error)), f"fenced {sprite_id}")

    async def _give_up(self, sprite_id: str, cause: str) -> None:
        async with self.lock(sprite_id):
            if not self.volumes.is_fenced((await self.registry.sprite_by_id(sprite_id)).volume_id):
                return  # a start has found out before, and taken the store's disk
            await self._stop(sprite_id, cause)
            sprite = await self.registry.set_state(sprite_id, "cold", kind="fenced", cause=cause)
            await self.volumes.take_from_store(sprite)

    async def _rebooted(self, running: Running) -> None:
        cause = "rebooted from inside"
        async with self.lock(running.sprite_id):
            # What is told of one start must not end the next, which a restart may have made meanwhile.
            if self.running.get(running.sprite_id) is running:
                await self._stop(running.sprite_id, cause)
                await self._start(running.sprite_id, "restarted", cause)

    async def _lost(self, running: Running, cause: str) -> None:
        sprite_id = running.sprite_id
        async with self.lock(sprite_id):
            if self.running.get(sprite_id) is running:
                await self._stop(sprite_id, cause)
                await self.registry.set_state(sprite_id, "cold", kind="stopped", cause=cause)

    async def report_trouble(self, running: Running, trouble: str | None) -> None:
        """Health has changed: `degraded` with its reason, or well again."""
        if running.trouble == trouble:
            return
        running.trouble = trouble
        self.changes.change()
        if trouble is None:
            await self.registry.add_event(running.sprite_id, "healthy", "disk and agent answer again")
        else:
            await self.registry.add_event(running.sprite_id, "degraded", trouble)

    def lock(self, sprite_id: str) -> asyncio.Lock:
        """Held by whoever changes a sprite."""
        return self._locks.setdefault(sprite_id, asyncio.Lock())

    def _ends(self, running: Running) -> None:
        running.ends.set()
        self.changes.change()

    # ---- steps; their caller holds the sprite's lock ----

    async def living(self, sprite_id: str) -> Sprite:
        """A sprite as it is now.

        Raises:
            NotFoundError: it has been destroyed.
            ConflictError: it is being destroyed.
        """
        sprite = await self.registry.sprite_by_id(sprite_id)
        if sprite.state == "deleting":
            raise ConflictError(f"the sprite {sprite.name!r} is being destroyed")
        return sprite

    async def _start(self, sprite_id: str, kind: str, cause: str) -> Sprite:
        sprite = await self.living(sprite_id)
        try:
            running = await self._start_from_disk(sprite)
        except Exception as error:
            if isinstance(error, CorruptError):
                await self._found_broken(sprite_id, str(error))
            if sprite.state == "running":  # it was, until it was stopped to be started again
                await self.registry.set_state(sprite_id, "cold", kind="stopped", cause=f"{cause}, and failed: {error}")
            raise
        self.running[sprite_id] = running
        self._broken.pop(sprite_id, None)
        if running.volume.repaired:
            await self.registry.add_event(sprite_id, "repaired", "its file system had errors")
        return await self.registry.set_state(sprite_id, "running", kind=kind, cause=cause)

    async def _start_from_disk(self, sprite: Sprite) -> Running:
        """Start it; where its disk here is damaged, with what the store has of it."""
        await self.volumes.prepare(sprite)
        sprite = await self.registry.sprite_by_id(sprite.id)  # it may be on another image in the store
        try:
            return await self.starter.start(sprite)
        except DamagedDiskError as damage:
            await self.volumes.mend(sprite, damage)
        await self.volumes.prepare(sprite)
        return await self.starter.start(await self.registry.sprite_by_id(sprite.id))

    async def _found_broken(self, sprite_id: str, trouble: str) -> None:
        if self._broken.get(sprite_id) != trouble:
            self._broken[sprite_id] = trouble
            await self.registry.add_event(sprite_id, "degraded", trouble)

    async def _stop(self, sprite_id: str, cause: str, *, gently: bool = False) -> None:
        running = self.running.get(sprite_id)
        if running is not None:
            self._ends(running)
            running.said = running.instance.runtime.logs() or running.said
            # Of one in trouble nobody knows how long it would take to answer.
            await self.starter.stop(running, gently=gently and running.trouble is None)
            self.leases.forget(str(running.instance.runtime.socket))
            await asyncio.to_thread(self.logbook.add, sprite_id, running.said, cause)
            del self.running[sprite_id]
            await self.saving.changed(sprite_id, running.volume.id)

    async def _remove(self, sprite: Sprite, cause: str) -> None:
        await self._stop(sprite.id, cause)
        steps.reach(_ENDED)
        await self.volumes.forget(sprite.volume_id)
        await asyncio.to_thread(self._disks.pool.destroy, sprite.volume_id)
        steps.reach(_DESTROYED)
        await asyncio.to_thread(self.logbook.remove, sprite.id)
        self._broken.pop(sprite.id, None)
        await self.registry.delete_sprite(sprite.id, cause)
        steps.reach(_FORGOTTEN)

    async def finish_removal(self, sprite: Sprite, cause: str) -> None:
        """Finish what an earlier process began: the removal of a sprite, or the undoing of a half-made one."""
        async with self.lock(sprite.id):
            await self._remove(sprite, cause)

    async def to_the_end(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Run `work` whole, whether or not the caller waits for it."""
        return await self.begin_to_the_end(work, name)

    def begin_to_the_end(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Future[T]:
        """As `to_the_end`, for a caller who waits later, or not at all."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work
            except asyncio.CancelledError:
                outcome.cancel()
                raise
            except (BallpointError, OSError) as error:
                if not outcome.done():
                    outcome.set_exception(error)
            except BaseException as error:
                if not outcome.done():
                    outcome.set_exception(error)
                raise
            else:
                if not outcome.done():
                    outcome.set_result(result)

        self._tasks.start(run(), name)
        return outcome

    # ---- views ----

    def view(self, sprite: Sprite) -> SpriteView:
        """A sprite as its callers see it, now."""
        running = self.running.get(sprite.id)
        trouble = running.trouble if running is not None else self._broken.get(sprite.id)
        status: Status = "cold"
        if sprite.state != "deleting" and running is not None:
            status = running.status
        # One that is not saved works: only what it writes would be lost with its host.
        trouble = trouble or self.saving.trouble(sprite.volume_id)
        return SpriteView(
            id=sprite.id,
            name=sprite.name,
            organization=sprite.org,
            status=status,
            url=self._site.origin(sprite_label(sprite.name, sprite.org)),
            created_at=sprite.created_at,
            updated_at=sprite.updated_at,
            version=sprite.image_digest,
            health="ok" if trouble is None else "degraded",
            health_reason=trouble,
            url_settings=url_settings(sprite),
            config=msgspec.convert(sprite.config, SpriteConfig, strict=False),
            environment=sprite.environment,
            labels=tuple(sprite.labels),
            last_running_at=sprite.last_running_at,
            last_warming_at=sprite.last_warming_at,
            durable_at=self.saving.durable_at(sprite.volume_id),
            idle_timeout=sprite.config.get(IDLE_TIMEOUT),
        )


def url_settings(sprite: Sprite) -> UrlSettings:
    return msgspec.convert(sprite.url_settings, UrlSettings)
