"""Disks brought back into the pool from the store."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from ballpoint.core.errors import DISK_FULL, NotFoundError, UnavailableError
from ballpoint.volume import snapshots
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.hydrate import Filled, hydrate
from ballpoint.volume.sync.place import fetch
from tests.volume.sync.disks import KnownDisk, incompressible, read_image
from tests.volume.sync.watched import WatchedStore
from tests.volume.world import path

pytestmark = pytest.mark.host

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
async def disk(store: WatchedStore) -> AsyncIterator[KnownDisk]:
    yield await KnownDisk.found(store, VOLUME, LINEAGE)


async def upload(store: WatchedStore, image: Path) -> KnownDisk:
    """The disk in an image file, in the store."""
    disk = await KnownDisk.found(store, VOLUME, LINEAGE, size=image.stat().st_size)
    with image.open("rb") as file:
        await disk.write(read_image(file.fileno()))
    await disk.complete()
    return disk


async def test_a_disk_that_was_evicted_comes_back_and_holds_what_it_held(pool: VolumePool, store: WatchedStore) -> None:
    pool.create("v", template="base", meta={"image": "digest"})
    volume = pool.attach("v")
    path(volume.mount, "upper/hello").write_text("mine")
    with pytest.raises(UnavailableError):
        pool.evict("v")
    volume.detach()
    directory = pool.directory("v")
    disk = await upload(store, directory / "disk.img")
    assert pool.evict("v") > 0
    assert pool.evict("v") == 0
    assert not pool.is_local("v")
    assert pool.volumes() == ["v"]

    view = await fetch(pool, "v", 7, store=store, volume=VOLUME)
    assert view.head == disk.writer.view.head
    with snapshots.opened(directory, 7) as fd:
        assert read_image(fd) == disk.blocks
    with pytest.raises(PermissionError):
        snapshots.path_of(directory, 7).open("r+b")
    pool.replace_disk("v", pool.stage("v", 7))
    volume = pool.attach("v")
    assert path(volume.mount, "upper/hello").read_text() == "mine"
    path(volume.mount, "upper/hello").write_text("goes on")
    volume.detach()


async def test_a_checkpoint_comes_back_beside_the_disk(pool: VolumePool, store: WatchedStore, disk: KnownDisk) -> None:
    pool.create("v", template="base", meta={})
    chance = random.Random(1)
    await disk.write({3: incompressible(chance)})
    await disk.checkpoint("v0")
    await disk.write({3: incompressible(chance), 4: incompressible(chance)})
    await fetch(pool, "v", 1, store=store, volume=VOLUME, checkpoint="v0")
    with snapshots.opened(pool.directory("v"), 1) as fd:
        assert read_image(fd) == disk.checkpoints["v0"]


async def test_one_that_fails_or_is_cancelled_leaves_no_file_and_is_repeated(
    pool: VolumePool, store: WatchedStore, disk: KnownDisk
) -> None:
    pool.create("v", template="base", meta={})
    directory = pool.directory("v")
    await disk.write({block: incompressible(random.Random(block)) for block in range(100)})
    with pytest.raises(NotFoundError):
        await fetch(pool, "v", 1, store=store, volume=UUID(int=9))
    assert not snapshots.path_of(directory, 1).exists()

    started, never = asyncio.Event(), asyncio.Event()

    async def hold(key: str) -> None:
        if len(store.data.get(key, b"")) > 50 * BLOCK_BYTES:
            started.set()
            await never.wait()

    store.before_get = hold
    filling = asyncio.create_task(fetch(pool, "v", 1, store=store, volume=VOLUME))
    await started.wait()
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert not snapshots.path_of(directory, 1).exists()

    store.before_get = None
    # What an earlier process left that was killed is replaced.
    snapshots.path_of(directory, 1).write_bytes(b"half")
    await fetch(pool, "v", 1, store=store, volume=VOLUME)
    with snapshots.opened(directory, 1) as fd:
        assert read_image(fd) == disk.blocks


def stuff(pool: VolumePool, left: int) -> None:
    """Fill the pool, up to so many bytes."""
    with (pool.root / "stuffed").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, pool.usage().free - left)


async def test_a_pool_without_room_is_left_as_it_is(pool: VolumePool, store: WatchedStore, disk: KnownDisk) -> None:
    pool.create("v", template="base", meta={})
    await disk.write({block: incompressible(random.Random(block)) for block in range(100)})
    stuff(pool, pool.usage().hard + 50 * BLOCK_BYTES)
    told: list[Filled] = []
    with pytest.raises(UnavailableError) as caught:
        await fetch(pool, "v", 1, store=store, volume=VOLUME, progress=told.append)
    assert caught.value.code == DISK_FULL
    assert told == []
    assert not snapshots.path_of(pool.directory("v"), 1).exists()


async def test_a_pool_that_fills_up_meanwhile_says_so(pool: VolumePool, store: WatchedStore, disk: KnownDisk) -> None:
    pool.create("v", template="base", meta={})
    await disk.write({block: incompressible(random.Random(block)) for block in range(100)})

    def told(filled: Filled) -> None:
        if not filled.done:
            stuff(pool, 50 * BLOCK_BYTES)

    with pytest.raises(UnavailableError) as caught:
        await fetch(pool, "v", 1, store=store, volume=VOLUME, progress=told)
    assert caught.value.code == DISK_FULL
    assert not snapshots.path_of(pool.directory("v"), 1).exists()


async def test_what_was_filled_is_there_after_the_power_went(
    tmp_path: Path, store: WatchedStore, disk: KnownDisk
) -> None:
    await disk.write({block: incompressible(random.Random(block)) for block in range(50)})
    pool = VolumePool.open(tmp_path, pool_gb=2)
    (pool.volumes_directory / "v").mkdir()
    image = pool.volumes_directory / "v" / "image"
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.sync()
    await hydrate(store, VOLUME, fd)
    os.close(fd)
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(pool.root)], check=True)
    pool.close()
    again = VolumePool.open(tmp_path, pool_gb=2)
    fd = os.open(again.volumes_directory / "v" / "image", os.O_RDONLY | os.O_CLOEXEC)
    assert read_image(fd) == disk.blocks
    os.close(fd)
    again.close()
