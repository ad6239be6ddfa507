"""When disks are saved. The clock and the sprite are stand-ins here; pool, disk, log and store are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import ConflictError, UnavailableError
from ballpoint.core.metrics import Metrics
from ballpoint.node.durable.saving import INTERVALS, Saver
from ballpoint.node.durable.volumes import Volumes
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.settle import create_settled
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper
from tests.volume import conftest as volumes
from tests.volume.world import grow

pytestmark = pytest.mark.host

own_mounts, pool = volumes.own_mounts, volumes.pool

_MINUTE = 60
_START = datetime(2026, 1, 1, tzinfo=UTC)


class StepClock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now()  # which is compared with the times of files

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.seconds + seconds, waits))
        await waits

    def step(self, seconds: float) -> None:
        self.seconds += seconds
        due = [each for each in self.sleepers if each[0] <= self.seconds]
        self.sleepers = [each for each in self.sleepers if each not in due]
        for _, waits in due:
            if not waits.done():
                waits.set_result(None)


class World:
    """One running sprite, whose disk is real and whose processes are not, and the saver of its node."""

    def __init__(self, pool: VolumePool, store: FaultyStore, clock: StepClock) -> None:
        self.clock, self.store = clock, store
        self.events: list[str] = []
        self.cpu = 0
        self.metrics = Metrics()
        volume_id = ids.new_uuid()
        pool.create(volume_id, template="base", meta={"image": "digest"})
        self.disk = pool.attach(volume_id)
        sprite: Any = SimpleNamespace(
            id="s", name="one", org_id="o", org="acme", labels=[], environment={}, config={}, url_settings={},
            privileges={}, created_at=_START, volume_id=volume_id, image_digest="digest", state="running",
        )  # fmt: skip
        self.sprite = sprite
        inner = SimpleNamespace(cpu_microseconds=lambda: self.cpu)
        runtime = SimpleNamespace(cgroup=SimpleNamespace(child=lambda _: inner))
        running = SimpleNamespace(
            sprite_id="s", volume=self.disk, instance=SimpleNamespace(runtime=runtime), frozen=False, ending=False
        )
        self.running = running
        node = SimpleNamespace(registry=self, running={"s": running})
        self.volumes = Volumes(
            cast(Any, node), pool, store, "test", self.metrics, lost=cast(Any, None), trace=None, clock=clock
        )
        self.saver = Saver(cast(Any, node), self.volumes, pool, self.metrics, stopped=cast(Any, None), clock=clock)
        self._running = asyncio.create_task(self.saver.run())

    async def all_sprites(self) -> list[Any]:
        return [self.sprite]

    async def sprite_by_id(self, _: str) -> Any:
        return self.sprite

    async def add_event(self, _: str, kind: str, cause: str) -> None:
        self.events.append(kind)

    def write(self) -> None:
        """A process of the sprite has run, and written something."""
        grow(self.disk, 4096)
        self.cpu += 1

    def number(self, name: str) -> float:
        return next(each.value for each in self.metrics.samples() if each.name == name)

    async def step(self, seconds: float = 1.0) -> bool:
        """Let time go on, and everything come to rest. Whether the disk was saved."""
        before = self.number("ballpoint_saves_total")
        self.clock.step(seconds)
        while not self.clock.sleepers or any(each.get_name().startswith("save") for each in asyncio.all_tasks()):
            await asyncio.sleep(0.001)
        return self.number("ballpoint_saves_total") > before

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.saver.close()
        await self.volumes.close()
        self.disk.detach()


@pytest.fixture
async def world(pool: VolumePool, tmp_path: Path) -> AsyncIterator[World]:
    clock = StepClock()
    made = World(pool, FaultyStore(DirectoryStore(tmp_path / "store"), Faults(), seed=0, clock=_Instant()), clock)
    yield made
    await made.close()


class _Instant:
    """For the store, which shall take no time."""

    def now(self) -> datetime:
        return _START

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        pass


async def test_a_disk_that_never_rests_is_saved_less_often_by_and_by(world: World) -> None:
    until = [end for end, _ in INTERVALS[:-1]]
    saved: list[float] = []
    while world.clock.seconds < until[-1] + 3 * _MINUTE:
        world.write()
        if await world.step():
            saved.append(world.clock.seconds)
    waits = [after - before for before, after in zip(saved, saved[1:], strict=False)]
    former = 0.0
    for end, wait in INTERVALS:
        # A step is a second, and what is seen to be due at one step is saved at it.
        here = [gap for at, gap in zip(saved, waits, strict=False) if former < at and at + gap < end]
        assert here and all(wait <= gap <= wait + 2 for gap in here), (end, here)
        former = end + INTERVALS[-1][1]


async def test_a_disk_that_rests_is_left_alone(world: World) -> None:
    world.write()
    while not await world.step():
        pass
    while world.number("ballpoint_unsaved_disks"):
        await world.step()
    asked = dict(world.store.calls)
    for _ in range(10 * _MINUTE):
        assert not await world.step()
    assert world.store.calls == asked
    world.write()
    steps = 1
    while not await world.step():
        steps += 1
    assert steps <= INTERVALS[0][1] + 1


@pytest.mark.parametrize("how", ["out", "throttled"])
async def test_an_outage_of_minutes_is_told_once_and_made_up_for(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    world.write()
    while not await world.step():
        pass
    # By a clock that a test cannot turn; between two tries, all goes by the other one.
    defaults = create_settled.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "seconds", 0.1)
    if how == "out":
        world.store.out = True
    else:
        world.store.faults = Faults(refused=1.0)
    tries = 0
    for _ in range(10 * _MINUTE):
        world.write()
        failed = world.number("ballpoint_save_failures_total")
        assert not await world.step()
        tries += world.number("ballpoint_save_failures_total") > failed
    assert 10 * _MINUTE / 70 < tries < 10 * _MINUTE / 20  # again and again, and less often by and by
    assert world.events == ["not_saved"]
    lag = world.saver.lag(world.sprite)
    assert lag is not None and lag > 9 * _MINUTE
    world.store.out, world.store.faults = False, Faults()
    monkeypatch.undo()
    waited = 0
    while not await world.step():
        waited += 1
    assert waited <= _MINUTE + 1
    assert world.events == ["not_saved", "saved"]
    lag = world.saver.lag(world.sprite)
    assert lag is None or lag < _MINUTE


@pytest.mark.parametrize(("what", "factor"), [("stall_seconds", 20), ("cpu_seconds", 10)])
async def test_what_a_save_costs_spaces_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, factor: int
) -> None:
    """Of the time, a writer waits for a twentieth at most, and a processor works for a tenth."""
    cost = 3.0
    keeper = await world.volumes.keeper(world.sprite)
    create = world.store.create

    async def costly(key: str, data: bytes) -> bool:
        setattr(keeper.cost, what, cost)
        return await create(key, data)

    monkeypatch.setattr(world.store, "create", costly)
    saved: list[float] = []
    while len(saved) < 4:
        world.write()
        if await world.step():
            saved.append(world.clock.seconds)
    waits = [after - before for before, after in zip(saved, saved[1:], strict=False)]
    assert all(cost * factor <= wait <= cost * factor + 2 for wait in waits[1:]), waits


async def test_saves_that_take_long_spare_no_processors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not saved must not wait for minutes because saving it is much work."""
    world.write()
    while not await world.step():
        pass
    takes = 50.0
    keeper = await world.volumes.keeper(world.sprite)
    create = world.store.create

    async def slow(key: str, data: bytes) -> bool:
        keeper.cost.cpu_seconds = takes
        world.clock.step(takes)
        return await create(key, data)

    monkeypatch.setattr(world.store, "create", slow)
    lags: list[float] = []
    saves = 0
    while saves < 4:
        world.write()
        saves += await world.step()
        lags.append(world.saver.lag(world.sprite) or 0.0)
    # As it is when a save ends; what came just after the one before it was begun has waited so long.
    assert max(lags) + takes <= 2 * _MINUTE, lags


