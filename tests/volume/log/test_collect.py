"""Garbage goes, and nothing else: by directed schedules, each of which breaks the code without one of its rules."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from ballpoint.core.errors import ConflictError, CorruptError, FencedError, NotFoundError
from ballpoint.volume.log.blob import encode_blob
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.collect import Collected, collect, delete
from ballpoint.volume.log.commit import decode_commit
from ballpoint.volume.log.compact import compact
from ballpoint.volume.log.fork import fork, found, join
from ballpoint.volume.log.keys import MemberName, commits_prefix, packs_prefix, parse_commit
from ballpoint.volume.log.log import OutdatedError, Writer, read
from ballpoint.volume.log.packing import Packing
from tests.volume.log.disks import Blocks, Disk, contents, noise
from tests.volume.log.memory import MemoryStore
from tests.volume.log.stepped import NoPauses, Schedule

LINEAGE, VOLUME, FORK = (UUID(int=number) for number in range(1, 4))
DAY = 86400.0


class Clock(NoPauses):
    """No pauses, and a time that goes on when it is told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0

    def pass_by(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class World:
    """A lineage. Whoever is driven step by step has a store by its own name; all else happens at once."""

    def __init__(self) -> None:
        self.schedule = Schedule(1)
        self.store = MemoryStore()
        self.store.objects = self.schedule.objects
        self.clock: Any = Clock()

    async def found(self, volume: UUID = VOLUME) -> Disk:
        writer = await found(
            self.store, volume, LINEAGE, image="none", size=1 << 40, settings={}, writer="w", clock=self.clock
        )
        assert writer is not None
        return Disk(self.store, writer)

    async def fork(self, checkpoint: str, volume: UUID = FORK, source: UUID = VOLUME) -> Disk:
        writer = await self.forking(self.store, checkpoint, volume, source)
        assert writer is not None
        return Disk(self.store, writer)

    def forking(
        self, store: Any, checkpoint: str, volume: UUID = FORK, source: UUID = VOLUME
    ) -> Coroutine[Any, Any, Writer | None]:
        return fork(store, source, checkpoint, volume, settings={}, writer="f", clock=self.clock)

    def begin_fork(self, checkpoint: str) -> None:
        self.schedule.start("fork", self.forking(self.schedule.store("fork"), checkpoint))

    def begin_collecting(self) -> None:
        self.schedule.start("garbage", self.collecting(self.schedule.store("garbage")))

    def collecting(self, store: Any, **seconds: float) -> Coroutine[Any, Any, Collected]:
        return collect(store, LINEAGE, writer="g", clock=self.clock, **seconds)

    async def collect(self, **seconds: float) -> Collected:
        return await self.collecting(self.store, **seconds)

    async def contents(self, volume: UUID = VOLUME) -> Blocks:
        """The disk of a volume; its checkpoints are read as well."""
        view = await read(self.store, volume)
        assert view is not None
        assert view.state is not None
        for checkpoint in view.state.checkpoints:
            await contents(self.store, view, checkpoint.root)
        return await contents(self.store, view)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.store.data if key.startswith(prefix))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def disk(world: World) -> Disk:
    """A volume of which a checkpoint `v0` has a block that the disk has no more."""
    made = await world.found()
    await made.write({PAGE_BLOCKS: noise(2)})
    await made.complete()
    await made.write({0: noise(1)})
    await made.checkpoint("v0")
    await made.write({0: noise(3)})
    await made.complete()
    return made


async def test_packs_that_nothing_reaches_go_and_the_rest_stays(world: World, disk: Disk) -> None:
    await world.collect()
    before, data = await world.contents(), dict(world.store.data)
    await disk.forget("v0")
    done = await world.collect()
    gone = data.keys() - world.store.data.keys()
    assert gone
    assert (done.packs, done.size) == (len(gone), sum(len(data[key]) for key in gone))
    assert all(key.startswith(packs_prefix(VOLUME)) for key in gone)
    assert await world.contents() == before
    assert await world.collect() == Collected()


async def test_a_fork_has_its_sources_disk_and_writes_its_own(world: World, disk: Disk) -> None:
    copy = await world.fork("v0")
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}
    await copy.write({0: noise(4)}, inline=True)
    await copy.complete()
    assert await world.contents(FORK) == {0: noise(4), PAGE_BLOCKS: noise(2)}
    assert await world.contents() == {0: noise(3), PAGE_BLOCKS: noise(2)}
    with pytest.raises(NotFoundError):
        await world.fork("v7", UUID(int=9))
    with pytest.raises(NotFoundError):
        await world.fork("v0", UUID(int=9), source=UUID(int=8))


