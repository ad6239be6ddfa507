"""Sprites that nobody uses: frozen after a while, cold after a longer one or when memory is short.

What keeps a sprite awake is listed in one place (`reasons`), by which it is frozen and by which its owner is told.
Nothing is destroyed here: a disk outlives every timer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import Tasks
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node
from ballpoint.node.views import ActivityView, Reason

log = logging.getLogger(__name__)

_ROUND_SECONDS = 1.0


class Keeper(Protocol):
    """Something that may keep a sprite awake."""

    def reasons(self, running: Running) -> list[Reason]:
        """Why `running` must be awake now."""
        ...


class Idling:
    """Watches over the running sprites of a node.

    Args:
        keepers: what may keep a sprite awake beside requests.
        idle_seconds: how long one that says nothing else must be idle before it is frozen; 0 is for ever.
        cold_seconds: how long one is warm; 0 is for ever.
        short: whether memory is short: bytes that are missing, or 0.
    """

    def __init__(
        self,
        node: Node,
        keepers: list[Keeper],
        *,
        idle_seconds: float,
        cold_seconds: float,
        short: Callable[[], int],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node
        self._keepers = keepers
        self._idle_seconds = idle_seconds
        self._cold_seconds = cold_seconds
        self._short = short
        self._clock = clock
        self._tasks = Tasks()
        # When each was seen to be awake for a reason last, by the monotonic clock.
        self._seen: dict[str, float] = {}
        self._going: set[str] = set()

    async def run(self) -> None:
        while True:
            try:
                self.look()
            except OSError as error:
                log.error("how much memory there is could not be read: %s", error)
            await self._clock.sleep(_ROUND_SECONDS)

    async def close(self) -> None:
        """Begin nothing more. Idempotent."""
        await self._tasks.close()

    def look(self) -> None:
        """One round: begin what is due."""
        now = self._clock.monotonic()
        running = list(self._node.running.values())
        known = {each.instance.id for each in running}
        self._seen = {instance: moment for instance, moment in self._seen.items() if instance in known}
        for each in running:
            if each.warm:
                if wanted := self._wanted(each):
                    # It came when the processes had stopped already, or before a killed node could know of it.
                    self._begin(each, partial(self._node.rouse, each, f"{wanted[0].kind}: {wanted[0].what}"))
                elif self._cold_seconds and now - each.changed >= self._cold_seconds:
                    cause = f"idle for {self._cold_seconds:g} s more"
                    self._begin(each, partial(self._node.cool, each, cause))
            elif self.reasons(each):
                self._seen[each.instance.id] = now
            elif now - self.idle_since(each) >= self.timeout(each):
                self._begin(each, partial(self._pause, each))
        if self._short() > 0:
            warm = [each for each in running if each.warm and each.sprite_id not in self._going]
            if warm:
                # One a round: what it frees is counted before the next one goes.
                oldest = min(warm, key=lambda each: each.changed)
                self._begin(oldest, partial(self._node.cool, oldest, "memory is short"))

    def reasons(self, running: Running) -> list[Reason]:
        """Why a sprite must be awake now, as far as is known here."""
        runtime = running.instance.runtime
        found = [
            Reason(kind="request", what=lease.what, since=lease.since)
            for lease in self._node.leases.of(str(runtime.socket))
        ]
        if runtime.busy:
            found.append(Reason(kind="request", what="control"))
        if self._node.lock(running.sprite_id).locked():
            found.append(Reason(kind="change", what="something is being done with it"))
        for keeper in self._keepers:
            found += keeper.reasons(running)
        return found

    def idle_since(self, running: Running) -> float:
        """Since when nothing has kept it awake, by the monotonic clock, if nothing does now."""
        ended = self._node.leases.ended_at(str(running.instance.runtime.socket))
        return max(
            running.changed, self._seen.get(running.instance.id, -math.inf), -math.inf if ended is None else ended
        )

    def timeout(self, running: Running) -> float:
        """Seconds after which it is frozen."""
        asked = running.idle_timeout
        seconds = self._idle_seconds if asked is None else asked
        return seconds or math.inf

    def activity(self, running: Running) -> ActivityView:
        """Why a running sprite is awake, or since when nothing keeps it so."""
        reasons = self.reasons(running)
        idle = None if reasons else max(0.0, self._clock.monotonic() - self.idle_since(running))
        timeout = self.timeout(running)
        return ActivityView(
            status="running" if running.trouble is None else "warm",
            reasons=tuple(reasons),
            idle_seconds=idle,
            sleeps_in=None if idle is None or timeout == math.inf else max(0.0, timeout - idle),
            idle_timeout=None if timeout == math.inf else timeout,
        )

    async def _pause(self, running: Running) -> None:
        if not running.frozen and running.trouble is None:
            cause = f"idle for {self.timeout(running):g} s"
            await self._node.pause(running, cause, lambda: not self._wanted(running))

    def _wanted(self, running: Running) -> list[Reason]:
        """Why a sprite must be awake also while it is being frozen, which is a change itself."""
        return [reason for reason in self.reasons(running) if reason.kind != "change"]

    def _begin(self, running: Running, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work` for a sprite, unless something is under way already."""
        if running.sprite_id not in self._going:
            self._going.add(running.sprite_id)
            self._tasks.start(self._done(running, work), f"idle {running.sprite_id}")

    async def _done(self, running: Running, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except BallpointError as error:
            log.warning("%s does not sleep: %s", running.sprite_id, error)
        finally:
            self._going.discard(running.sprite_id)
