"""The whole of the log's code under random schedules: writers, forks, compaction, deletion and garbage collection.

Changes are lost, late and repeated, processes slow and suddenly ended. What somebody was told of stays, and nothing
that is referred to is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from ballpoint.core.errors import ConflictError, FencedError, NotFoundError, UnavailableError
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.check import Damage, check
from ballpoint.volume.log.collect import Collected, collect
from ballpoint.volume.log.commit import Checkpoint
from ballpoint.volume.log.compact import compact
from ballpoint.volume.log.fork import fork, found
from ballpoint.volume.log.log import OutdatedError, View, Writer, read
from tests.support.seeds import fresh_seed
from tests.volume.log.disks import Disk, block, contents
from tests.volume.log.memory import MemoryStore
from tests.volume.log.stepped import Schedule, StillClock

LINEAGE, FIRST = UUID(int=1), UUID(int=2)
BLOCKS = (0, 1, 2, PAGE_BLOCKS, PAGE_BLOCKS + 1, 5 * PAGE_BLOCKS)
SEEDS, STEPS, PROCESSES = 12, 1500, 6
Numbers = dict[str, int]
T = TypeVar("T")

CLOCK: Any = StillClock()


class World:
    """A lineage, and what the processes that work on it were told.

    Each block has a number for content. The settings of a complete commit name the numbers of its disk, the comment of
    a checkpoint those of the checkpoint, and all settings the commits before.
    """

    def __init__(self, seed: int) -> None:
        self.schedule = Schedule(seed)
        self.calm = MemoryStore()  # the same objects, at once
        self.calm.objects = self.schedule.objects
        self.told: dict[UUID, list[str]] = {}
        self.counts: dict[str, int] = dict.fromkeys(
            ("commits", "packs", "forks", "moved", "removed", "abandoned", "fenced", "given up"), 0
        )
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        settings: dict[str, Any] = {"made": [], "disk": {}, "count": 1}
        assert await found(
            self.calm, FIRST, LINEAGE, image="none", size=1 << 40, settings=settings, writer="w", clock=CLOCK
        )
        self.told[FIRST] = []

    # ---- processes ----

    async def writer(self, name: str, volume: UUID) -> None:
        store = self.schedule.store(name)
        with suppress(FencedError, OutdatedError):  # the latter where it reads first what its successor deleted
            taken = await Writer.take_over(store, volume, writer=name, clock=CLOCK)
            if taken is None:
                return
            disk = Disk(store, taken)
            for _ in range(self.schedule.chance.randint(2, 10)):
                with suppress(UnavailableError):  # a put's answer was lost: the upload is given up
                    await self.work(volume, disk)
                if taken.view.dead:
                    return
            return
        self.counts["fenced"] += 1

    async def work(self, volume: UUID, disk: Disk) -> None:
        chance, view = self.schedule.chance, disk.writer.view
        kinds = ["data"] * 5 + ["between"] * 2 + ["checkpoint"] * 3 + ["root", "trim", "compact"] * 2
        kind = chance.choice([*kinds, "forget", "restore", "settings", *(["trash"] if chance.random() < 0.1 else [])])
        assert view.state is not None
        checkpoints = view.state.checkpoints
        if kind == "trim":
            await disk.writer.trim()
        elif kind in ("data", "between"):
            new: dict[int, bytes | None] = {number: block(next(self._numbers)) for number in chance.sample(BLOCKS, 2)}
            new[chance.choice(BLOCKS)] = None
            disk.between = partial(self.settings_commit, volume, disk) if kind == "between" else None
            await disk.write(new, inline=chance.random() < 0.3)
        elif kind == "settings":
            await self.settings_commit(volume, disk)
        elif kind == "trash":
            await disk.writer.commit("trash")
        elif kind == "compact":
            self.counts["moved"] += (await compact(disk.store, disk.writer, dead=chance.choice([-1.0, 0.3]))).packs
        elif kind in ("forget", "restore") and not checkpoints:
            return
        else:
            await self.complete(volume, disk, kind)

    async def settings_commit(self, volume: UUID, disk: Disk) -> None:
        made = self.made()
        await disk.writer.commit("settings", settings=self.settings(disk.writer.view, made))
        self.tell(volume, made)

    async def complete(self, volume: UUID, disk: Disk, kind: Any) -> None:
        view = disk.writer.view
        assert view.state is not None
        checkpoints, made = view.state.checkpoints, self.made()
        settings = self.settings(view, made)
        settings["disk"] = numbers(await contents(disk.store, view))
        settings["count"] = view.count + 1 + (kind == "checkpoint")  # a commit of `compact` has another
        if kind == "checkpoint":
            await disk.complete(settings=settings)
            assert disk.writer.view.state is not None
            root = disk.writer.view.state.root
            new = Checkpoint(id=made, time=0, comment=json.dumps(settings["disk"]), auto=False, image="none", root=root)
            await disk.complete(kind, settings=settings, checkpoints=(*checkpoints, new)[-4:])
        elif kind == "forget":
            gone = self.schedule.chance.choice(checkpoints)
            left = tuple(each for each in checkpoints if each != gone)
            await disk.complete(kind, settings=settings, checkpoints=left)
        elif kind == "restore":
            chosen = self.schedule.chance.choice(checkpoints)
            settings["disk"] = json.loads(chosen.comment)
            await disk.complete(kind, settings=settings, root=chosen.root)
        else:
            await disk.complete(kind, settings=settings)
        self.tell(volume, made)

    async def forker(self, name: str, source: UUID, volume: UUID) -> None:
        view = await read(self.calm, source)  # which checkpoint it is to be, somebody has seen before
        if view is None or view.state is None or not view.state.checkpoints:
            return
        chosen = self.schedule.chance.choice(view.state.checkpoints)
        settings = {"made": [], "disk": json.loads(chosen.comment), "count": 1}
        try:
            made = await fork(
                self.schedule.store(name), source, chosen.id, volume, settings=settings, writer=name, clock=CLOCK
            )
        except (ConflictError, NotFoundError):
            self.counts["given up"] += 1
            return
        if made is not None:
            self.told[volume] = []
            self.counts["forks"] += 1

    async def collector(self, name: str) -> None:
        abandon = self.schedule.chance.choice([-1.0, 3600.0, 3600.0])  # at once, or never
        with suppress(UnavailableError):  # a deletion's answer was lost; the next one goes on
            done: Collected = await collect(
                self.schedule.store(name), LINEAGE, writer=name, retention=0.0, abandon=abandon, clock=CLOCK
            )
            self.counts["packs"] += done.packs
            self.counts["removed"] += done.removed
            self.counts["abandoned"] += done.abandoned

    # ---- what must hold ----

    def made(self) -> str:
        return f"c{next(self._numbers)}"

    def settings(self, view: View, made: str) -> dict[str, Any]:
        return {**view.settings, "made": [*view.settings["made"], made]}

    def tell(self, volume: UUID, made: str) -> None:
        self.told[volume].append(made)
        self.counts["commits"] += 1

    async def check(self, *, whole: bool = False) -> None:
        damages: list[Damage] = []
        await check(self.calm, damages.append, whole=whole)
        assert damages == []
        for volume, told in self.told.items():
            view = await read(self.calm, volume)
            assert view is not None
            if view.state is None:
                continue
            assert [made for made in told if made not in view.settings["made"]] == []
            if whole:
                settings = view.state.settings
                if view.state.count == settings["count"]:
                    assert numbers(await contents(self.calm, view, view.state.root)) == settings["disk"]
                for each in view.state.checkpoints:
                    assert numbers(await contents(self.calm, view, each.root)) == json.loads(each.comment)

    async def run(self) -> None:
        await self.start()
        chance, names = self.schedule.chance, itertools.count(10)
        for step in range(STEPS):
            going = [name for name, task in self.schedule.tasks.items() if not task.done()]
            if len(going) < PROCESSES and chance.random() < 0.1:
                number, volume = next(names), chance.choice(sorted(self.told))
                kind = chance.choice(["writer"] * 4 + ["fork"] * 2 + ["collect"] * 3)
                name = f"{kind}{number}"
                if kind == "writer":
                    work = self.writer(name, volume)
                elif kind == "fork":
                    work = self.forker(name, volume, UUID(int=number))
                else:
                    work = self.collector(name)
                self.schedule.start(name, work, slow=chance.choice([0.0, 0.0, 0.0, 0.9, 0.98]))
            if going and chance.random() < 0.003:
                self.schedule.kill(chance.choice(going))
            await self.schedule.step(faults=0.1)
            if step % 25 == 0:
                await self.check()
        for name, task in self.schedule.tasks.items():
            if not task.done():
                self.schedule.kill(name)
        await asyncio.gather(*self.schedule.tasks.values(), return_exceptions=True)
        for name, task in self.schedule.tasks.items():
            if not task.cancelled() and (error := task.exception()) is not None:
                raise AssertionError(f"{name} failed") from error
        await self.check(whole=True)


def numbers(blocks: dict[int, bytes]) -> Numbers:
    return {str(where): int.from_bytes(content[:8], "big") for where, content in blocks.items()}


async def test_random_schedules_lose_nothing_that_somebody_was_told_of() -> None:
    first = fresh_seed()
    counts: dict[str, int] = {}
    for seed in range(first, first + SEEDS):
        world = World(seed)
        try:
            await world.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        for name, count in world.counts.items():
            counts[name] = counts.get(name, 0) + count
    sys.stdout.write(f"{counts}\n")
    assert all(counts[name] for name in ("commits", "packs", "forks", "moved", "fenced"))  # it went on


async def test_over_a_bad_store_nothing_is_lost_either() -> None:
    """Calls that are refused, lost, late and repeated, and real pauses between the tries."""
    seed = fresh_seed()
    calm = MemoryStore()
    faults = Faults(refused=0.02, lost=0.03, late=0.03, again=0.03, delay=0.01)
    store = FaultyStore(calm, faults, seed)
    writer = await found(calm, FIRST, LINEAGE, image="none", size=1 << 40, settings={}, writer="w")
    assert writer is not None
    disk = Disk(store, await _stubborn(partial(Writer.take_over, store, FIRST, writer="w")))
    expected: dict[int, bytes] = {}
    kept: dict[str, dict[int, bytes]] = {}
    for turn in range(30):
        number = BLOCKS[turn % len(BLOCKS)]
        expected[number] = block(turn + 1)
        await _stubborn(partial(disk.write, {number: expected[number]}))
        if turn % 5 == 4:
            id, volume = f"v{turn}", UUID(int=100 + turn)
            await _stubborn(partial(disk.checkpoint, id))
            kept[id] = dict(expected)
            await _stubborn(partial(fork, store, FIRST, id, volume, settings={}, writer="f"))
        if turn % 5 == 2:
            await _stubborn(partial(compact, store, disk.writer, dead=-1.0))
            await _stubborn(partial(collect, store, LINEAGE, writer="g"))
    damages: list[Damage] = []
    assert (await check(calm, damages.append, whole=True)).volumes == 1 + len(kept)
    assert damages == []
    view = await read(calm, FIRST)
    assert view is not None
    assert view.state is not None
    assert await contents(calm, view) == expected
    for each in view.state.checkpoints:
        assert await contents(calm, view, each.root) == kept[each.id]
    await store.close()


async def _stubborn(work: Callable[[], Awaitable[T | None]]) -> T:
    """Try until it is done."""
    while True:
        try:
            if (done := await work()) is not None:
                return done
        except UnavailableError:
            continue
