"""A map that is read from the store is the disk's, however it was written; what is not there is told as what it is."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from ballpoint.core.errors import CorruptError, FencedError, InternalError
from ballpoint.volume.log.blob import Blob, Piece, Reference
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.commit import Closed
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.keys import PackName
from ballpoint.volume.log.log import OutdatedError, Writer, read
from ballpoint.volume.log.mapped import load_map, load_pages, load_places, open_map, read_map, store_map
from ballpoint.volume.log.pack import Kind
from tests.volume.log.disks import Disk, block, contents
from tests.volume.log.memory import MemoryStore

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def begun(store: MemoryStore, volume: UUID = VOLUME) -> Disk:
    writer = await found(store, volume, LINEAGE, image="none", size=1 << 40, settings={}, writer="w")
    assert writer is not None
    return Disk(store, writer)


@pytest.fixture
async def disk(store: MemoryStore) -> Disk:
    return await begun(store)


async def look(store: MemoryStore) -> dict[int, bytes]:
    """The disk as a reader finds it."""
    view = await read(store, VOLUME)
    assert view is not None
    return await contents(store, view)


async def test_a_new_volume_is_a_disk_of_holes_and_its_maker_its_writer(store: MemoryStore, disk: Disk) -> None:
    assert await look(store) == {}
    name = await disk.writer.commit("settings", settings={"name": "a"})
    assert (name.epoch, name.number) == (1, 2)
    assert await read(store, VOLUME) == disk.writer.view


async def test_a_volume_is_begun_once(store: MemoryStore, disk: Disk) -> None:
    again = await found(store, VOLUME, LINEAGE, image="none", size=1 << 40, settings={}, writer="other")
    assert again is None
    await disk.write({0: block(0)})


async def test_blocks_in_packs_and_inline_and_holes_are_found_where_they_are(store: MemoryStore, disk: Disk) -> None:
    far = 40 * PAGE_BLOCKS + 7
    await disk.write({0: block(1), 5: block(2), far: block(3)})
    await disk.write({5: None, 6: block(4)}, inline=True)
    expected = {0: block(1), 6: block(4), far: block(3)}
    assert await look(store) == expected
    await disk.complete()
    assert await look(store) == expected
    await disk.write({6: block(5)}, inline=True)
    assert await look(store) == {**expected, 6: block(5)}


async def test_some_places_are_those_of_the_whole_map(store: MemoryStore, disk: Disk) -> None:
    far = 7 * PAGE_BLOCKS
    await disk.write({0: block(1), 5: block(2), far: block(3)})
    await disk.complete()
    await disk.write({5: None, 6: block(4), 8: block(4)}, inline=True)
    await disk.write({6: block(5), 7: block(5)})
    view = disk.writer.view
    whole = await load_map(store, view)
    await load_pages(store, view, whole, [far])
    wanted = [0, 4, 5, 6, 7, 8, 9, far, 20 * PAGE_BLOCKS]
    assert await load_places(store, view, wanted) == {number: whole[number] for number in wanted}
    before = store.calls["get"]
    await load_places(store, view, [5, 6, 7, 8])
    assert store.calls["get"] == before


async def test_a_writer_that_rested_reads_what_it_let_go_of(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)}, inline=True)
    before = disk.writer.view.changes
    disk.writer.rest()
    disk.writer.rest()
    assert not any(changes.inline for changes in disk.writer.view.changes)
    with pytest.raises(InternalError):
        await disk.complete()
    await disk.writer.recall()
    assert disk.writer.view.changes == before
    await disk.complete()
    assert await look(store) == {0: block(1)}
    disk.writer.rest()
    reads = store.calls["get"]
    await disk.writer.recall()
    assert store.calls["get"] == reads, "nothing was let go of"


async def test_a_writer_that_rested_finds_that_it_was_fenced(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)}, inline=True)
    disk.writer.rest()
    assert await Writer.take_over(store, VOLUME, writer="next") is not None
    with pytest.raises(FencedError):
        await disk.writer.recall()


async def test_a_writer_that_rested_finds_that_its_log_was_lost(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)}, inline=True)
    disk.writer.rest()
    del store.data[disk.writer.view.head.key]
    with pytest.raises(CorruptError, match=disk.writer.view.head.key):
        await disk.writer.recall()


async def test_a_new_pack_is_above_all_of_its_epoch_that_were_stored(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)})
    assert disk.writer.view.closed == Closed(1, 2)  # the first holds the root of the first commit
    taken = await Writer.take_over(store, VOLUME, writer="next")
    assert taken is not None
    names = [taken.new_pack().name for _ in range(2)]
    assert [(name.epoch, name.upload) for name in names] == [(2, 1), (2, 2)]


async def test_pages_that_lie_side_by_side_are_read_by_one_request(store: MemoryStore, disk: Disk) -> None:
    await disk.write({page * PAGE_BLOCKS: block(page) for page in range(6)})
    await disk.complete()
    view = disk.writer.view
    opened = await load_map(store, view)
    before = store.calls["get"]
    await load_pages(store, view, opened, [page * PAGE_BLOCKS for page in range(6)])
    assert store.calls["get"] == before + 1
    assert not opened.missing(page * PAGE_BLOCKS for page in range(6))


async def test_others_go_on_while_a_large_map_is_stored(store: MemoryStore, disk: Disk) -> None:
    """A thaw, for which all writers of a disk wait, is among those who would wait for it."""
    pages, loop = 20, asyncio.get_running_loop()
    await disk.write({page * PAGE_BLOCKS: block(page) for page in range(pages)})
    opened = await load_map(store, disk.writer.view)
    turns: list[asyncio.Handle] = []

    def turn() -> None:
        turns.append(loop.call_soon(turn))

    async def add(blob: Blob, _: Kind) -> Reference:
        pack = PackName(VOLUME, 1, 9, bytes(16))
        return Reference.to(pack, Piece(0, len(blob.stored), blob.flags, blob.hash))

    turn()
    await store_map(opened, disk.writer.view, add)
    turns[-1].cancel()
    assert len(turns) >= pages


async def test_a_pack_that_is_lost_is_damage(store: MemoryStore, disk: Disk) -> None:
    await disk.write({3 * PAGE_BLOCKS: block(1)})
    await disk.complete()
    view = disk.writer.view
    assert view.state is not None
    opened = await load_map(store, view)
    pack = opened.pages[3].holder
    del store.data[pack.key]
    with pytest.raises(CorruptError, match=f"{pack.key} is not there; blocks {3 * PAGE_BLOCKS} to "):
        await load_pages(store, view, opened, [3 * PAGE_BLOCKS])
    with pytest.raises(CorruptError, match=view.state.root.holder.key):
        await read_map(store, VOLUME)


async def test_a_pack_that_went_because_the_log_went_on_is_no_damage(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)})
    await disk.complete()
    old = await read(store, VOLUME)
    assert old is not None
    assert old.state is not None
    opened = await load_map(store, old)
    await disk.write({0: block(2)})
    await disk.complete()
    for pack in (old.state.root.holder, opened.pages[0].holder):
        store.data.pop(pack.key, None)
    with pytest.raises(OutdatedError):
        await open_map(store, old, old.state.root)
    with pytest.raises(OutdatedError):
        await load_pages(store, old, opened, [0])


async def test_a_reader_whose_log_goes_on_reads_it_again(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)})
    await disk.complete()
    state, get, races = disk.writer.view.state, store.get, 0
    assert state is not None

    async def get_late(key: str, start: int = 0, length: int | None = None) -> bytes:
        nonlocal races
        if key == state.root.holder.key and not races:
            races += 1
            await disk.write({0: block(2)})
            await disk.complete()
            del store.data[key]
        return await get(key, start, length)

    store.get = get_late  # type: ignore[method-assign]
    found_now = await read_map(store, VOLUME)
    assert found_now is not None
    assert found_now[0] == disk.writer.view
    assert races


async def test_a_volume_that_is_closed_for_good_has_no_map(store: MemoryStore, disk: Disk) -> None:
    await disk.writer.commit("delete")
    assert await read_map(store, VOLUME) is None
    assert await read_map(store, UUID(int=9)) is None


async def test_a_pack_that_ends_before_a_blob_is_damaged(store: MemoryStore, disk: Disk) -> None:
    await disk.write({0: block(1)})
    await disk.complete()
    view = disk.writer.view
    assert view.state is not None
    root: Reference = view.state.root
    store.data[root.holder.key] = store.data[root.holder.key][: root.offset]
    with pytest.raises(CorruptError, match=root.holder.key):
        await load_map(store, view)
