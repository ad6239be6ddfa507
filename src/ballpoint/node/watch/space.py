"""Space: a sprite whose writers were stopped for lack of room is degraded, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.node.node import Node
from ballpoint.volume.guard import PoolGuard
from ballpoint.volume.pool import AttachedVolume

log = logging.getLogger(__name__)

# A fast disk takes a few hundred megabytes in this time; the pool's reserve is larger.
_TICK_SECONDS = 0.25


class Space:
    """Runs the pool's guard over the volumes of running sprites."""

    def __init__(self, node: Node, guard: PoolGuard, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._guard = guard
        self._clock = clock
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        while True:
            if self._node.running:
                try:
                    await self._tick()
                except (BallpointError, OSError) as error:
                    log.error("the pool's guard could not act: %s", error)
            await self._clock.sleep(_TICK_SECONDS)

    async def release(self, volume_id: str) -> None:
        """Let a volume's writers go, so that they can be ended."""
        async with self._lock:
            await asyncio.to_thread(self._guard.release, volume_id)

    @asynccontextmanager
    async def frozen(self, volume: AttachedVolume) -> AsyncIterator[None]:
        """Let a volume's writers wait. One that is being stopped meanwhile is let go.

        Raises:
            UnavailableError: it cannot be frozen.
        """
        async with self._lock:
            await asyncio.to_thread(self._guard.hold, volume)
        try:
            yield
        finally:
            await asyncio.shield(self._let_go(volume))

    async def _let_go(self, volume: AttachedVolume) -> None:
        async with self._lock:
            await asyncio.to_thread(self._guard.let_go, volume)

    async def _tick(self) -> None:
        running = {each.volume.id: each for each in self._node.running.values() if not each.ending}
        async with self._lock:
            notices = await asyncio.to_thread(self._guard.tick, [each.volume for each in running.values()])
        for notice in notices:
            if notice.volume_id in running:
                trouble = f"pool full: {notice.cause}" if notice.kind == "frozen" else None
                running[notice.volume_id].frozen = trouble is not None
                await self._node.report_trouble(running[notice.volume_id], trouble)
