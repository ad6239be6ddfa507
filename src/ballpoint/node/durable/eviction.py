"""Eviction: below the pool's soft mark, what is in the store is left to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.core.metrics import Metrics
from ballpoint.node.durable.saving import settings_of
from ballpoint.node.durable.volumes import Volumes
from ballpoint.node.node import Node
from ballpoint.registry.records import Sprite
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper

log = logging.getLogger(__name__)

# XFS frees the blocks of a removed file in the background, so what a look gains is seen by the next one.
_LOOK_SECONDS: Final = 1.0


class Eviction:
    """Makes room, in the order of what it costs to do without: copies, checkpoints' images, disks that sleep longest.

    Whatever is being saved, or worked on in another way, is passed over until the next look: nothing is waited for
    while writers may be.
    """

    def __init__(
        self, node: Node, pool: VolumePool, volumes: Volumes, metrics: Metrics, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._node = node
        self._pool = pool
        self._volumes = volumes
        self._evictions = metrics.counter("ballpoint_evictions_total", "Disks and checkpoints left to the store alone.")
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except (BallpointError, OSError) as error:
                log.error("the pool has little room, and nothing could be left to the store: %s", error)
            await self._clock.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        usage = await asyncio.to_thread(self._pool.usage, len(self._node.running))
        if usage.free >= usage.soft:
            return
        keepers = self._volumes.keepers()
        if await self._copies(keepers.values()) or await self._checkpoints(keepers.values()):
            return
        await self._disks(keepers, usage.soft - usage.free)

    async def _copies(self, keepers: Iterable[Keeper]) -> bool:
        gone = 0
        for keeper in keepers:
            if keeper.followed and not keeper.busy:
                await keeper.let_go()
                gone += 1
        if gone:
            log.info("the pool has little room: %d disks are cloned from now on, and not followed", gone)
        return gone > 0

    async def _checkpoints(self, keepers: Iterable[Keeper]) -> bool:
        gone = 0
        for keeper in keepers:
            if not keeper.busy:
                gone += await keeper.evict_checkpoints()
        self._evictions.add(gone)
        if gone:
            log.info("the pool has little room: %d checkpoints are in the store only from now on", gone)
        return gone > 0

    async def _disks(self, keepers: Mapping[str, Keeper], wanted: int) -> None:
        """Disks of cold sprites until `wanted` bytes have gone, as far as they share nothing."""
        cold = [sprite for sprite in await self._node.registry.all_sprites() if sprite.state == "cold"]
        for sprite in sorted(cold, key=lambda each: each.last_running_at or each.created_at):
            if wanted <= 0:
                return
            keeper = keepers.get(sprite.volume_id)
            if keeper is not None and await self._node.evict(sprite, partial(self._evict, keeper)):
                wanted -= keeper.record.bytes_written

    async def _evict(self, keeper: Keeper, sprite: Sprite) -> bool:
        try:
            if keeper.busy or not keeper.local or not await keeper.evict(settings_of(sprite)):
                return False
        except (BallpointError, OSError) as error:
            log.warning("the disk of %s is not evicted: %s", sprite.name, error)  # and another may be
            return False
        self._evictions.add()
        await self._node.registry.add_event(sprite.id, "evicted", "the pool had little room; its disk is in the store")
        return True