async def test_a_sprite_that_is_stopped_while_its_disk_is_saved_is_no_trouble(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    async def sync(*_: Any, **__: Any) -> None:
        nonlocal tried
        tried += 1
        world.running.ending = True
        raise UnavailableError("Bad file descriptor")

    monkeypatch.setattr(Keeper, "sync", sync)
    world.write()
    while not tried:
        await world.step()
    monkeypatch.undo()
    assert world.events == [] and world.number("ballpoint_save_failures_total") == 0
    assert world.saver.trouble(world.disk.id) is None
    world.running.ending = False
    assert await world.step()  # at once: it is as due as it was


async def test_who_destroys_a_sprite_waits_for_no_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of a large disk takes minutes, and a destroy would be refused for as long."""
    begun, sync = asyncio.Event(), Keeper.sync

    async def endless(*_: Any, **__: Any) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Keeper, "sync", endless)
    saving = world.saver.start_saving(world.sprite)
    await begun.wait()
    async with world.saver.discarded(world.sprite):
        with pytest.raises(ConflictError, match="destroyed"):
            await saving
    assert world.events == [] and world.number("ballpoint_save_failures_total") == 0

    # One that is refused is taken back, and whoever only waits no longer ends nothing.
    begun.clear()
    held = await world.volumes.held("s", world.disk.id)
    held.ended = None
    saving = world.saver.start_saving(world.sprite)
    await begun.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    monkeypatch.setattr(Keeper, "sync", sync)
    await world.saver.start_saving(world.sprite)
