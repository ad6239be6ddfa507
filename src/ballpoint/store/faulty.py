"""A store that fails on purpose, by a seed: latency, a narrow wire, errors before and after the effect, outages.

It allows itself what a real one may do, and nothing else: what was answered is durable and seen by all. For trying a
node with a bad store, and for tests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import UnavailableError
from ballpoint.core.tasks import Tasks
from ballpoint.store.store import LIST_MAX, Items, Store, UnknownOutcomeError

T = TypeVar("T")


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and how often.

    Attributes:
        latency: seconds before each answer, from..to.
        bandwidth: bytes a second of all calls together; 0 is no limit.
        refused: share of calls that are refused and do nothing (throttling).
        lost: share of changes whose answer is lost; half of them are made, half not.
        late: share of changes whose answer is lost, and which are made some time later, once or twice.
        again: share of changes that are made and answered, and made once more later.
        delay: seconds after which what is late is made, at most.
    """

    latency: tuple[float, float] = (0.0, 0.0)
    bandwidth: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    again: float = 0.0
    delay: float = 1.0


class FaultyStore:
    """`inner`, made worse.

    Attributes:
        faults: may be changed at any time.
        out: while it is set, every call is refused or, where it changes something, its answer lost.
        calls: how many of each kind were made.
    """

    def __init__(self, inner: Store, faults: Faults, seed: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._inner = inner
        self.faults = faults
        self.out = False
        self.calls: dict[str, int] = {}
        self._chance = random.Random(seed)
        self._clock = clock
        self._wire = asyncio.Lock()
        self._late = Tasks()

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        await self._begin("get")
        data = await self._inner.get(key, start, length)
        await self._send(len(data))
        return data

    async def put(self, key: str, data: bytes) -> None:
        await self._begin("put")
        await self._send(len(data))
        await self._change(lambda: self._inner.put(key, data))

    async def create(self, key: str, data: bytes) -> bool:
        await self._begin("create")
        await self._send(len(data))
        return await self._change(lambda: self._inner.create(key, data))

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        await self._begin("list")
        return await self._inner.list(prefix, after=after, limit=limit)

    async def delete(self, keys: Collection[str]) -> None:
        await self._begin("delete")
        await self._change(lambda: self._inner.delete(keys))

    async def close(self) -> None:
        """What is late is not made any more."""
        await self._late.close()
        await self._inner.close()

    async def _begin(self, kind: str) -> None:
        self.calls[kind] = self.calls.get(kind, 0) + 1
        await self._clock.sleep(self._chance.uniform(*self.faults.latency))
        if self._chance.random() < self.faults.refused or (self.out and kind in ("get", "list")):
            raise UnavailableError("the store refuses for now (on purpose)", hint="try again")

    async def _send(self, size: int) -> None:
        if self.faults.bandwidth:
            async with self._wire:
                await self._clock.sleep(size / self.faults.bandwidth)

    async def _change(self, change: Callable[[], Awaitable[T]]) -> T:
        faults, fate = self.faults, self._chance.random()
        if self.out:
            raise UnknownOutcomeError("the store does not answer (on purpose)")
        if fate < faults.again:
            made = await change()
            self._make_later(change)
            return made
        fate -= faults.again
        if fate < faults.lost:
            if self._chance.random() < 0.5:
                await change()
            raise UnknownOutcomeError("the store's answer is lost (on purpose)")
        if fate - faults.lost < faults.late:
            for _ in range(self._chance.choice([1, 1, 2])):
                self._make_later(change)
            raise UnknownOutcomeError("the store's answer is late (on purpose)")
        return await change()

    def _make_later(self, change: Callable[[], Awaitable[object]]) -> None:
        pause = self._chance.uniform(0.0, self.faults.delay)

        async def make() -> None:
            await self._clock.sleep(pause)
            await change()

        self._late.start(make(), "a late change of the store")
