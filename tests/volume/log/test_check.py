"""Whatever is turned, cut or lost in a store is found and named, and what is not is not."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.volume.log.blob import Reference, describe_blocks, encode_blob
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.check import Checked, Damage, check
from ballpoint.volume.log.fork import fork, found, join
from ballpoint.volume.log.keys import MemberName, members_prefix, packs_prefix, parse_pack
from ballpoint.volume.log.log import Writer, read
from ballpoint.volume.log.mapped import load_map, load_pages
from ballpoint.volume.log.pack import stored_range
from ballpoint.volume.log.reach import Reach
from ballpoint.volume.log.stats import Stats, stats
from tests.volume.log.damage import later
from tests.volume.log.disks import Disk, noise
from tests.volume.log.memory import MemoryStore

LINEAGE, OTHER_LINEAGE, VOLUME, FORK, OTHER = (UUID(int=number) for number in range(1, 6))


@pytest.fixture
async def store() -> MemoryStore:
    """Two lineages: a volume with a checkpoint and a fork of it, and another volume."""
    made = MemoryStore()
    for volume, lineage in ((VOLUME, LINEAGE), (OTHER, OTHER_LINEAGE)):
        writer = await found(made, volume, lineage, image="none", size=1 << 40, settings={}, writer="w")
        assert writer is not None
        disk = Disk(made, writer)
        await disk.write({number: noise(number) for number in (0, 1, 2, PAGE_BLOCKS)})
        await disk.checkpoint("v0")
        await disk.write({0: noise(10)})
        await disk.complete()
        await disk.write({1: noise(11)})
        await disk.write({2: noise(12)}, inline=True)
    forked = await fork(made, VOLUME, "v0", FORK, settings={}, writer="w")
    assert forked is not None
    return made


async def look(store: MemoryStore, **how: Any) -> tuple[Checked, list[Damage]]:
    damages: list[Damage] = []
    checked = await check(store, damages.append, **how)
    assert checked.damages == len(damages)
    return checked, damages


def turn(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


async def needed(store: MemoryStore) -> list[str]:
    """All objects but packs that nothing reaches."""
    reach = Reach(store)
    for volume in (VOLUME, FORK, OTHER):
        view = await read(store, volume)
        assert view is not None
        await reach.add_volume(view)
    return [key for key in sorted(store.data) if "/packs/" not in key or parse_pack(key) in reach]


async def test_where_all_is_well_nothing_is_found(store: MemoryStore) -> None:
    quick, damages = await look(store)
    assert damages == []
    assert (quick.volumes, quick.checkpoints, quick.whole) == (3, 2, 0)
    whole, damages = await look(store, whole=True)
    assert damages == []
    assert whole.whole == whole.packs == quick.packs
    assert whole.size == sum(len(store.data[key]) for key in await needed(store) if "/packs/" in key)


async def test_a_turned_bit_anywhere_is_found_and_others_are_not_concerned(store: MemoryStore) -> None:
    for key in await needed(store):
        whole = store.data[key]
        for position in (0, 7, 9, len(whole) // 2, len(whole) - 40, len(whole) - 1):
            store.data[key] = turn(whole, position)
            _, damages = await look(store, whole=True)
            assert damages, (key, position)
            assert all(key in damage.what for damage in damages), (key, position, damages)
            other = str(OTHER) in key
            assert {damage.volume == OTHER for damage in damages} == {other}
        store.data[key] = whole


async def test_of_one_lineage_those_volumes_are_concerned_that_need_what_is_damaged(store: MemoryStore) -> None:
    await Disk(store, await _writer(store, FORK)).write({number: noise(20 + number) for number in (0, 1)})
    reaches = {}
    for volume in (VOLUME, FORK):
        view = await read(store, volume)
        assert view is not None
        reaches[volume] = Reach(store)
        await reaches[volume].add_volume(view)
    seen = set()
    for key in await needed(store):
        if "/packs/" not in key:
            continue
        needing = {volume for volume, reach in reaches.items() if parse_pack(key) in reach}
        whole = store.data[key]
        store.data[key] = turn(whole, len(whole) // 2)
        _, damages = await look(store, lineage=LINEAGE, whole=True)
        store.data[key] = whole
        assert {damage.volume for damage in damages if damage.checkpoint is not None} == needing, key
        seen.add(frozenset(needing))
    assert seen >= {frozenset({VOLUME}), frozenset({FORK}), frozenset({VOLUME, FORK})}


async def test_what_is_lost_or_cut_is_found_without_reading_packs(store: MemoryStore) -> None:
    for key in await needed(store):
        whole = store.data[key]
        for left in (None, whole[: len(whole) // 2]):
            if left is not None:
                store.data[key] = left
            else:
                del store.data[key]
            _, damages = await look(store)
            # A commit below the newest complete one is not needed; so is a fork's member once its log has begun.
            assert any(key in damage.what for damage in damages) or "/commits/" in key, (key, damages)
        store.data[key] = whole


async def test_a_lost_head_or_one_that_it_needs_is_found(store: MemoryStore) -> None:
    view = await read(store, VOLUME)
    assert view is not None
    assert view.complete is not None
    del store.data[view.changes[0].commit.key]
    _, damages = await look(store)
    (damage,) = damages
    assert damage.volume == VOLUME
    assert view.changes[0].commit.key in damage.what


async def test_the_blocks_that_are_touched_are_named_and_no_others(store: MemoryStore) -> None:
    view = await read(store, VOLUME)
    assert view is not None
    disk = await load_map(store, view)
    await load_pages(store, view, disk, [PAGE_BLOCKS])
    place: Any = disk[PAGE_BLOCKS]
    start, _ = stored_range(place.piece)
    store.data[place.holder.key] = turn(store.data[place.holder.key], start + 5)
    _, damages = await look(store, whole=True)
    touched = [damage for damage in damages if damage.checkpoint is not None]
    assert {(damage.volume, damage.checkpoint) for damage in touched} == {(VOLUME, ""), (VOLUME, "v0"), (FORK, "")}
    for damage in touched:
        assert damage.key == place.holder.key
        assert f"{describe_blocks(PAGE_BLOCKS)} cannot be read" in damage.what
        assert describe_blocks(0) not in damage.what


async def test_a_pack_in_anothers_place_is_found(store: MemoryStore) -> None:
    keys = [key for key in await needed(store) if key.startswith(packs_prefix(VOLUME))]
    largest = sorted(keys, key=lambda key: len(store.data[key]))[-2:]
    store.data[largest[0]] = store.data[largest[1]]
    _, damages = await look(store, whole=True)
    assert damages
    assert all(largest[0] in damage.what for damage in damages)


async def test_a_map_that_names_what_its_pack_does_not_have_is_found(store: MemoryStore) -> None:
    """The pack is whole, and the reference into it wrong."""
    view = await read(store, OTHER)
    assert view is not None
    place = next(place for _, place in view.changes[0])
    assert isinstance(place, Reference)
    wrong = msgspec.structs.replace(place, hash=bytes(len(place.hash)))
    await (await _writer(store, OTHER)).commit("data", blocks=[(7, wrong)])
    assert (await look(store))[1] == []  # packs are not read
    _, damages = await look(store, whole=True)
    (damage,) = damages
    assert (damage.volume, damage.checkpoint, damage.key) == (OTHER, "", place.holder.key)
    assert describe_blocks(7) in damage.what


async def _writer(store: MemoryStore, volume: UUID) -> Writer:
    writer = await Writer.take_over(store, volume, writer="next")
    assert writer is not None
    return writer


async def test_an_inline_block_that_is_none_is_found(store: MemoryStore) -> None:
    wrong = encode_blob(noise(1))._replace(hash=bytes(16))
    name = await (await _writer(store, OTHER)).commit("data", blocks=[(7, wrong)])
    _, damages = await look(store)
    (damage,) = damages
    assert (damage.volume, damage.checkpoint, damage.key) == (OTHER, "", name.key)
    assert describe_blocks(7) in damage.what


async def test_a_map_that_many_share_is_read_once(store: MemoryStore) -> None:
    async def gets() -> int:
        before = store.calls["get"]
        await look(store)
        return store.calls["get"] - before

    before = await gets()
    for number in range(10):
        assert await fork(store, VOLUME, "v0", UUID(int=100 + number), settings={}, writer="w") is not None
    assert await gets() == before + 2 * 10  # the member and the first commit of each


async def test_a_later_version_is_named_as_such(store: MemoryStore) -> None:
    for key in (MemberName(OTHER_LINEAGE, OTHER).key, max(await needed(store), key=lambda key: "/packs/" in key)):
        whole = store.data[key]
        store.data[key] = later(whole)
        _, damages = await look(store, whole=True)
        assert any("later version" in damage.what and key in damage.what for damage in damages)
        store.data[key] = whole


@pytest.mark.parametrize("where", ["lineages/", "volumes/", members_prefix(LINEAGE)])
@pytest.mark.parametrize("name", ["0-notes", "z", "0/notes", "z/members/1"])
async def test_what_somebody_else_put_there_is_named_and_passed_over(store: MemoryStore, where: str, name: str) -> None:
    store.data[where + name] = b"notes"
    checked, damages = await look(store)
    (damage,) = damages
    assert where + name in damage.what
    assert checked.volumes == 3
    with pytest.raises(CorruptError):
        await stats(store)


async def test_a_sample_reads_some_packs(store: MemoryStore) -> None:
    some, _ = await look(store, sample=0.5, seed=3)
    assert 0 < some.whole < some.packs


async def test_one_lineage_is_looked_at_alone(store: MemoryStore) -> None:
    for key in [key for key in store.data if key.startswith(packs_prefix(OTHER))]:
        del store.data[key]
    assert (await look(store, lineage=LINEAGE))[1] == []
    assert (await look(store, lineage=OTHER_LINEAGE))[1] != []


async def test_members_without_a_log_and_volumes_closed_for_good_are_no_damage(store: MemoryStore) -> None:
    await join(store, MemberName(LINEAGE, UUID(int=9)), None)
    writer = await _writer(store, OTHER)
    await writer.commit("delete")
    del store.data[MemberName(OTHER_LINEAGE, OTHER).key]
    checked, damages = await look(store, whole=True)
    assert damages == []
    assert (checked.volumes, checked.unborn) == (2, 1)


async def test_what_is_collected_and_written_meanwhile_is_no_damage(store: MemoryStore) -> None:
    """The volume goes on between the reading of its log and of its map, and the old packs go."""
    disk, get, races = Disk(store, await _writer(store, VOLUME)), store.get, 0
    await disk.complete()
    assert disk.writer.view.state is not None
    old = disk.writer.view.state.root.holder.key

    async def get_late(key: str, start: int = 0, length: int | None = None) -> bytes:
        nonlocal races
        if key == old and not races:
            races += 1
            await disk.write({0: noise(20)})
            await disk.complete()
            del store.data[old]
        return await get(key, start, length)

    store.get = get_late  # type: ignore[method-assign]
    assert (await look(store, whole=True))[1] == []
    assert races


async def test_statistics_are_what_is_there(store: MemoryStore) -> None:
    counted = await stats(store)
    packs = {key: data for key, data in store.data.items() if "/packs/" in key}
    commits = {key: data for key, data in store.data.items() if "/commits/" in key}
    reachable = set(await needed(store)) & packs.keys()
    assert counted == Stats(
        lineages=2,
        volumes=3,
        checkpoints=2,
        commits=len(commits),
        commit_bytes=sum(map(len, commits.values())),
        packs=len(packs),
        pack_bytes=sum(map(len, packs.values())),
        reachable=sum(len(packs[key]) for key in reachable),
    )
    assert counted.garbage > 0


async def test_statistics_count_what_is_trashed_closed_unborn_or_unreadable(store: MemoryStore) -> None:
    await join(store, MemberName(LINEAGE, UUID(int=9)), None)
    await (await _writer(store, VOLUME)).commit("trash")
    await (await _writer(store, OTHER)).commit("delete")
    del store.data[MemberName(OTHER_LINEAGE, OTHER).key]
    view = await read(store, FORK)
    assert view is not None
    store.data[view.head.key] = turn(store.data[view.head.key], 50)
    counted = await stats(store)
    assert (counted.volumes, counted.trashed, counted.closed, counted.unborn, counted.unreadable) == (1, 1, 1, 1, 1)
    assert counted.garbage == sum(len(data) for key, data in store.data.items() if key.startswith(packs_prefix(OTHER)))
    assert len([key for key in store.data if key.startswith(members_prefix(LINEAGE))]) == 3
