"""The volume log's code under random schedules: many processes, lost and late and repeated changes, sudden ends."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest

from ballpoint.core.errors import CorruptError, FencedError
from ballpoint.store.store import UnknownOutcomeError
from ballpoint.volume.log.blob import Reference
from ballpoint.volume.log.commit import State
from ballpoint.volume.log.keys import CommitName, commits_prefix
from ballpoint.volume.log.log import Writer, begin, read
from tests.support.seeds import fresh_seed
from tests.volume.log.stepped import Schedule, StillClock

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)
SEEDS, STEPS, WRITERS = 60, 500, 5


CLOCK: Any = StillClock()


def state(settings: dict[str, Any], count: int) -> State:
    root = Reference(VOLUME, 1, 1, bytes(16), 0, 1, 1, bytes(16))
    return State(root=root, checkpoints=(), image="none", size=1 << 30, settings=settings, trashed=None, count=count)


class World:
    """One volume, and what its writers were told.

    Every commit's settings name all commits before it, so that the newest tell what the log remembers.
    """

    def __init__(self, seed: int) -> None:
        self.schedule = Schedule(seed)
        self.acknowledged: list[str] = []
        self.fenced = 0
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        self.schedule.start("begin", begin(
            self.schedule.store("begin"), VOLUME, LINEAGE, state({"made": []}, 1), writer="begin", clock=CLOCK
        ))  # fmt: skip
        assert await self.schedule.finish("begin") is not None

    async def writer(self, name: str) -> None:
        store = self.schedule.store(name)
        writer = await Writer.take_over(store, VOLUME, writer=name, clock=CLOCK)
        assert writer is not None
        try:
            for _ in range(self.schedule.chance.randint(1, 12)):
                kind = self.schedule.chance.choice(["settings", "settings", "settings", "root", "data", "trim"])
                if kind == "trim":
                    with suppress(UnknownOutcomeError):  # the next one goes on
                        await writer.trim()
                    continue
                await writer.settle()
                made = f"{name}-{next(self._numbers)}"
                settings = {"made": [*writer.view.settings["made"], made]}
                if kind == "settings":
                    await writer.commit("settings", settings=settings)
                elif kind == "root":
                    await writer.commit("root", state=state(settings, writer.view.count + 1))
                else:
                    await writer.commit("data", blocks=[(0, None)])
                    continue
                self.acknowledged.append(made)
        except FencedError:
            self.fenced += 1

    async def check(self, name: str) -> None:
        """A reader finds every commit that somebody was told about."""
        self.schedule.start(name, read(self.schedule.store(name), VOLUME))
        view = await self.schedule.finish(name)
        lost = [made for made in self.acknowledged if made not in view.settings["made"]]
        assert lost == []

    async def run(self) -> None:
        await self.start()
        chance = self.schedule.chance
        names = itertools.count(1)
        for step in range(STEPS):
            going = [name for name, task in self.schedule.tasks.items() if not task.done()]
            if len(going) < WRITERS and chance.random() < 0.1:
                name = f"writer{next(names)}"
                self.schedule.start(name, self.writer(name), slow=chance.choice([0.0, 0.0, 0.9, 0.98]))
            if going and chance.random() < 0.003:
                self.schedule.kill(chance.choice(going))
            await self.schedule.step(faults=0.15)
            if step % 50 == 0:
                await self.check(f"reader{step}")
        for name, task in self.schedule.tasks.items():
            if not task.done():
                self.schedule.kill(name)
        await asyncio.gather(*self.schedule.tasks.values(), return_exceptions=True)
        await self.check("last")
        for name, task in self.schedule.tasks.items():
            if not task.cancelled() and (error := task.exception()) is not None:
                raise AssertionError(f"{name} failed") from error


async def test_no_schedule_loses_a_commit_that_was_acknowledged() -> None:
    first = fresh_seed()
    acknowledged = fenced = 0
    for seed in range(first, first + SEEDS):
        world = World(seed)
        await world.run()
        acknowledged += len(world.acknowledged)
        fenced += world.fenced
    assert acknowledged > SEEDS  # it went on, and writers met
    assert fenced > 0


async def test_one_seed_is_one_schedule() -> None:
    told = []
    for _ in range(2):
        world = World(5)
        await world.run()
        told.append((world.acknowledged, sorted(world.schedule.objects.data)))
    assert told[0] == told[1]


@pytest.fixture
async def world() -> World:
    made = World(1)
    await made.start()
    return made


async def alone(world: World, store: str, work: Any) -> Any:
    """Let `work` on the store of that name run to its end."""
    name = f"{store}, call {len(world.schedule.tasks)}"
    world.schedule.start(name, work)
    return await world.schedule.finish(name, of=store)


async def take_over(world: World, name: str) -> Writer:
    writer = await alone(world, name, Writer.take_over(world.schedule.store(name), VOLUME, writer=name, clock=CLOCK))
    assert isinstance(writer, Writer)
    return writer


async def test_a_second_writer_fences_the_first(world: World) -> None:
    first, second = await take_over(world, "first"), await take_over(world, "second")
    with pytest.raises(FencedError):
        await alone(world, "first", first.commit("settings", settings={}))
    with pytest.raises(FencedError):
        await alone(world, "first", first.settle())
    assert await alone(world, "second", second.commit("settings", settings={"made": ["kept"]})) == CommitName(
        VOLUME, 3, 1
    )
    view = await alone(world, "r", read(world.schedule.store("r"), VOLUME))
    assert view.settings == {"made": ["kept"]}


async def test_a_seal_that_stands_where_a_commit_was_trimmed_seals_nothing(world: World) -> None:
    """Review D2: the stale one must not believe that it is the writer."""
    first = await take_over(world, "first")
    await alone(world, "first", first.commit("settings", settings={"made": ["1"]}))
    work = Writer.take_over(world.schedule.store("stale"), VOLUME, writer="stale", clock=CLOCK)
    world.schedule.start("stale", work)
    await world.schedule.until_change("stale")
    await alone(world, "first", first.commit("settings", settings={"made": ["1", "2"]}))

    second = await take_over(world, "second")
    await alone(world, "second", second.commit("settings", settings={"made": ["1", "2", "3"]}))
    await alone(world, "second", second.commit("root", state=state({"made": ["1", "2", "3"]}, second.view.count + 1)))
    await alone(world, "second", second.trim())

    stale = await world.schedule.finish("stale")
    await alone(world, "stale", stale.commit("settings", settings={"made": [*stale.view.settings["made"], "4"]}))
    view = await alone(world, "r", read(world.schedule.store("r"), VOLUME))
    assert view.settings == {"made": ["1", "2", "3", "4"]}


async def test_a_late_duplicate_of_a_writers_own_commit_does_not_deceive_it(world: World) -> None:
    """Review A1: the commit is sent twice, trimmed by a successor, and comes once more."""
    zombie = await take_over(world, "zombie")
    await alone(world, "zombie", zombie.commit("settings", settings={"made": ["1"]}))
    world.schedule.start("commit", zombie.commit("settings", settings={"made": ["1", "2"]}))
    await world.schedule.until_change("commit", of="zombie")
    late = world.schedule.lose("zombie")
    await world.schedule.finish("commit", of="zombie")

    successor = await take_over(world, "successor")
    await alone(
        world, "successor", successor.commit("root", state=state({"made": ["1", "2"]}, successor.view.count + 1))
    )
    await alone(world, "successor", successor.trim())
    late.make()
    with pytest.raises(FencedError):
        await alone(world, "zombie", zombie.commit("settings", settings={"made": ["1", "2", "3"]}))
    view = await alone(world, "r", read(world.schedule.store("r"), VOLUME))
    assert view == successor.view


async def test_a_trimmed_log_reads_the_same(world: World) -> None:
    writer = await take_over(world, "w")
    for number in range(5):
        await alone(world, "w", writer.commit("settings", settings={"made": [str(number)]}))
    await alone(world, "w", writer.commit("root", state=state({"made": ["4"]}, writer.view.count + 1)))
    await alone(world, "w", writer.commit("settings", settings={"made": ["4", "5"]}))
    before = await alone(world, "r", read(world.schedule.store("r"), VOLUME))
    assert await alone(world, "w", writer.trim()) == 6  # the first commit and five more; not the seal
    assert await alone(world, "r", read(world.schedule.store("r"), VOLUME)) == before
    assert await alone(world, "w", writer.trim()) == 0


async def test_a_volume_that_is_closed_for_good_has_no_writer(world: World) -> None:
    writer = await take_over(world, "w")
    await alone(world, "w", writer.commit("delete"))
    assert (await alone(world, "r", read(world.schedule.store("r"), VOLUME))).dead
    assert await alone(world, "t", Writer.take_over(world.schedule.store("t"), VOLUME, writer="t", clock=CLOCK)) is None


async def test_a_commit_that_is_lost_is_told_and_not_waited_for(world: World) -> None:
    writer = await take_over(world, "w")
    for _ in range(3):
        await alone(world, "w", writer.commit("settings", settings={"made": []}))
    victim = CommitName(VOLUME, writer.epoch, 2)
    del world.schedule.objects.data[victim.key]
    with pytest.raises(CorruptError, match=victim.key):
        await alone(world, "r", read(world.schedule.store("r"), VOLUME))


async def test_there_is_no_log_where_nobody_wrote_one(world: World) -> None:
    other = UUID(int=9)
    assert await alone(world, "r", read(world.schedule.store("r"), other)) is None
    assert not [key for key in world.schedule.objects.data if key.startswith(commits_prefix(other))]
