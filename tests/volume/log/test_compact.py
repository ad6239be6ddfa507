"""What is still asked for leaves packs that are mostly dead, and nothing else changes."""

from __future__ import annotations

from uuid import UUID

import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.volume.log.blob import encode_blob
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.commit import State
from ballpoint.volume.log.compact import Compacted, compact
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.keys import PackName, packs_prefix, parse_pack
from ballpoint.volume.log.log import read
from ballpoint.volume.log.mapped import load_map
from ballpoint.volume.log.packing import Packing
from ballpoint.volume.log.reach import Reach
from tests.volume.log.disks import Blocks, Disk, contents, noise
from tests.volume.log.memory import MemoryStore

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def disk(store: MemoryStore) -> Disk:
    writer = await found(store, VOLUME, LINEAGE, image="none", size=1 << 40, settings={"name": "a"}, writer="w")
    assert writer is not None
    return Disk(store, writer)


async def states(disk: Disk) -> dict[str, Blocks]:
    """The disk and its checkpoints, as a reader finds them."""
    view = await read(disk.store, VOLUME)
    assert view is not None
    assert view.state is not None
    found_now = {each.id: await contents(disk.store, view, each.root) for each in view.state.checkpoints}
    return {**found_now, "": await contents(disk.store, view)}


async def reached(disk: Disk) -> set[PackName]:
    reach = Reach(disk.store)
    await reach.add_volume(disk.writer.view)
    keys = [item.key for item in await disk.store.list(packs_prefix(VOLUME))]
    return {pack for pack in map(parse_pack, keys) if pack in reach}


async def written(disk: Disk) -> None:
    """Four packs' blocks, of which a checkpoint has a few, and the disk the last ones."""
    await disk.write({number: noise(number) for number in range(8)})
    await disk.write({number: None for number in range(1, 8)})
    await disk.checkpoint("kept")
    await disk.write({PAGE_BLOCKS + number: noise(number) for number in range(8)})
    await disk.write({0: noise(100), **{PAGE_BLOCKS + number: noise(number) for number in range(20, 28)}})
    await disk.writer.commit("settings", settings={"name": "b"})
    await disk.write({PAGE_BLOCKS: noise(7)}, inline=True)


async def test_blocks_leave_mostly_dead_packs_and_the_disk_and_its_checkpoints_stay(disk: Disk) -> None:
    await written(disk)
    before, packs = await states(disk), await reached(disk)
    done = await compact(disk.store, disk.writer)
    assert await states(disk) == before
    emptied = packs - await reached(disk)
    assert len(emptied) >= done.packs > 0
    assert done.moved < done.size
    view = await read(disk.store, VOLUME)
    assert view == disk.writer.view
    assert view is not None
    assert (view.kind, view.settings) == ("compact", {"name": "b"})


async def test_what_was_emptied_can_go(disk: Disk) -> None:
    await written(disk)
    await compact(disk.store, disk.writer)
    before, packs = await states(disk), await reached(disk)
    for item in await disk.store.list(packs_prefix(VOLUME)):
        if parse_pack(item.key) not in packs:
            await disk.store.delete([item.key])
    assert await states(disk) == before


async def test_a_second_time_there_is_nothing_to_do(disk: Disk) -> None:
    await written(disk)
    await compact(disk.store, disk.writer)
    head = disk.writer.view.head
    assert await compact(disk.store, disk.writer) == Compacted()
    assert disk.writer.view.head == head


async def test_packs_that_are_mostly_alive_stay(disk: Disk) -> None:
    await disk.write({number: noise(number) for number in range(8)})
    (alive,) = disk.writer.view.changes[0].packs
    await disk.write({0: None})
    await disk.complete()
    await compact(disk.store, disk.writer, dead=0.2)
    assert alive in await reached(disk)
    await compact(disk.store, disk.writer, dead=0.1)
    assert alive not in await reached(disk)


async def test_blocks_pages_and_roots_are_moved_where_all_is_asked_for(disk: Disk) -> None:
    await written(disk)
    await disk.complete()
    before, packs = await states(disk), await reached(disk)
    await compact(disk.store, disk.writer, dead=-1.0)  # all packs
    assert await states(disk) == before
    assert not packs & await reached(disk)


async def test_a_page_leaves_a_pack_of_dead_pages_though_its_blocks_stay(disk: Disk) -> None:
    await disk.write({page * PAGE_BLOCKS: noise(page) for page in range(8)})
    await disk.complete()
    state = disk.writer.view.state
    assert state is not None
    pages = state.root.holder
    await disk.write({page * PAGE_BLOCKS + 1: noise(10 + page) for page in range(1, 8)})
    await disk.complete()
    before, packs = await states(disk), await reached(disk)
    assert pages in packs
    await compact(disk.store, disk.writer)
    assert await states(disk) == before
    assert pages not in await reached(disk)


async def test_a_root_leaves_a_dead_pack_though_its_pages_stay(disk: Disk) -> None:
    await disk.write({0: noise(0)})
    await disk.complete()
    packing = Packing(disk.store, disk.writer.new_pack)
    await packing.add(encode_blob(noise(1)), "block")
    root = await packing.add(encode_blob((await load_map(disk.store, disk.writer.view)).encode_root()), "root")
    await packing.flush()
    await disk.writer.commit("root", closed=packing.closed, state=State(**{**disk.state(), "root": root}))
    before = await states(disk)
    await compact(disk.store, disk.writer)
    assert await states(disk) == before
    assert root.holder not in await reached(disk)


async def test_no_more_is_moved_than_allowed(disk: Disk) -> None:
    await written(disk)
    assert (await compact(disk.store, disk.writer, limit=0)) == Compacted()


async def test_a_lost_pack_stops_it_and_nothing_is_changed(disk: Disk) -> None:
    await written(disk)
    await disk.complete()
    head, lost = disk.writer.view.head, min(await reached(disk))
    await disk.store.delete([lost.key])
    with pytest.raises(CorruptError, match=lost.key):
        await compact(disk.store, disk.writer)
    assert disk.writer.view.head == head
