"""Disks of checkpoints that stand by. Clock and claims are stand-ins here; pool, disks and log are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import NotFoundError
from ballpoint.node.standby import forks
from ballpoint.node.standby.forks import Forks
from ballpoint.node.standby.spares import Spares
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.node.test_schedule import StepClock
from tests.volume import conftest as volumes
from tests.volume.world import path

pytestmark = pytest.mark.host

own_mounts, pool = volumes.own_mounts, volumes.pool

_SOURCE = ids.new_uuid()


class World:
    """A volume with a checkpoint, and what forks it."""

    def __init__(self, pool: VolumePool, store: DirectoryStore) -> None:
        self.pool = pool
        self.clock = StepClock()
        self.calm = asyncio.Event()
        self.calm.set()
        self.uploads = Uploads()
        claims: Any = SimpleNamespace(calm=self.calm.wait)
        disks: Any = SimpleNamespace(attach=pool.attach, pool=pool)
        self.forks = Forks(disks, claims, Spares(disks, claims, 0), self.clock)
        self.forks.start()
        pool.create(_SOURCE, template="base", meta={"image": "digest"})
        self.keeper = Keeper.open(pool, _SOURCE, store=store, uploads=self.uploads, writer="test")
        self.disk = pool.attach(_SOURCE)
        self.taken: list[AttachedVolume] = []

    async def checkpoint(self) -> str:
        return (await self.keeper.checkpoint(self.disk, comment="", auto=False, frozen=None)).id

    async def take(self, checkpoint_id: str) -> str:
        volume = await self.forks.take(self.keeper, checkpoint_id)
        self.taken.append(volume)
        return volume.id

    def standing(self) -> set[str]:
        return set(self.pool.volumes()) - {_SOURCE} - {each.id for each in self.taken}

    async def ready(self, count: int) -> set[str]:
        """Those that stand by, once there are so many."""
        await self.until(lambda: self.forks.size == len(self.standing()) == count)
        return self.standing()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.forks.close()
        for each in (self.disk, *self.taken):
            await asyncio.to_thread(each.detach)
        self.uploads.close()


@pytest.fixture
async def world(pool: VolumePool, tmp_path: Path) -> AsyncIterator[World]:
    made = World(pool, DirectoryStore(tmp_path / "store"))
    yield made
    await made.close()
    assert made.standing() == set()


async def test_the_next_fork_of_a_checkpoint_stands_by(world: World) -> None:
    path(world.disk.mount, "upper/mark").write_text("of the checkpoint")
    kept = await world.checkpoint()
    path(world.disk.mount, "upper/mark").write_text("later")
    await world.take(kept)
    (ready,) = await world.ready(1)
    assert await world.take(kept) == ready
    for each in world.taken:
        assert path(each.mount, "upper/mark").read_text() == "of the checkpoint"
    await world.until(lambda: len(world.standing()) == 1)


async def test_it_goes_when_nobody_forks_any_more(world: World) -> None:
    kept = await world.checkpoint()
    await world.take(kept)
    await world.ready(1)
    world.clock.step(forks.SECONDS - 1)
    await world.take(kept)  # which begins the time anew
    await world.ready(1)
    world.clock.step(forks.SECONDS - 1)
    await world.ready(1)
    world.clock.step(1)
    await world.until(lambda: not world.standing())


async def test_it_goes_with_its_checkpoint(world: World) -> None:
    kept = await world.checkpoint()
    await world.take(kept)
    await world.until(lambda: len(world.standing()) == 1)
    await world.keeper.forget(kept)
    world.forks.drop(world.keeper, kept)
    await world.until(lambda: not world.standing())
    with pytest.raises(NotFoundError):
        await world.take(kept)


async def test_it_goes_with_its_volume(world: World) -> None:
    kept = [await world.checkpoint() for _ in range(2)]
    for each in kept:
        await world.take(each)
    await world.ready(2)
    world.forks.drop_all(_SOURCE)
    await world.until(lambda: not world.standing())


async def test_one_that_is_taken_while_another_goes_is_no_trouble(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [await world.checkpoint() for _ in range(2)]
    for each in kept:
        await world.take(each)
    ready = await world.ready(2)
    destroy, going, go = Spares.destroy, asyncio.Event(), asyncio.Event()

    async def slowly(self: Spares, volume: AttachedVolume) -> None:
        going.set()
        await go.wait()
        await destroy(self, volume)

    monkeypatch.setattr(Spares, "destroy", slowly)
    world.forks.drop_all(_SOURCE)
    await going.wait()
    takes = [asyncio.ensure_future(world.take(each)) for each in kept]
    go.set()
    await asyncio.gather(*takes)
    assert not ready & {each.id for each in world.taken}
    assert len(await world.ready(2)) == 2  # it goes on


async def test_claims_go_first(world: World) -> None:
    kept = await world.checkpoint()
    world.calm.clear()
    await world.take(kept)
    await asyncio.sleep(0)
    assert world.standing() == set()
    world.calm.set()
    await world.until(lambda: len(world.standing()) == 1)


async def test_few_checkpoints_have_one(world: World) -> None:
    kept = [await world.checkpoint() for _ in range(forks.MOST + 1)]
    for each in kept[:-1]:
        await world.take(each)
    first = await world.ready(forks.MOST)
    await world.take(kept[-1])
    await world.until(lambda: len(world.standing() - first) == 1 and len(world.standing()) == forks.MOST)


async def test_two_at_once_get_two(world: World) -> None:
    kept = await world.checkpoint()
    await world.take(kept)
    await world.ready(1)
    one, other = await asyncio.gather(world.take(kept), world.take(kept))
    assert one != other
    await world.ready(1)


async def test_one_that_is_being_made_goes_with_the_node(world: World) -> None:
    kept = await world.checkpoint()
    await world.take(kept)
    await world.until(lambda: bool(world.standing()))
    await world.forks.close()
    assert world.standing() == set()
