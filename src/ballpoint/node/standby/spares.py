"""Fresh disks standing by, attached: what a create would otherwise wait for the file system to do."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ballpoint.core import ids
from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import Tasks
from ballpoint.node.disks import Disks
from ballpoint.node.standby.pool import Pool
from ballpoint.volume.pool import AttachedVolume

log = logging.getLogger(__name__)

# Making one takes less time than filling a blank, so a few serve any number of creates in a row.
MOST = 4


class Spares:
    """Keeps `count` attached volumes of no sprite. A crash leaves volumes of no sprite, which recovery destroys."""

    def __init__(self, disks: Disks, pool: Pool, count: int) -> None:
        self._disks = disks
        self._pool = pool
        self._count = count
        self._ready: deque[AttachedVolume] = deque()
        self._changed = asyncio.Event()
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.start(self._fill(), "make spare disks")

    async def close(self) -> None:
        """Destroy those that stand by, and make no more."""
        await self._tasks.close()
        while self._ready:
            await self.destroy(self._ready.popleft())

    async def take(self) -> AttachedVolume:
        """A fresh disk, now the caller's: one that stands by, or else one made now.

        Raises:
            UnavailableError: the pool is full.
        """
        await asyncio.to_thread(self._disks.pool.require_room)
        self._changed.set()  # also where none stands by: making them may have failed, and works again
        if not self._ready:
            return await self._make()
        return self._ready.popleft()

    async def destroy(self, volume: AttachedVolume) -> None:
        """Give back a disk that no sprite was recorded for."""
        try:
            await asyncio.to_thread(volume.detach)
            await asyncio.to_thread(self._disks.pool.destroy, volume.id)
        except (BallpointError, OSError) as error:
            log.error("volume %s of no sprite stays until the next start: %s", volume.id, error)

    async def own(self, work: Coroutine[Any, Any, AttachedVolume]) -> AttachedVolume:
        """The disk that `work` makes; destroyed where the caller is cancelled meanwhile."""
        making = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # A thread goes on, and what it has attached must have an owner.
            with suppress(BallpointError, OSError):
                await self.destroy(await making)
            raise

    async def _make(self) -> AttachedVolume:
        return await self.own(asyncio.to_thread(self._disks.make, ids.new_uuid()))

    async def _fill(self) -> None:
        while True:
            self._changed.clear()
            try:
                while len(self._ready) < self._count:
                    await self._pool.calm()  # claims go first
                    self._ready.append(await self._make())
            except (BallpointError, OSError) as error:
                log.warning("no disk can stand by: %s", error)  # a create that needs one says so to its caller
            await self._changed.wait()
