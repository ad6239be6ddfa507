"""An empty data directory, filled from the store: every sprite that is there, with its disk left to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError, NotFoundError
from ballpoint.host.files import fsync_directory, write_atomically
from ballpoint.node.durable.storage import RECOVERING, Memory, read_memory, write_memory
from ballpoint.registry.database import url_of
from ballpoint.registry.records import Sprite
from ballpoint.registry.registry import Registry
from ballpoint.store.deployment import Deployment, read_deployment
from ballpoint.store.store import Store
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.recover import Found, Unreadable, inventory


class _Organization(msgspec.Struct, frozen=True):
    id: str
    name: str


class _Settings(msgspec.Struct, frozen=True):
    """What a log has of a sprite (`settings_of`). What a later version adds is left alone."""

    id: str
    name: str
    organization: _Organization
    created_at: datetime
    labels: list[str] = []
    environment: dict[str, str] = {}
    config: dict[str, Any] = {}
    url_settings: dict[str, Any] = {}
    privileges: dict[str, Any] = {}


class Recovered(msgspec.Struct, frozen=True):
    """A sprite that was recovered.

    Attributes:
        name: that it has now; recorded: that it had.
        image: digest of the standard image it is on.
        volume: in the store.
        epoch, number: of the commit its disk is as of.
        time: of that commit, by the clock of who wrote it.
        checkpoints: how many it has.
    """

    name: str
    recorded: str
    organization: str
    image: str
    volume: str
    epoch: int
    number: int
    time: datetime
    checkpoints: int


class Trashed(msgspec.Struct, frozen=True):
    """A sprite that had been destroyed, and is not recovered.

    Attributes:
        time: when it was destroyed.
    """

    name: str
    volume: str
    time: datetime


@dataclass
class Outcome:
    """What a recovery found.

    Attributes:
        sprites: recovered, those among them that an interrupted recovery had done before.
        trashed: sprites that had been destroyed.
        failures: of what could not be recovered: the key or volume, and why.
    """

    sprites: list[Recovered] = field(default_factory=list)
    trashed: list[Trashed] = field(default_factory=list)
    failures: list[tuple[str, BallpointError]] = field(default_factory=list)


async def refill(
    config: NodeConfig,
    store: Store,
    *,
    told: Callable[[Recovered], None] = lambda _: None,
    clock: Clock = SYSTEM_CLOCK,
) -> Outcome:
    """Fill the data directory of `config`, which has no sprite yet, with all sprites of `store`.

    Of several sprites of an organization with one name, the one whose newest commit is newest keeps it. After a crash,
    a node does not start there until this has been called again, which goes on. The caller has a mount namespace of
    its own.

    Args:
        told: hears of each sprite as soon as it is recovered.

    Raises:
        NotFoundError: the store is nobody's.
        ConflictError: the data directory is in use, or was filled from another store.
        UnavailableError: the store does not answer.
    """
    deployment = await read_deployment(store)
    if deployment is None:
        raise NotFoundError("the store is empty: there is nothing to recover", hint="correct --store")
    config.data.mkdir(parents=True, exist_ok=True)
    pool = await asyncio.to_thread(VolumePool.open, config.data, pool_gb=config.pool_gb)
    try:
        registry = await Registry.open(url_of(config.registry_file))
        try:
            await _begin(config.data, deployment, registry, pool)
            outcome = await _Refill(registry, pool, clock, told).run(store)
            write_memory(config.data, Memory(deployment, settled=True))
            (config.data / RECOVERING).unlink()
            fsync_directory(config.data)
            return outcome
        finally:
            await registry.close()
    finally:
        pool.close()


async def _begin(data: Path, deployment: Deployment, registry: Registry, pool: VolumePool) -> None:
    """Mark the data directory as being filled, if it is empty or was marked before."""
    marker = data / RECOVERING
    try:
        begun = marker.read_text()
    except FileNotFoundError:
        memory = read_memory(data)
        if (memory is not None and memory.settled) or pool.volumes() or await registry.all_sprites():
            raise ConflictError(
                f"the data directory {data} is in use", hint="recover into an empty one, or start its node as it is"
            ) from None
        write_atomically(marker, deployment.id.encode())
        return
    if begun != deployment.id:
        raise ConflictError(
            f"a recovery into {data} began with another store", hint="finish it, or choose an empty directory"
        )


class _Refill:
    def __init__(self, registry: Registry, pool: VolumePool, clock: Clock, told: Callable[[Recovered], None]) -> None:
        self._registry = registry
        self._pool = pool
        self._clock = clock
        self._told = told
        self._outcome = Outcome()

    async def run(self, store: Store) -> Outcome:
        live: list[tuple[Found, _Settings]] = []
        async for found in inventory(store):
            if isinstance(found, Unreadable):
                self._outcome.failures.append((found.key, found.error))
                continue
            try:
                settings = msgspec.convert(found.settings, _Settings)
            except msgspec.ValidationError as error:
                why = ConflictError(f"its settings are not known here: {error}", hint="use the version that wrote them")
                self._outcome.failures.append((f"volume {found.volume}", why))
                continue
            if found.bare:
                lost = NotFoundError(f"the host of {settings.name!r} was lost before its disk had come into the store")
                self._outcome.failures.append((f"volume {found.volume}", lost))
            elif found.trashed is not None:
                self._outcome.trashed.append(Trashed(settings.name, str(found.volume), _moment(found.trashed)))
            else:
                live.append((found, settings))
        # The volume decides between two of the same millisecond, so that a second call decides as the first did.
        live.sort(key=lambda each: (-each[0].time, str(each[0].volume)))
        done = {sprite.volume_id: sprite for sprite in await self._registry.all_sprites()}
        names = {(sprite.org_id, sprite.name) for sprite in done.values()}
        known = {sprite.id for sprite in done.values()}
        for found, settings in live:
            sprite = done.get(str(found.volume))
            if sprite is None:
                sprite = self._sprite(found, settings, names, known)
                try:
                    await self._recover(found, sprite)
                except (ConflictError, InvalidError) as error:
                    self._outcome.failures.append((f"volume {found.volume}", error))
                    continue
                names.add((sprite.org_id, sprite.name))
                known.add(sprite.id)
            recovered = _recovered(found, settings, sprite)
            self._outcome.sprites.append(recovered)
            self._told(recovered)
        return self._outcome

    def _sprite(self, found: Found, settings: _Settings, names: set[tuple[str, str]], known: set[str]) -> Sprite:
        name = settings.name
        if (settings.organization.id, name) in names:
            mark = f"-recovered-{found.volume.hex[:8]}"
            name = settings.name[: ids.NAME_MAX - len(mark)].rstrip("-") + mark
        return Sprite(
            id=settings.id if settings.id not in known else f"sprite-{ids.new_uuid()}",
            org_id=settings.organization.id,
            org=settings.organization.name,
            name=name,
            state="cold",
            volume_id=str(found.volume),
            image_digest=found.image,
            environment=settings.environment,
            labels=settings.labels,
            config=settings.config,
            url_settings=settings.url_settings,
            privileges=settings.privileges,
            created_at=settings.created_at,
            updated_at=self._clock.now(),
            last_running_at=None,
            last_warming_at=None,
        )

    async def _recover(self, found: Found, sprite: Sprite) -> None:
        """Place the volume, then record the sprite: what a crash between the two leaves is placed anew."""
        ids.check_name(sprite.name)
        await asyncio.to_thread(self._place, found)
        head = found.head
        await self._registry.recover_sprite(
            sprite,
            f"recovered from the store, as of {rfc3339(_moment(found.time))}",
            {"volume": str(found.volume), "epoch": head.epoch, "number": head.number},
        )

    def _place(self, found: Found) -> None:
        volume_id = str(found.volume)
        self._pool.destroy(volume_id)
        self._pool.place(volume_id, meta={"image": found.image}, record=found.record())


def _recovered(found: Found, settings: _Settings, sprite: Sprite) -> Recovered:
    return Recovered(
        name=sprite.name,
        recorded=settings.name,
        organization=sprite.org,
        image=found.image,
        volume=str(found.volume),
        epoch=found.head.epoch,
        number=found.head.number,
        time=_moment(found.time),
        checkpoints=len(found.checkpoints),
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