async def test_a_fork_of_what_is_still_there_reads_no_page(world: World, disk: Disk) -> None:
    before = world.store.calls["get"]
    await world.fork("v0")
    assert world.store.calls["get"] == before + 2  # the source's newest commit, twice


async def test_a_fork_outlives_its_source(world: World, disk: Disk) -> None:
    await world.fork("v0")
    await disk.writer.commit("delete")
    await world.collect()
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}
    assert world.keys(packs_prefix(VOLUME))
    assert MemberName(LINEAGE, VOLUME).key in world.store.data


async def test_a_fork_that_was_begun_and_broken_off_goes_on(world: World, disk: Disk) -> None:
    world.begin_fork("v0")
    await world.schedule.until_change("fork", key=commits_prefix(FORK))
    world.schedule.kill("fork")
    await disk.forget("v0")
    await disk.checkpoint("v0")  # of another disk; what the member says counts
    with pytest.raises(OutdatedError):
        await world.fork("v0")
    await disk.forget("v0")
    await world.collect()
    with pytest.raises(NotFoundError):
        await world.fork("v0")


async def test_a_member_is_of_one_origin(world: World, disk: Disk) -> None:
    await world.fork("v0")
    with pytest.raises(ConflictError, match="and not as a volume of its own"):
        await join(world.store, MemberName(LINEAGE, FORK), None)
    assert await world.forking(world.store, "v0") is None


async def test_a_shared_page_is_read_once(world: World, disk: Disk) -> None:
    async def requests(forks: range) -> int:
        for number in forks:
            await world.fork("v0", UUID(int=100 + number))
        await world.collect()  # whatever there is
        before = sum(world.store.calls.values())
        await world.collect()
        return sum(world.store.calls.values()) - before

    one, eleven = await requests(range(1)), await requests(range(1, 11))
    # Of each its log's head is listed and read, and its packs are listed.
    assert eleven - one == 3 * 10


async def test_packs_whose_commit_is_to_come_stay(world: World, disk: Disk) -> None:
    """Review A2: another commit takes the next number, and the garbage is collected."""
    packing = Packing(world.store, disk.writer.new_pack)
    place = await packing.add(encode_blob(noise(5)), "block")
    await packing.flush()
    await disk.writer.commit("settings", settings={"name": "between"})
    assert (await world.collect()).packs  # others
    await disk.writer.commit("data", blocks=[(5, place)], closed=packing.closed)
    assert (await world.contents())[5] == noise(5)


async def test_blocks_of_commits_that_no_root_names_yet_stay(world: World, disk: Disk) -> None:
    await disk.write({5: noise(5)})
    await disk.write({6: noise(6)})
    await world.collect()
    now = await world.contents()
    assert (now[5], now[6]) == (noise(5), noise(6))


async def test_what_a_dead_writer_left_goes_after_the_next_takes_over(world: World, disk: Disk) -> None:
    packing = Packing(world.store, disk.writer.new_pack)
    await packing.add(encode_blob(noise(5)), "block")
    await packing.flush()
    await world.collect()
    left = world.keys(packs_prefix(VOLUME))
    await Writer.take_over(world.store, VOLUME, writer="next")
    assert (await world.collect()).packs == 1
    assert len(world.keys(packs_prefix(VOLUME))) == len(left) - 1


async def test_a_fork_beside_compaction_gives_itself_up(world: World, disk: Disk) -> None:
    """The checkpoint lives on, but in other packs than those that the fork has read of."""
    world.begin_fork("v0")
    await world.schedule.until_change("fork")
    await compact(world.store, disk.writer, dead=-1.0)  # all packs
    world.begin_collecting()
    await world.schedule.until_change("garbage")
    with pytest.raises(OutdatedError):
        await world.schedule.finish("fork")
    assert (await world.schedule.finish("garbage")).packs
    await world.contents()
    assert await read(world.store, FORK) is None
    await world.collect()  # a member whose packs have gone is no damage


async def test_a_fork_begins_when_all_its_packs_are_reached_otherwise(world: World) -> None:
    """Its checkpoint has gone while it began, but the disk has the same pages."""
    disk = await world.found()
    await disk.write({0: noise(1), PAGE_BLOCKS: noise(2)})
    await disk.checkpoint("v0")
    world.begin_fork("v0")
    await world.schedule.until_change("fork")
    await disk.write({3 * PAGE_BLOCKS: noise(3)})
    await disk.forget("v0")
    await world.schedule.finish("fork")
    await world.collect()
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}


