"""A store whose every operation waits until a schedule lets it happen, for driving real code by model schedules.

Operations are atomic, as in the model; what a schedule may do with a change is what a network may do: lose its answer,
make it later, twice or never. One seed gives one schedule: nothing else is random, and no clock is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ballpoint.core.errors import NotFoundError
from ballpoint.store.store import LIST_MAX, Item, Items, UnknownOutcomeError


class Objects:
    """What the store holds; changed by operations that happen at once."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def get(self, key: str, start: int, length: int | None) -> bytes:
        if key not in self.data:
            raise NotFoundError(f"no {key}")
        return self.data[key][start : None if length is None else start + length]

    def create(self, key: str, data: bytes) -> bool:
        return self.data.setdefault(key, data) is data

    def put(self, key: str, data: bytes) -> None:
        assert self.data.get(key, data) == data, f"{key} is put with other bytes than before"
        self.data[key] = data

    def list(self, prefix: str, after: str, limit: int) -> Items:
        keys = sorted(key for key in self.data if key.startswith(prefix) and key > after)
        return [Item(key, len(self.data[key])) for key in keys[:limit]]

    def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.data.pop(key, None)


@dataclass
class Waiting:
    """An operation that a task waits for.

    Attributes:
        process: whose it is.
        key: of the object, or what the keys of a listing begin with.
        changes: whether it changes anything.
    """

    process: str
    key: str
    make: Callable[[], Any]
    changes: bool
    answer: asyncio.Future[Any]


class SteppedStore:
    """The store as one process sees it."""

    def __init__(self, schedule: Schedule, process: str) -> None:
        self._schedule = schedule
        self._process = process

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return bytes(await self._ask(key, lambda: self._schedule.objects.get(key, start, length), changes=False))

    async def put(self, key: str, data: bytes) -> None:
        await self._ask(key, lambda: self._schedule.objects.put(key, data))

    async def create(self, key: str, data: bytes) -> bool:
        return bool(await self._ask(key, lambda: self._schedule.objects.create(key, data)))

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        found: Items = await self._ask(prefix, lambda: self._schedule.objects.list(prefix, after, limit), changes=False)
        return found

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:  # a batch is no transaction
            await self._ask(key, lambda key=key: self._schedule.objects.delete([key]))  # type: ignore[misc]

    async def close(self) -> None:
        pass

    def _ask(self, key: str, make: Callable[[], Any], *, changes: bool = True) -> asyncio.Future[Any]:
        waiting = Waiting(self._process, key, make, changes, asyncio.get_running_loop().create_future())
        self._schedule.waiting.append(waiting)
        return waiting.answer


class NoPauses:
    """A clock whose pauses are over at once."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class StillClock(NoPauses):
    """No pauses, and a time that stands."""

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


class Schedule:
    """Which of the waiting operations happens next, and how badly.

    Attributes:
        waiting: operations that did not happen yet.
        ended: process -> its task, once it has ended.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.objects = Objects()
        self.waiting: list[Waiting] = []
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self._slow: dict[str, float] = {}
        self._late: list[Waiting] = []

    def start(self, process: str, work: Coroutine[Any, Any, Any], slow: float = 0.0) -> None:
        """Let a process run; with `slow`, so often it is passed over when its turn comes."""
        self.tasks[process] = asyncio.get_running_loop().create_task(work)
        self._slow[process] = slow

    def store(self, process: str) -> SteppedStore:
        return SteppedStore(self, process)

    async def settle(self) -> None:
        """Let every task go on until it waits for the store, or has ended."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def step(self, faults: float = 0.0) -> None:
        """One operation happens.

        Args:
            faults: the share of changes that go wrong.
        """
        await self.settle()
        if self._late and self.chance.random() < 0.05:
            self._happen(self._late.pop(self.chance.randrange(len(self._late))))
        if not self.waiting:
            return
        each = self.chance.choice(self.waiting)
        if self.chance.random() < self._slow.get(each.process, 0.0):
            return
        self.waiting.remove(each)
        if each.answer.done():
            return  # its process was killed
        fate = self.chance.random() / faults if faults and each.changes else 1.0
        if fate >= 1.0:
            self._happen(each)
        elif fate < 0.25:
            self._happen(each)
            self._late.append(each)  # made, answered, and once more later
        else:
            if fate < 0.5:
                each.make()
            elif fate < 0.9:
                self._late += [each] * self.chance.choice([1, 1, 2])
            each.answer.set_exception(UnknownOutcomeError("lost (by the schedule)"))
        await self.settle()

    def kill(self, process: str) -> None:
        """End a process where it stands; what it has sent may still happen."""
        self.tasks[process].cancel()
        for each in [each for each in self.waiting if each.process == process]:
            self.waiting.remove(each)
            if each.changes and self.chance.random() < 0.5:
                self._late.append(each)

    async def finish(self, process: str, of: str | None = None) -> Any:
        """Let one process run to its end, with nothing going wrong, while all others stand still.

        Args:
            of: whose store it uses, where that is another's.
        """
        task = self.tasks[process]
        while not task.done():
            await self.settle()
            for each in [each for each in self.waiting if each.process == (of or process)]:
                self.waiting.remove(each)
                self._happen(each)
            await self.settle()
        return task.result()

    async def until_change(self, process: str, of: str | None = None, key: str = "") -> None:
        """Let one process go on until it asks for a change, which does not happen yet.

        Args:
            of: whose store it uses, where that is another's.
            key: what the changed object's key begins with; changes of others happen.
        """
        while True:
            await self.settle()
            assert not self.tasks[process].done(), f"{process} has ended: {self.tasks[process]}"
            mine = [each for each in self.waiting if each.process == (of or process)]
            if any(each.changes and each.key.startswith(key) for each in mine):
                return
            for each in mine:
                self.waiting.remove(each)
                self._happen(each)

    def lose(self, process: str) -> Waiting:
        """Lose the change that a process waits for; whoever has it may make it later."""
        (each,) = [each for each in self.waiting if each.process == process]
        self.waiting.remove(each)
        each.answer.set_exception(UnknownOutcomeError("lost (by the schedule)"))
        return each

    def let(self, each: Waiting) -> None:
        """Let one operation happen, now."""
        self.waiting.remove(each)
        self._happen(each)

    @staticmethod
    def _happen(each: Waiting) -> None:
        try:
            made = each.make()
        except NotFoundError as error:
            if not each.answer.done():
                each.answer.set_exception(error)
            return
        if not each.answer.done():
            each.answer.set_result(made)
