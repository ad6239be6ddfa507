"""Disks that begin as a checkpoint, standing by attached: whoever has forked one is likely to fork it again."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import Tasks
from ballpoint.node.disks import Disks
from ballpoint.node.standby.pool import Pool
from ballpoint.node.standby.spares import Spares
from ballpoint.volume.pool import AttachedVolume
from ballpoint.volume.sync.keeper import Keeper

log = logging.getLogger(__name__)

# Of so many checkpoints, for so long after the last fork: it holds blocks of one that may be evicted meanwhile.
MOST: Final = 4
SECONDS: Final = 30.0

_Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """That a checkpoint was forked a moment ago.

    Attributes:
        source: name in the log of its volume.
    """

    keeper: Keeper
    checkpoint_id: str
    source: UUID


class Forks:
    """Makes disks of checkpoints. A crash leaves volumes of no sprite, which recovery destroys."""

    def __init__(self, disks: Disks, pool: Pool, spares: Spares, clock: Clock = SYSTEM_CLOCK) -> None:
        self._disks = disks
        self._pool = pool
        self._spares = spares
        self._clock = clock
        # By volume and checkpoint. What is ready and not wanted goes.
        self._wanted: dict[_Key, _Wanted] = {}
        self._ready: dict[_Key, AttachedVolume] = {}
        self._changed = asyncio.Event()
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.start(self._stand_by(), "make disks of checkpoints")

    async def close(self) -> None:
        """Destroy those that stand by, and make no more."""
        await self._tasks.close()
        while self._ready:
            await self._spares.destroy(self._ready.popitem()[1])

    @property
    def size(self) -> int:
        """Disks standing by."""
        return len(self._ready)

    async def take(self, keeper: Keeper, checkpoint_id: str) -> AttachedVolume:
        """A disk that begins as a checkpoint, attached, now the caller's. The next one of the same stands by soon.

        Raises:
            As `Keeper.fork`, and as `Disks.attach`.
        """
        key = (keeper.volume_id, checkpoint_id)
        await asyncio.to_thread(self._disks.pool.require_room)
        wanted = self._wanted.pop(key, None)
        ready = self._ready.pop(key, None)
        if ready is not None and (wanted is None or wanted.source != keeper.record.volume):
            await self._spares.destroy(ready)
            ready = None
        volume = ready or await self.make(keeper, checkpoint_id)
        self._want(key, _Wanted(keeper, checkpoint_id, keeper.record.volume))
        return volume

    async def make(self, keeper: Keeper, checkpoint_id: str) -> AttachedVolume:
        """As `take`, of a checkpoint that nobody will fork again."""
        return await self._spares.own(self._made(keeper, checkpoint_id))

    def drop(self, keeper: Keeper, checkpoint_id: str) -> None:
        """A checkpoint is deleted: what stands by of it goes."""
        self._wanted.pop((keeper.volume_id, checkpoint_id), None)
        self._changed.set()

    def drop_all(self, volume_id: str) -> None:
        """A volume is removed: what stands by of its checkpoints goes."""
        for key in [key for key in self._wanted if key[0] == volume_id]:
            del self._wanted[key]
        self._changed.set()

    def _want(self, key: _Key, wanted: _Wanted) -> None:
        self._wanted[key] = wanted
        while len(self._wanted) > MOST:
            del self._wanted[next(iter(self._wanted))]  # that was forked longest ago
        self._tasks.start(self._expire(key, wanted), f"forget the fork of {wanted.checkpoint_id}")
        self._changed.set()

    async def _expire(self, key: _Key, wanted: _Wanted) -> None:
        await self._clock.sleep(SECONDS)
        if self._wanted.get(key) is wanted:
            del self._wanted[key]
            self._changed.set()

    async def _made(self, keeper: Keeper, checkpoint_id: str) -> AttachedVolume:
        volume_id = ids.new_uuid()
        await keeper.fork(checkpoint_id, volume_id)
        try:
            return await asyncio.to_thread(self._disks.attach, volume_id)
        except BaseException:
            await asyncio.to_thread(self._disks.pool.destroy, volume_id)
            raise

    async def _stand_by(self) -> None:
        while True:
            self._changed.clear()
            for key in self._ready.keys() - self._wanted.keys():
                if (ready := self._ready.pop(key, None)) is not None:  # somebody may have taken it meanwhile
                    await self._spares.destroy(ready)
            for key in self._wanted.keys() - self._ready.keys():
                await self._pool.calm()  # claims go first
                if (wanted := self._wanted.get(key)) is not None:
                    await self._make_ready(key, wanted)
            await self._changed.wait()

    async def _make_ready(self, key: _Key, wanted: _Wanted) -> None:
        try:
            # What is in the store only is not fetched for somebody who may come.
            if wanted.keeper.record.checkpoint(wanted.checkpoint_id).sequence is not None:
                self._ready[key] = await self.make(wanted.keeper, wanted.checkpoint_id)
                self._changed.set()  # it may not be wanted any more
        except (BallpointError, OSError) as error:
            log.info("no disk stands by that begins as %s of volume %s: %s", wanted.checkpoint_id, key[0], error)
