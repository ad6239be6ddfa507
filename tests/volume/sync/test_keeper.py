"""One volume between its disk and its log: what is in the store is what was on the disk."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from ballpoint.core import ids
from ballpoint.core.errors import UnavailableError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import list_all
from ballpoint.volume.log.collect import collect
from ballpoint.volume.log.fork import join
from ballpoint.volume.log.keys import MemberName, packs_prefix
from ballpoint.volume.log.log import read
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import read_record, write_record
from ballpoint.volume.sync import committer, local
from ballpoint.volume.sync import keeper as keeper_module
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.recover import Found, inventory
from ballpoint.volume.sync.upload import Uploads
from tests.volume.sync.world import (
    SETTINGS,
    Scribbler,
    disk_at,
    disk_in,
    freezer_of,
    keeper_of,
    settled,
    snapshot_of,
    sync,
)
from tests.volume.world import path


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


async def test_the_store_has_what_was_on_the_disk(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    image = pool.directory(volume_id) / "disk.img"
    scribbler = Scribbler(image, 1)
    for _ in range(3):
        scribbler.write()
        assert keeper.dirty(SETTINGS)
        await sync(keeper)
        assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_a_later_process_goes_on(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    image = pool.directory(volume_id) / "disk.img"
    scribbler = Scribbler(image, 2)
    for _ in range(3):
        keeper = keeper_of(pool, volume_id, store, uploads)
        scribbler.write()
        await sync(keeper)
        assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_checkpoints_stay_and_come_back(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    disk = pool.attach(volume_id)
    image = disk.image
    states = {}
    for number in range(3):
        path(disk.mount, "upper/file").write_text(f"state {number}" * 1000)
        kept = await keeper.checkpoint(disk, comment=f"{number}", auto=False, frozen=freezer_of(disk))
        assert kept.id == f"v{number}" and not kept.durable
        assert kept.sequence is not None
        states[kept.id] = disk_at(snapshot_of(pool, volume_id, kept.sequence))
        if number == 1:
            await keeper.sync(lambda: disk, SETTINGS)
            assert all(each.durable for each in keeper.record.checkpoints)
    disk.detach()
    await sync(keeper)
    for name, expected in states.items():
        assert await disk_in(store, UUID(volume_id), name) == expected
    async with keeper.staged("v0") as staged:
        await keeper.replace_disk("v0", staged)
    assert disk_at(image) == states["v0"]
    await sync(keeper)
    assert await disk_in(store, UUID(volume_id)) == states["v0"]
    await keeper.forget("v1")
    await sync(keeper)
    assert [each.id for each in keeper.record.checkpoints] == ["v0", "v2"]
    assert await disk_in(store, UUID(volume_id), "v2") == states["v2"]
    fork_id = ids.new_uuid()
    await keeper.fork("v2", fork_id)
    fork = keeper_of(pool, fork_id, store, uploads)
    Scribbler(pool.directory(fork_id) / "disk.img", 3).write()
    await sync(fork)
    assert await disk_in(store, UUID(fork_id)) == disk_at(pool.directory(fork_id) / "disk.img")


async def test_a_fork_whose_log_began_unnoticed_goes_on(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    await sync(keeper)
    fork_id = ids.new_uuid()
    await keeper.fork(kept.id, fork_id)
    directory = pool.directory(fork_id)
    before = read_record(directory)
    await sync(keeper_of(pool, fork_id, store, uploads))
    # As if its node had died before it was noted.
    write_record(directory, msgspec.structs.replace(before, epoch=1, number=1))
    stored = len(await list_all(store, packs_prefix(UUID(fork_id))))
    fork = keeper_of(pool, fork_id, store, uploads)
    Scribbler(directory / "disk.img", 6).write(1)
    await sync(fork)
    assert fork.record.origin is None
    assert await disk_in(store, UUID(fork_id)) == disk_at(directory / "disk.img")
    assert len(await list_all(store, packs_prefix(UUID(fork_id)))) <= stored + 1


async def test_a_volume_that_was_given_up_before_it_began_gets_another_name(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    await join(store, MemberName(keeper.record.lineage, keeper.record.volume), None)
    await collect(store, keeper.record.lineage, writer="another", abandon=0)
    with pytest.raises(UnavailableError):
        await sync(keeper)
    await sync(keeper)
    assert keeper.record.volume != UUID(volume_id)
    assert await disk_in(store, keeper.record.volume) == disk_at(pool.directory(volume_id) / "disk.img")


async def test_a_volume_is_busy_while_a_checkpoint_is_made(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    disk = pool.attach(volume_id)
    stopping, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def frozen() -> AsyncIterator[None]:
        stopping.set()
        await go_on.wait()
        yield

    busy = [keeper.busy]
    making = asyncio.ensure_future(keeper.checkpoint(disk, comment="", auto=False, frozen=frozen))
    await stopping.wait()
    busy.append(keeper.busy)
    go_on.set()
    await making
    busy.append(keeper.busy)
    assert busy == [False, True, False]
    disk.detach()


def held(keeper: Keeper) -> int:
    """Bytes of blocks that the keeper has in memory."""
    assert keeper._committer is not None
    return sum(len(changes.inline) for changes in keeper._committer.writer.view.changes)


async def test_a_disk_that_is_not_in_use_holds_no_memory(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "_COMPLETE_EVERY", 3)
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    await settled(keeper)
    inline = 0
    for number in range(8):
        with image.open("r+b") as file:
            file.seek(-(number + 1) << 20, os.SEEK_END)
            file.write(ids.new_uuid().encode() * 300)
        await sync(keeper)
        assert held(keeper) == 0
        view = await read(store, UUID(volume_id))
        assert view is not None
        inline += sum(len(changes.inline) for changes in view.changes)
        assert await disk_in(store, UUID(volume_id)) == disk_at(image)
    assert inline

    disk = pool.attach(volume_id)
    path(disk.mount, "upper/file").write_text("in use")
    await keeper.sync(lambda: disk, SETTINGS, None)
    assert held(keeper)
    disk.detach()
    await settled(keeper)
    assert await keeper.evict(SETTINGS)
    assert held(keeper) == 0
    await keeper.fetch()
    await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    await sync(keeper)
    assert await disk_in(store, UUID(volume_id), "v0") == disk_at(image)
    await keeper.compact(SETTINGS)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_a_disk_that_is_in_the_store_only_comes_back_whole(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    image = pool.directory(volume_id) / "disk.img"
    scribbler = Scribbler(image, 4)
    scribbler.write()
    kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    first = disk_at(image)
    assert not await keeper.evict(SETTINGS), "it is not in the store yet"
    scribbler.write()
    await settled(keeper)
    second = disk_at(image)
    async with keeper.staged(kept.id) as staged:
        assert not await keeper.evict(SETTINGS), "somebody is about to use a checkpoint"
        staged.unlink()
    assert await keeper.evict(SETTINGS)
    assert not image.exists() and not keeper.local
    assert list((pool.directory(volume_id) / "snapshots").iterdir()) == []
    await sync(keeper)
    keeper = keeper_of(pool, volume_id, store, uploads)
    stored = keeper.record.bytes_stored
    await keeper.fetch()
    assert disk_at(image) == second
    assert keeper.record.bytes_written and keeper.record.bytes_stored >= stored
    assert await keeper.evict_checkpoints() == 0
    async with keeper.staged(kept.id) as staged:
        await keeper.replace_disk(kept.id, staged)
    assert disk_at(image) == first
    scribbler.write()
    await settled(keeper)
    assert await keeper.evict_checkpoints() == 1
    fork_id = ids.new_uuid()
    await keeper.fork(kept.id, fork_id)
    assert disk_at(pool.directory(fork_id) / "disk.img") == first
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_a_volume_that_only_the_store_knows_comes_back_with_its_checkpoints(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    image = pool.directory(volume_id) / "disk.img"
    scribbler = Scribbler(image, 5)
    for comment in ("first", "second"):
        scribbler.write()
        await keeper.checkpoint(None, comment=comment, auto=False, frozen=None)
    await sync(keeper)
    await keeper.forget("v1")
    await settled(keeper)
    before = keeper.record
    expected = disk_at(image)
    pool.destroy(volume_id)
    (found,) = [each async for each in inventory(store)]
    assert isinstance(found, Found) and found.settings == SETTINGS
    pool.place(volume_id, meta={"image": found.image}, record=found.record())
    keeper = keeper_of(pool, volume_id, store, uploads)
    assert not keeper.dirty(SETTINGS)
    await keeper.fetch()
    assert disk_at(image) == expected
    assert [(each.id, each.comment, each.durable) for each in keeper.record.checkpoints] == [("v0", "first", True)]
    scribbler.write()
    await sync(keeper)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)
    kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    assert kept.id == f"v{before.next}"


async def test_what_is_forgotten_holds_no_room_though_its_caller_went(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    scribbler = Scribbler(pool.directory(volume_id) / "disk.img", 5)
    for _ in range(2):
        scribbler.write()
        await keeper.checkpoint(None, comment="", auto=False, frozen=None)
        await settled(keeper)
    writing, go, write = threading.Event(), threading.Event(), write_record

    def slowly(*arguments: Any) -> None:
        writing.set()
        assert go.wait(30)
        write(*arguments)

    monkeypatch.setattr(local, "write_record", slowly)
    forgetting = asyncio.ensure_future(keeper.forget("v0"))
    assert await asyncio.to_thread(writing.wait, 30)
    forgetting.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await forgetting
    assert [each.id for each in keeper.record.checkpoints] == ["v1"]
    found = {int(each.stem) for each in (pool.directory(volume_id) / "snapshots").glob("*.img")}
    assert found == keeper.record.snapshots


async def test_a_fetch_that_fails_at_its_end_holds_no_room(
    pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    image = pool.directory(volume_id) / "disk.img"
    Scribbler(image, 6).write()
    await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    await settled(keeper)
    expected = disk_at(image)
    assert await keeper.evict(SETTINGS)

    async def silent(*_: Any) -> None:
        raise UnavailableError("the store does not answer")

    monkeypatch.setattr(keeper_module, "list_all", silent)
    with pytest.raises(UnavailableError):
        await keeper.fetch()
    assert list((pool.directory(volume_id) / "snapshots").iterdir()) == []
    monkeypatch.undo()
    await keeper.fetch()
    assert disk_at(image) == expected
