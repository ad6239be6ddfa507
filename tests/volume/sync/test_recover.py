"""The volumes of a store: all of them are found with what they are, and one that is damaged hides no other."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from ballpoint.core.errors import ConflictError, CorruptError, UnavailableError
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import LIST_MAX, Store
from ballpoint.volume.log.fork import fork, join
from ballpoint.volume.log.keys import MemberName
from ballpoint.volume.sync.recover import AT_ONCE, Found, Unreadable, inventory
from tests.volume.log.damage import later
from tests.volume.log.memory import MemoryStore
from tests.volume.sync.disks import KnownDisk, compressible
from tests.volume.sync.watched import WatchedStore


async def all_of(store: Store) -> list[Found | Unreadable]:
    return [each async for each in inventory(store)]


async def volume(store: Store, number: int) -> KnownDisk:
    return await KnownDisk.found(store, UUID(int=number), UUID(int=1000 + number))


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


async def test_a_volume_is_found_with_all_that_its_log_says(store: WatchedStore) -> None:
    disk = await volume(store, 1)
    await disk.write({1: compressible(random.Random(1))})
    await disk.checkpoint("v0")
    await disk.writer.commit("settings", settings={"name": "work", "labels": {"a": "b"}})
    (found,) = await all_of(store)
    view = disk.writer.view
    assert view.state is not None
    assert found == Found(
        volume=disk.writer.view.head.volume,
        lineage=view.lineage,
        head=view.head,
        put_id=view.put_id,
        time=view.time,
        image=view.state.image,
        size=view.state.size,
        settings={"name": "work", "labels": {"a": "b"}},
        checkpoints=view.state.checkpoints,
        next=view.state.next,
        trashed=None,
        bare=False,
    )
    assert [each.id for each in found.checkpoints] == ["v0"]

    await disk.writer.commit("trash")
    (found,) = await all_of(store)
    assert isinstance(found, Found)
    assert found.trashed == disk.writer.view.time


async def test_what_is_gone_for_good_or_never_was_is_not_found(store: WatchedStore) -> None:
    gone = await volume(store, 1)
    await gone.writer.commit("delete")
    await join(store, MemberName(UUID(int=9), UUID(int=8)), None)
    await volume(store, 2)
    assert [each.volume for each in await all_of(store) if isinstance(each, Found)] == [UUID(int=2)]
    assert len(await all_of(store)) == 1


async def test_a_volume_without_a_disk_is_told_from_one_and_from_a_fork(store: WatchedStore) -> None:
    disk = await volume(store, 1)
    (found,) = await all_of(store)
    assert isinstance(found, Found) and found.bare
    await disk.write({1: compressible(random.Random(1))})
    await disk.checkpoint("v0")
    assert await fork(store, UUID(int=1), "v0", UUID(int=2), settings={}, writer="w") is not None
    assert [each.bare for each in await all_of(store) if isinstance(each, Found)] == [False, False]


async def test_damage_is_named_and_hides_no_other_volume(store: WatchedStore) -> None:
    disks = [await volume(store, number) for number in range(1, 6)]
    heads = [disk.writer.view.head.key for disk in disks]
    store.data[heads[0]] = store.data[heads[0]][:-1]
    store.data[heads[2]] = later(store.data[heads[2]])
    await disks[3].writer.commit("settings", settings={})
    del store.data[heads[3]]
    store.data["lineages/what-is-this"] = b""
    found = await all_of(store)
    assert [each.volume.int for each in found if isinstance(each, Found)] == [2, 5]
    told = {each.key: each.error for each in found if isinstance(each, Unreadable)}
    for disk, head, kind in (
        (disks[0], heads[0], CorruptError),
        (disks[2], heads[2], ConflictError),
        (disks[3], heads[3], CorruptError),
    ):
        key = MemberName(disk.writer.view.lineage, disk.writer.view.head.volume).key
        assert isinstance(told[key], kind)
        assert head in str(told[key])
    assert isinstance(told["lineages/what-is-this"], CorruptError)
    assert len(told) == 4


async def test_a_log_of_another_lineage_is_not_taken_for_the_members(store: WatchedStore) -> None:
    disk = await volume(store, 1)
    other = MemberName(UUID(int=77), disk.writer.view.head.volume)
    await join(store, other, None)
    found = {type(each): each for each in await all_of(store)}
    assert set(found) == {Found, Unreadable}
    assert isinstance(told := found[Unreadable], Unreadable)
    assert told.key == other.key


async def test_more_volumes_than_one_listing_has_are_read_some_at_once(store: WatchedStore) -> None:
    count = LIST_MAX + 3
    for number in range(count):
        await volume(store, number + 1)
    store.most = 0
    assert {each.volume.int for each in await all_of(store) if isinstance(each, Found)} == set(range(1, count + 1))
    assert 1 < store.most <= AT_ONCE


@pytest.mark.parametrize("seed", range(10))
async def test_a_bad_store_gives_all_volumes_or_an_error(seed: int) -> None:
    inner = MemoryStore()
    for number in range(1, 9):
        await volume(inner, number)
    store = FaultyStore(inner, Faults(latency=(0.0, 0.001), refused=0.03), seed)
    for _ in range(10):
        try:
            found = await all_of(store)
        except UnavailableError:
            continue
        assert [each.volume.int for each in found if isinstance(each, Found)] == list(range(1, 9))
        assert len(found) == 8
