"""Space: a sprite whose writers were stopped for lack of room is degraded, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import Tasks
from ballpoint.node.node import Node
from ballpoint.volume.guard import PoolGuard
from ballpoint.volume.pool import AttachedVolume

log = logging.getLogger(__name__)

# A fast disk takes a few hundred megabytes in this time; the pool's reserve is larger.
_TICK_SECONDS: Final = 0.25
_FULL: Final = "pool full: its writers wait until there is room"

T = TypeVar("T")
R = TypeVar("R")


class Space:
    """Runs the pool's guard over the volumes of running sprites."""

    def __init__(self, node: Node, guard: PoolGuard, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._guard = guard
        self._clock = clock
        self._lock = asyncio.Lock()
        self._tasks = Tasks()
        # A thread of its own: those that the node shares may all wait for disks that the kernel holds.
        self._thread = ThreadPoolExecutor(1, "guard")
        # The volumes of which was told that their writers wait.
        self._told: set[str] = set()

    async def run(self) -> None:
        while True:
            if self._node.running:
                try:
                    await self._tick()
                except (BallpointError, OSError) as error:
                    log.error("the pool's guard could not act: %s", error)
            await self._clock.sleep(_TICK_SECONDS)

    async def close(self) -> None:
        """Use the guard no more. Idempotent."""
        await self._tasks.close()
        self._thread.shutdown(wait=False)

    async def release(self, volume_id: str) -> None:
        """Let a volume's writers go, so that they can be ended."""
        await self._guarded(self._guard.release, volume_id)

    @asynccontextmanager
    async def frozen(self, volume: AttachedVolume) -> AsyncIterator[None]:
        """Let a volume's writers wait. One that is being stopped meanwhile is let go.

        Raises:
            UnavailableError: it cannot be frozen.
        """
        holding = asyncio.ensure_future(self._guarded(self._guard.hold, volume))
        try:
            await asyncio.shield(holding)
        except asyncio.CancelledError:
            self._tasks.start(self._give_up(holding, volume), f"let go of {volume.id}")
            raise
        try:
            yield
        finally:
            await asyncio.shield(self._guarded(self._guard.let_go, volume))

    async def _give_up(self, holding: asyncio.Future[None], volume: AttachedVolume) -> None:
        """The kernel freezes it by now; somebody must let it go once it has."""
        await asyncio.wait([holding])
        if holding.exception() is None:
            await self._guarded(self._guard.let_go, volume)

    async def _guarded(self, work: Callable[[T], R], argument: T) -> R:
        async with self._lock:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, argument)

    async def _tick(self) -> None:
        running = {each.volume.id: each for each in self._node.running.values() if not each.ending}
        try:
            await self._guarded(self._guard.tick, [each.volume for each in running.values()])
        finally:
            frozen = set(self._guard.frozen)
            for name, each in running.items():
                each.frozen = name in frozen
        self._told &= running.keys()
        for name in running.keys() & (frozen ^ self._told):
            await self._node.report_trouble(running[name], _FULL if name in frozen else None)
            self._told ^= {name}
