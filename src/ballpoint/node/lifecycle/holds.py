"""Tasks of sprites: leases by which code inside keeps its sprite awake for a time.

They are written into the note of the sprite's instance, so the next node process knows them, and they are gone with
the instance.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from ballpoint.core.types import Caller
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.views import Reason
from ballpoint.registry.registry import Registry

SECONDS_MAX = 3600.0
# Of one sprite, at once.
HOLDS_MAX = 64
# Without surrogates, which an escape in JSON can spell and no answer can.
_NAME = re.compile(r"[^/\x00-\x1f\x7f\ud800-\udfff]{1,128}")
_NOTE = "tasks"


@dataclass(frozen=True)
class Hold:
    """A lease, whatever its sprite does with it."""

    name: str
    started_at: datetime
    expires_at: datetime


class Sprites(Protocol):
    """Which sprites there are, and which run."""

    running: dict[str, Running]
    registry: Registry


class Holds:
    """The tasks of all sprites of a node."""

    def __init__(self, sprites: Sprites, clock: Clock = SYSTEM_CLOCK) -> None:
        self._sprites = sprites
        self._clock = clock
        # One writes an instance's note at a time.
        self._turns: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()

    def holds(self, sprite_id: str) -> list[Hold]:
        """What keeps a sprite awake now, in the order of their beginning; nothing of one that does not run."""
        running = self._sprites.running.get(sprite_id)
        return [] if running is None else self._read(running)

    def reasons(self, running: Running) -> list[Reason]:
        """See `Idling`: each of them keeps its sprite awake."""
        return [
            Reason(kind="task", what=each.name, since=each.started_at, until=each.expires_at)
            for each in self._read(running)
        ]

    async def tasks(self, caller: Caller, name: str) -> list[Hold]:
        """Those of a sprite."""
        return self.holds(await self._sprites.registry.sprite_id(caller.org_id, name))

    async def task(self, caller: Caller, name: str, task: str) -> Hold:
        """One of them. Raises NotFoundError."""
        for each in await self.tasks(caller, name):
            if each.name == task:
                return each
        raise _no_such(task)

    async def create(self, caller: Caller, name: str, task: str, seconds: float) -> Hold:
        """Begin a task. Not idempotent: ConflictError where there is one of that name. Raises as `put`."""
        return await self._change(caller, name, task, seconds, fresh=True)

    async def put(self, caller: Caller, name: str, task: str, seconds: float) -> Hold:
        """Begin a task, or let one go on for so long from now on.

        Raises:
            InvalidError: that is no name or no such time, or there are too many.
            UnavailableError: the sprite is being stopped.
        """
        return await self._change(caller, name, task, seconds, fresh=False)

    async def delete(self, caller: Caller, name: str, task: str) -> None:
        """End a task. Raises NotFoundError."""
        running = await self._running(caller, name)
        async with self._turn(running):
            left = self._read(running)
            if all(each.name != task for each in left):
                raise _no_such(task)
            await self._write(running, [each for each in left if each.name != task])

    async def _change(self, caller: Caller, name: str, task: str, seconds: float, *, fresh: bool) -> Hold:
        if not _NAME.fullmatch(task):
            raise InvalidError(
                f"{task[:80]!r} is no name of a task", hint="1 to 128 characters, without slashes and line breaks"
            )
        if not 0 < seconds <= SECONDS_MAX:
            raise InvalidError(
                f"a task lasts for more than 0 and at most {SECONDS_MAX:g} s", hint="put it again before it expires"
            )
        running = await self._running(caller, name)
        async with self._turn(running):
            now = self._clock.now()
            there = {each.name: each for each in self._read(running)}
            former = there.get(task)
            if former is not None and fresh:
                raise ConflictError(f"there is a task {task!r} already", hint="PUT changes when it expires")
            if former is None and len(there) >= HOLDS_MAX:
                raise InvalidError(f"a sprite has at most {HOLDS_MAX} tasks", hint="delete some")
            hold = Hold(task, former.started_at if former is not None else now, now + timedelta(seconds=seconds))
            await self._write(running, list({**there, task: hold}.values()))
            return hold

    async def _running(self, caller: Caller, name: str) -> Running:
        running = self._sprites.running.get(await self._sprites.registry.sprite_id(caller.org_id, name))
        if running is None or running.ending:
            raise UnavailableError(f"the sprite {name!r} does not run", hint="try again")
        return running

    def _turn(self, running: Running) -> asyncio.Lock:
        return self._turns.setdefault(running.instance.runtime, asyncio.Lock())

    def _read(self, running: Running) -> list[Hold]:
        noted = running.instance.runtime.note.get(_NOTE)
        now, found = self._clock.now(), []
        for name, times in (noted if isinstance(noted, Mapping) else {}).items():
            with suppress(TypeError, ValueError, OverflowError, OSError):
                hold = Hold(name, *(datetime.fromtimestamp(each, UTC) for each in times))
                if hold.expires_at > now:
                    found.append(hold)
        return found

    async def _write(self, running: Running, holds: list[Hold]) -> None:
        runtime = running.instance.runtime
        noted = {each.name: [each.started_at.timestamp(), each.expires_at.timestamp()] for each in holds}
        await runtime.set_note({**runtime.note, _NOTE: noted})


def _no_such(task: str) -> NotFoundError:
    return NotFoundError(f"there is no task {task[:80]!r}", hint="GET /v1/tasks lists those there are")
