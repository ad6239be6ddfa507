"""Images filled from the store: they are the disk, byte by byte, or there is an error that says what is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, NotFoundError, UnavailableError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, Reference
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.keys import packs_prefix
from ballpoint.volume.log.log import read
from ballpoint.volume.log.mapped import load_map
from ballpoint.volume.sync.hydrate import AT_ONCE, Filled, hydrate
from ballpoint.volume.sync.reads import READ_MAX
from tests.volume.log.damage import later
from tests.volume.log.memory import MemoryStore
from tests.volume.sync.disks import BLOCKS, ZEROS, KnownDisk, compressible, incompressible, read_image
from tests.volume.sync.watched import WatchedStore

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)


@contextmanager
def an_image() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@pytest.fixture
def image() -> Iterator[int]:
    with an_image() as fd:
        yield fd


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def chance() -> random.Random:
    return random.Random(4)


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
async def disk(store: WatchedStore) -> AsyncIterator[KnownDisk]:
    yield await KnownDisk.found(store, VOLUME, LINEAGE)


async def pack_of(store: Store, block: int) -> str:
    """Key of the pack that has a block, whose page was changed by the last commits."""
    view = await read(store, VOLUME)
    assert view is not None
    place = (await load_map(store, view))[block]
    assert isinstance(place, Reference)
    return place.holder.key


changed = st.dictionaries(
    st.integers(0, BLOCKS - 1), st.sampled_from(["hole", "zeros", "plain", "zstd"]), min_size=1, max_size=40
)
steps = st.lists(
    st.tuples(st.just("write"), changed)
    | st.tuples(st.just("inline"), st.dictionaries(st.integers(0, BLOCKS - 1), st.just("zstd"), max_size=8))
    | st.tuples(st.sampled_from(["complete", "checkpoint", "move"]), st.just({})),
    max_size=7,
)


@settings(max_examples=60)
@given(steps, st.integers(0, 1 << 32))
def test_an_image_is_the_disk_or_one_of_its_checkpoints(steps: list[tuple[str, dict[int, str]]], seed: int) -> None:
    chance = random.Random(seed)

    makers: dict[str, Callable[[], bytes | None]] = {
        "hole": lambda: None,
        "zeros": lambda: ZEROS,
        "plain": lambda: incompressible(chance),
        "zstd": lambda: compressible(chance),
    }

    async def run() -> None:
        store = MemoryStore()
        disk = await KnownDisk.found(store, VOLUME, LINEAGE)
        for number, (step, blocks) in enumerate(steps):
            if step in ("write", "inline"):
                await disk.write({block: makers[kind]() for block, kind in blocks.items()}, inline=step == "inline")
            elif step == "checkpoint":
                await disk.checkpoint(f"v{number}")
            else:
                await (disk.move() if step == "move" else disk.complete())
        with an_image() as fd:
            os.pwrite(fd, b"what an earlier attempt left", BLOCK_BYTES * (BLOCKS + 7))
            view = await hydrate(store, VOLUME, fd)
            assert view.head == disk.writer.view.head
            assert read_image(fd) == disk.blocks
            assert os.fstat(fd).st_size == BLOCKS * BLOCK_BYTES
            for checkpoint, blocks_then in disk.checkpoints.items():
                await hydrate(store, VOLUME, fd, checkpoint=checkpoint)
                assert read_image(fd) == blocks_then

    asyncio.run(run())


async def test_zeros_are_neither_read_nor_written(store: WatchedStore, disk: KnownDisk, image: int) -> None:
    before = set(store.data)
    await disk.write({block: ZEROS for block in range(9)})
    (pack,) = [key for key in store.data if key not in before and key.startswith(packs_prefix(VOLUME))]
    del store.data[pack]
    await hydrate(store, VOLUME, image)
    assert read_image(image) == {}
    assert os.fstat(image).st_blocks == 0


async def test_the_disk_is_as_long_as_it_was(store: WatchedStore, image: int, chance: random.Random) -> None:
    size = 2 * BLOCK_BYTES + 512
    disk = await KnownDisk.found(store, VOLUME, LINEAGE, size=size)
    last = chance.randbytes(512)
    await disk.write({2: last + bytes(BLOCK_BYTES - 512)})
    await hydrate(store, VOLUME, image)
    assert os.fstat(image).st_size == size
    assert os.pread(image, BLOCK_BYTES, 2 * BLOCK_BYTES) == last

    await disk.write({3: compressible(chance)})
    with pytest.raises(CorruptError, match="block 3"):
        await hydrate(store, VOLUME, image)


async def test_what_is_wanted_of_a_pack_is_read_by_few_requests_that_have_a_bound(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    wanted = {block: incompressible(chance) for block in range(300)}
    await disk.write(wanted)
    await disk.complete()
    store.lengths.clear()
    await hydrate(store, VOLUME, image)
    assert read_image(image) == wanted
    large = [length for length in store.lengths if length >= BLOCK_BYTES]
    packs = sum(1 for key in store.data if key.startswith(packs_prefix(VOLUME)))
    assert len(large) <= len(wanted) * BLOCK_BYTES / (READ_MAX - BLOCK_BYTES) + packs
    assert max(large) <= READ_MAX

    # Of what was overwritten since, nothing is read where that is more than a little.
    await disk.write({block: None for block in range(300) if block % 8})
    store.lengths.clear()
    await hydrate(store, VOLUME, image)
    assert read_image(image) == {block: wanted[block] for block in range(0, 300, 8)}
    assert sum(length for length in store.lengths if length >= BLOCK_BYTES) == len(range(0, 300, 8)) * BLOCK_BYTES


async def test_a_kernel_that_writes_less_than_it_was_asked_is_asked_again(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk.write({block: incompressible(chance) for block in range(50)})

    def pwritev(fd: int, buffers: list[memoryview], position: int) -> int:
        whole = b"".join(buffers)
        return os.pwrite(fd, whole[: chance.choice([1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES])], position)

    monkeypatch.setattr(os, "pwritev", pwritev)
    await hydrate(store, VOLUME, image)
    assert read_image(image) == disk.blocks


async def test_many_small_packs_are_read_at_once_but_not_all(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    for block in range(2 * AT_ONCE):
        await disk.write({block: compressible(chance)})
    await disk.complete()
    store.most = 0
    await hydrate(store, VOLUME, image)
    assert read_image(image) == disk.blocks
    assert 1 < store.most <= AT_ONCE


async def test_progress_goes_up_to_all_there_is(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    await disk.write({block: incompressible(chance) for block in range(100)})
    await disk.write({block: compressible(chance) for block in range(90, 110)}, inline=True)
    told: list[Filled] = []
    await hydrate(store, VOLUME, image, progress=told.append)
    assert {each.total for each in told} == {len(disk.blocks) * BLOCK_BYTES}
    assert len(told) > 2
    done = [each.done for each in told]
    assert done[0] == 0
    assert done == sorted(set(done))
    assert told[-1].done == told[-1].total


async def test_there_is_no_image_of_what_is_not_there(store: WatchedStore, disk: KnownDisk, image: int) -> None:
    with pytest.raises(NotFoundError):
        await hydrate(store, UUID(int=9), image)
    with pytest.raises(NotFoundError, match="v7"):
        await hydrate(store, VOLUME, image, checkpoint="v7")
    await disk.writer.commit("delete")
    with pytest.raises(NotFoundError):
        await hydrate(store, VOLUME, image)


# ---- what a store can do to it ----


async def a_stored_disk(store: Store, chance: random.Random) -> KnownDisk:
    """Blocks of each kind, in several packs and pages, and inline; each object a few hundred bytes."""
    disk = await KnownDisk.found(store, VOLUME, LINEAGE)
    await disk.write({1: compressible(chance), 2: compressible(chance)})
    await disk.complete()
    await disk.write({2: None, PAGE_BLOCKS + 5: compressible(chance)})
    await disk.write({7: compressible(chance)}, inline=True)
    return disk


async def test_no_flipped_bit_becomes_data(image: int, chance: random.Random) -> None:
    store = MemoryStore()
    disk = await a_stored_disk(store, chance)
    found: dict[str, int] = dict.fromkeys(store.data, 0)
    for key, data in list(store.data.items()):
        for position in range(len(data)):
            damaged = bytearray(data)
            damaged[position] ^= 1 << chance.randrange(8)
            store.data[key] = bytes(damaged)
            try:
                await hydrate(store, VOLUME, image)
            except (CorruptError, ConflictError) as error:
                assert key in str(error)
                found[key] += 1
            else:
                assert read_image(image) == disk.blocks
        store.data[key] = data
    view = disk.writer.view
    assert view.complete is not None
    # Of commits every bit matters; of packs, those of blobs that are wanted.
    assert found[view.head.key] == len(store.data[view.head.key])
    assert found[view.complete.key] == len(store.data[view.complete.key])
    assert sum(1 for key, count in found.items() if count and key.startswith(packs_prefix(VOLUME))) >= 3


async def test_an_object_that_was_cut_is_damage_that_is_named(
    directory: Path, image: int, chance: random.Random
) -> None:
    store = DirectoryStore(directory)
    await a_stored_disk(store, chance)
    key = await pack_of(store, PAGE_BLOCKS + 5)
    for length in range(30):
        os.truncate(directory / key, 30 - length)
        with pytest.raises(CorruptError, match=f"block {PAGE_BLOCKS + 5} ") as caught:
            await hydrate(store, VOLUME, image)
        assert key in str(caught.value)
    await store.close()


async def test_all_damaged_blocks_of_a_part_are_named(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    await disk.write({block: incompressible(chance) for block in range(20)})
    (key,) = [key for key, data in store.data.items() if len(data) > 20 * BLOCK_BYTES]
    damaged = bytearray(store.data[key])
    for block in (3, 4, 5, 9):
        damaged[12 + block * BLOCK_BYTES + 100] ^= 4
    store.data[key] = bytes(damaged)
    with pytest.raises(CorruptError, match=r"blocks 3 to 5 .*block 9") as caught:
        await hydrate(store, VOLUME, image)
    assert key in str(caught.value)


async def test_a_pack_that_is_lost_is_damage_that_is_named(image: int, chance: random.Random) -> None:
    store = MemoryStore()
    await a_stored_disk(store, chance)
    key = await pack_of(store, PAGE_BLOCKS + 5)
    del store.data[key]
    with pytest.raises(CorruptError, match=f"block {PAGE_BLOCKS + 5} ") as caught:
        await hydrate(store, VOLUME, image)
    assert key in str(caught.value)


async def test_blocks_that_were_moved_meanwhile_are_found_where_they_are_now(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    await disk.write({block: incompressible(chance) for block in range(40)})
    await disk.complete()
    old = {key for key in store.data if key.startswith(packs_prefix(VOLUME))}
    large = {key for key in old if len(store.data[key]) > 40 * BLOCK_BYTES}

    async def collect(key: str) -> None:
        if key in large:
            store.before_get = None
            await disk.move()
            await disk.write({50: compressible(chance)})
            await store.delete(old)

    store.before_get = collect
    view = await hydrate(store, VOLUME, image)
    assert view.head == disk.writer.view.head
    assert read_image(image) == disk.blocks


async def test_a_lost_pack_is_told_of_although_the_log_goes_on(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    await disk.write({block: incompressible(chance) for block in range(40)})
    (lost,) = [key for key, data in store.data.items() if len(data) > 40 * BLOCK_BYTES]
    await disk.complete()
    del store.data[lost]

    async def go_on(key: str) -> None:
        if key == lost:
            await disk.writer.commit("settings", settings={"name": "other"})

    store.before_get = go_on
    with pytest.raises(CorruptError, match="blocks 0 to 39") as caught:
        await hydrate(store, VOLUME, image)
    assert lost in str(caught.value)


async def test_what_a_later_version_made_is_refused(store: WatchedStore, disk: KnownDisk, image: int) -> None:
    key = disk.writer.view.head.key
    store.data[key] = later(store.data[key])
    with pytest.raises(ConflictError, match="later version"):
        await hydrate(store, VOLUME, image)


@pytest.mark.parametrize("seed", range(20))
async def test_a_bad_store_gives_the_disk_or_an_error(seed: int, image: int) -> None:
    chance = random.Random(seed)
    inner = MemoryStore()
    disk = await a_stored_disk(inner, chance)
    store = FaultyStore(inner, Faults(latency=(0.0, 0.001), refused=chance.choice([0.0, 0.02, 0.2, 0.5])), seed)
    for _ in range(10):
        store.out = chance.random() < 0.2
        try:
            await hydrate(store, VOLUME, image)
        except UnavailableError:
            continue
        assert read_image(image) == disk.blocks
    store.out, store.faults = False, Faults()
    await hydrate(store, VOLUME, image)
    assert read_image(image) == disk.blocks


async def test_one_that_is_cancelled_leaves_nothing_at_work_and_is_repeated(
    store: WatchedStore, disk: KnownDisk, image: int, chance: random.Random
) -> None:
    for start in range(0, 400, 100):
        await disk.write({start + block: incompressible(chance) for block in range(100)})
    await disk.complete()
    started, never = asyncio.Event(), asyncio.Event()
    count = 0

    async def hold(key: str) -> None:
        nonlocal count
        if key.startswith(packs_prefix(VOLUME)) and len(store.data[key]) > READ_MAX:
            count += 1
            if count > 5:
                started.set()
                await never.wait()

    store.before_get = hold
    filling = asyncio.create_task(hydrate(store, VOLUME, image))
    await started.wait()
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("hydrate")] == []
    store.before_get = None
    await hydrate(store, VOLUME, image)
    assert read_image(image) == disk.blocks


async def test_a_file_that_cannot_be_written_is_an_error(
    store: WatchedStore, disk: KnownDisk, tmp_path: Path, chance: random.Random
) -> None:
    await disk.write({1: compressible(chance)})
    with (tmp_path / "image").open("wb"):
        pass
    with (tmp_path / "image").open("rb") as file, pytest.raises(OSError) as caught:
        await hydrate(store, VOLUME, file.fileno())
    assert not isinstance(caught.value, BallpointError)
