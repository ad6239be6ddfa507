"""The volumes of a node's sprites: the keeper of each, and its disk here when it is needed, whatever became of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
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
from ballpoint.core.threads import to_the_end
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node
from ballpoint.node.views import DiskPlace
from ballpoint.registry.records import Sprite
from ballpoint.store.store import Store
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.hydrate import Filled, Progress
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.recover import Found, find, inventory
from ballpoint.volume.sync.upload import Uploads

log = logging.getLogger(__name__)


@dataclass
class Held:
    """What is known of one volume: how it is, and how it is saved (`saving.py`).

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
        saving: what the saver has begun for it by itself.
        syncing: what brings it into the store now, whoever wants that.
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
    syncing: asyncio.Task[None] | None = None
    one: asyncio.Lock = field(default_factory=asyncio.Lock)


class Volumes:
    """Holds the volumes of a node's sprites, one keeper for each.

    Args:
        name: the node's, in logs.
        lost: awaited with a sprite whose volume another node has taken over.
        trace: what notes writes to disks, which this closes; None where the kernel cannot.

    Attributes:
        on_forgotten: called with the id of a volume that is removed, or whose disk becomes another.
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
        trace: BlockTrace | None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._pool = pool
        self._store = store
        self._name = name
        self._fetches = metrics.counter("ballpoint_fetches_total", "Disks that came back from the store.")
        self._fetched = metrics.counter("ballpoint_fetched_bytes_total", "Bytes of these.")
        metrics.gauge("ballpoint_followed_disks", "Disks in use that a copy follows.", self._followed)
        self._lost = lost
        self._trace = trace
        self._clock = clock
        self._uploads = Uploads()
        self._held: dict[str, Held] = {}
        self._tasks = Tasks()
        self._placing = asyncio.Lock()
        # Whoever opens a keeper removes snapshots that its record does not name: another one must not make any then.
        self._opening = asyncio.Lock()
        # Those whose state in the store was taken in the place of a damaged disk, and has not run since.
        self._mended: set[str] = set()
        self.on_forgotten: Callable[[str], None] = lambda volume_id: None

    async def close(self) -> None:
        """Let go of all; nobody saves them any more."""
        await self._tasks.close()
        for held in self._held.values():
            await held.keeper.let_go()
        if self._trace is not None:
            self._trace.close()
        self._uploads.close()

    async def keeper(self, sprite: Sprite) -> Keeper:
        """The keeper of a sprite's volume.

        Raises:
            CorruptError: the pool has lost the volume, and the store does not have it; or its record is damaged.
            UnavailableError: the pool has lost it, and the store does not answer.
        """
        return (await self.usable(sprite)).keeper

    async def used_by(self, running: Running) -> Held:
        """The volume of a running sprite. Errors as `held`."""
        self._mended.discard(running.volume.id)
        return await self.held(running.sprite_id, running.volume.id)

    def keepers(self) -> dict[str, Keeper]:
        """Those of all volumes that are known, by their ids."""
        return {name: volume.keeper for name, volume in self._held.items()}

    def all(self) -> list[Held]:
        """All volumes that are known."""
        return list(self._held.values())

    def get(self, volume_id: str) -> Held | None:
        """A volume, if it is known."""
        return self._held.get(volume_id)

    async def held(self, sprite_id: str, volume_id: str) -> Held:
        """A volume of this node's pool.

        Raises:
            NotFoundError: the pool does not have it.
            CorruptError: its record is damaged; ConflictError: it is a later version's.
        """
        if volume_id in self._held and not self._pool.has(volume_id):
            await self.forget(volume_id)
        if volume_id not in self._held:
            async with self._opening:
                if volume_id not in self._held:
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
                    self._held[volume_id] = Held(sprite_id, keeper)
        return self._held[volume_id]

    async def usable(self, sprite: Sprite) -> Held:
        """A sprite's volume, whatever the sprite is doing. Errors as `keeper`."""
        if sprite.id not in self._node.running:
            return await self.placed(sprite)
        try:
            return await self.held(sprite.id, sprite.volume_id)
        except NotFoundError as error:
            raise CorruptError(
                f"the pool has lost the directory of {sprite.name!r}, which still runs: what it writes is not saved",
                hint="copy what matters out of it; a restart takes its disk from the store",
            ) from error

    async def placed(self, sprite: Sprite) -> Held:
        """A sprite's volume; where the pool has lost it, what the store has takes its place. Errors as `keeper`."""
        with suppress(NotFoundError):
            return await self.held(sprite.id, sprite.volume_id)
        async with self._placing:
            with suppress(NotFoundError):
                return await self.held(sprite.id, sprite.volume_id)  # somebody else was faster
            found = await self.in_store(sprite)
            if found is None:
                raise _lost(sprite)
            await self._take(sprite, found, "the pool of this node has lost its disk")
        return await self.held(sprite.id, sprite.volume_id)

    async def in_store(self, sprite: Sprite) -> Found | None:
        """What the store has of a sprite's disk."""
        names = [UUID(sprite.volume_id)]
        with suppress(NotFoundError, CorruptError):
            names.insert(0, (await self.held(sprite.id, sprite.volume_id)).keeper.record.volume)
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

    async def forget(self, volume_id: str) -> None:
        """Save a volume no more; what is under way is given up. Idempotent."""
        self.on_forgotten(volume_id)
        volume = self._held.pop(volume_id, None)
        if volume is not None:
            await give_up(volume)
            await volume.keeper.let_go()

    async def take_from_store(self, sprite: Sprite) -> None:
        """Let the volume of a sprite be what the store has of it, in the place of what was here.

        Raises:
            CorruptError: the store has nothing of it any more.
            UnavailableError: the store does not answer.
        """
        found = await self.in_store(sprite)
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
            found = await self.in_store(sprite)
        except UnavailableError as error:
            raise UnavailableError(
                f"the disk of {sprite.name!r} is damaged here, and the store does not say what it has: {error.message}",
                hint="try again when the store answers",
            ) from error
        if found is None:
            raise CorruptError(f"{damage.message}; the store has nothing of it", hint=damage.hint) from damage
        as_of = rfc3339(moment(found.time))
        if sprite.volume_id in self._mended:
            raise CorruptError(
                f"{damage.message}; so is what the store has, as of {as_of}", hint="restore one of its checkpoints"
            ) from damage
        self._mended.add(sprite.volume_id)
        log.warning("%s: %s", sprite.name, damage)
        await self._take(sprite, found, f"its disk here was damaged ({damage.message})")

    def forked_from(self, volume: UUID, checkpoint_id: str) -> bool:
        """Whether a fork of a checkpoint still needs it, because its own log has not begun.

        Args:
            volume: its name in the log.
        """
        origins = [each.keeper.record.origin for each in self._held.values()]
        return any(each is not None and (each.volume, each.checkpoint) == (volume, checkpoint_id) for each in origins)

    async def prepare(self, sprite: Sprite) -> None:
        """Have the disk of a sprite here before it is started.

        Raises:
            UnavailableError: it is in the store only, and that does not answer; or the pool has no room for it.
            CorruptError: what the store has of it is damaged.
        """
        try:
            volume = await self.placed(sprite)
        except CorruptError as damage:
            if not self._pool.has(sprite.volume_id):
                raise
            await self.mend(sprite, damage)  # its record
            volume = await self.placed(sprite)
        if isinstance(volume.ended, FencedError):
            if sprite.id in self._node.running:
                raise volume.ended  # it is about to be stopped
            await self.take_from_store(sprite)
            volume = await self.placed(sprite)
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

    async def _require_own(self, volume: Held) -> None:
        """Find out whether another node has written it, while its sprite starts: before much work is lost by that."""
        try:
            await volume.keeper.require_own()
        except FencedError as error:
            await self.fenced(volume, error)
        except BallpointError as error:
            log.info("whose volume %s is will show when it is saved: %s", volume.keeper.volume_id, error)

    async def fenced(self, volume: Held, error: FencedError) -> None:
        """Another node has written it: nothing of it is saved any more, and its sprite is told."""
        if volume.ended is None and self._held.get(volume.keeper.volume_id) is volume:
            volume.ended = error
            await self._lost(volume.sprite_id, error)

    def is_fenced(self, volume_id: str) -> bool:
        """Whether what is here of a volume is another node's, and has not been replaced yet."""
        volume = self._held.get(volume_id)
        return volume is not None and isinstance(volume.ended, FencedError)

    def filled(self, volume_id: str) -> Filled | None:
        """How far what comes from the store is, of a disk or a checkpoint; None where nothing does."""
        volume = self._held.get(volume_id)
        return None if volume is None else volume.filled

    @contextmanager
    def filling(self, volume_id: str) -> Iterator[Progress]:
        """Tells how far something of a volume is that comes from the store meanwhile, to whoever asks `filled`."""
        volume = self._held[volume_id]

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
        return sum(volume.keeper.followed for volume in self._held.values())


async def give_up(volume: Held) -> None:
    """Let what saves a volume by itself end here, and where the volume ends, what saves it for somebody, too.

    A later save finds out how far they were.
    """
    if volume.saving is not None:
        volume.saving.cancel()
        await asyncio.gather(volume.saving, return_exceptions=True)
        volume.saving = None  # it may not even have begun
    if volume.ended is not None and (syncing := volume.syncing) is not None:
        syncing.cancel()
        await asyncio.wait({syncing})


def _lost(sprite: Sprite) -> CorruptError:
    return CorruptError(
        f"the disk of {sprite.name!r} is lost: neither the pool of this node nor the store has it",
        hint="bring back the pool or what was in the store, or destroy the sprite",
    )


def moment(milliseconds: int) -> datetime:
    """A time of the log."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
