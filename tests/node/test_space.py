"""Whose writers wait is known, and nobody waits for ever. The guard and the sprites are stand-ins here."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.node.node import Node
from ballpoint.node.watch.space import Space
from ballpoint.volume.guard import PoolGuard
from tests.support.waiting import eventually_async


class Guard:
    """Freezes nothing.

    Attributes:
        frozen: as the real one's.
        held: how often each volume is held.
        slow: holds wait until it is set.
    """

    def __init__(self) -> None:
        self.frozen: dict[str, Any] = {}
        self.held: dict[str, int] = {}
        self.begun, self.slow = threading.Event(), threading.Event()
        self.slow.set()

    def tick(self, attached: list[Any]) -> None:
        pass

    def hold(self, volume: Any) -> None:
        self.begun.set()
        assert self.slow.wait(30)
        self.held[volume.id] = self.held.get(volume.id, 0) + 1

    def let_go(self, volume: Any) -> None:
        self.held[volume.id] -= 1


class World:
    """Two sprites that run."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.said: list[tuple[str, bool]] = []
        self.refuses = 0
        self.sprites = {
            name: SimpleNamespace(volume=SimpleNamespace(id=name), frozen=False, ending=False) for name in ("a", "b")
        }
        node = SimpleNamespace(running=self.sprites, report_trouble=self.report)
        self.space = Space(cast(Node, node), cast(PoolGuard, self.guard), SYSTEM_CLOCK)

    async def report(self, running: Any, trouble: str | None) -> None:
        if self.refuses:
            self.refuses -= 1
            raise UnavailableError("the registry's disk is full")
        self.said.append((running.volume.id, trouble is not None))


@pytest.mark.parametrize("refuses", [0, 1, 3])
async def test_whose_writers_wait_is_known_and_told_once_whatever_fails(refuses: int) -> None:
    world = World()
    watching = asyncio.create_task(world.space.run())
    for waiting in ({"a", "b"}, {"b"}, set()):
        world.refuses, world.said = refuses, []
        before = {name for name, each in world.sprites.items() if each.frozen}
        world.guard.frozen = dict.fromkeys(waiting)
        changed = sorted((name, name in waiting) for name in before ^ waiting)

        async def told(changed: list[tuple[str, bool]] = changed) -> bool:
            return sorted(world.said) == changed

        await eventually_async(told)
        assert {name for name, each in world.sprites.items() if each.frozen} == waiting
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await world.space.close()


async def test_a_freeze_that_nobody_waits_for_any_more_is_let_go_once_it_is_done() -> None:
    world = World()
    volume: Any = world.sprites["a"].volume

    async def frozen() -> None:
        async with world.space.frozen(volume):
            raise AssertionError("it was cancelled before")

    world.guard.slow.clear()
    freezing = asyncio.create_task(frozen())
    await asyncio.to_thread(world.guard.begun.wait, 30)
    freezing.cancel()
    await asyncio.gather(freezing, return_exceptions=True)
    world.guard.slow.set()

    async def let_go() -> bool:
        return world.guard.held == {"a": 0}

    await eventually_async(let_go)
    await world.space.close()