async def test_a_member_keeps_what_its_fork_will_reach(world: World, disk: Disk) -> None:
    """The checkpoint goes between the fork's last look and its first commit."""
    world.begin_fork("v0")
    await world.schedule.until_change("fork", key=commits_prefix(FORK))
    await disk.forget("v0")
    await world.collect()
    assert await world.schedule.finish("fork") is not None
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}


async def test_a_fork_that_the_first_pass_does_not_see_keeps_its_packs(world: World, disk: Disk) -> None:
    world.begin_collecting()
    await world.schedule.settle()
    (listing,) = [each for each in world.schedule.waiting if each.process == "garbage"]
    world.schedule.let(listing)  # of the members
    world.begin_fork("v0")
    await world.schedule.until_change("fork", key=commits_prefix(FORK))
    await disk.forget("v0")
    await world.schedule.finish("garbage")
    assert await world.schedule.finish("fork") is not None
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}


async def test_a_fork_that_was_given_up_can_never_begin(world: World, disk: Disk) -> None:
    """Its member has gone, and then its first commit comes."""
    world.begin_fork("v0")
    await world.schedule.until_change("fork", key=commits_prefix(FORK))
    assert (await world.collect(abandon=DAY)).abandoned == 0
    world.clock.pass_by(DAY)
    assert (await world.collect(abandon=DAY)).abandoned == 1
    assert (await world.collect()).removed == 1
    await disk.forget("v0")
    assert (await world.collect()).packs
    assert await world.schedule.finish("fork") is None
    assert await Writer.take_over(world.store, FORK, writer="f") is None
    assert MemberName(LINEAGE, FORK).key not in world.store.data


async def test_a_volume_leaves_the_trash_when_its_time_is_over(world: World, disk: Disk) -> None:
    await world.fork("v0")
    await disk.writer.commit("trash")
    trashed = await read(world.store, VOLUME)
    assert trashed is not None
    assert trashed.trashed is not None
    world.clock.time = datetime.fromtimestamp(trashed.trashed / 1000, UTC)
    assert (await world.collect(retention=DAY)).deleted == 0
    await world.contents()
    world.clock.pass_by(DAY)
    assert (await world.collect(retention=DAY)).deleted == 1
    await world.collect()
    assert await world.contents(FORK) == {0: noise(1), PAGE_BLOCKS: noise(2)}
    with pytest.raises(FencedError):
        await disk.writer.commit("untrash")


async def test_a_volume_that_was_taken_back_stays_and_its_writer_goes_on(world: World, disk: Disk) -> None:
    await disk.writer.commit("trash")
    await disk.writer.commit("untrash")
    assert not await delete(world.store, VOLUME, writer="g")
    await disk.writer.commit("settings", settings={})


async def test_a_volume_that_is_taken_back_while_it_is_deleted_stays(world: World, disk: Disk) -> None:
    await disk.writer.commit("trash")
    world.schedule.start("delete", delete(world.schedule.store("delete"), VOLUME, writer="g", clock=world.clock))
    await world.schedule.until_change("delete")
    await disk.writer.commit("untrash")
    assert not await world.schedule.finish("delete")
    await world.contents()


async def test_of_a_deleted_volume_only_what_keeps_it_closed_is_left(world: World, disk: Disk) -> None:
    taken = await Writer.take_over(world.store, VOLUME, writer="next")
    assert taken is not None
    await taken.commit("settings", settings={})
    await taken.commit("delete")
    first = await world.collect()
    assert first.packs
    assert (await world.collect()).removed == 1
    kinds = [decode_commit(world.store.data[key], parse_commit(key)).kind for key in world.keys("")]
    assert sorted(kinds) == ["delete", "seal"]
    assert await read(world.store, VOLUME) is not None
    with pytest.raises(FencedError):
        await disk.writer.commit("settings", settings={})


async def test_a_lineage_with_damage_keeps_all_its_packs(world: World, disk: Disk) -> None:
    await disk.forget("v0")
    state = disk.writer.view.state
    assert state is not None
    del world.store.data[state.root.holder.key]
    before = dict(world.store.data)
    with pytest.raises(CorruptError, match=state.root.holder.key):
        await world.collect()
    assert world.store.data == before
