"""One volume between its disk and its log when something goes wrong: stale copies, outages, cancelled calls."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from ballpoint.core import ids
from ballpoint.core.errors import DISK_FULL, BallpointError, CorruptError, FencedError, UnavailableError
from ballpoint.host import filesystem
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.volume import snapshots
from ballpoint.volume.changed import Blocks, changed
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.changes import INLINE_MAX, PAGE_BLOCKS
from ballpoint.volume.log.collect import collect
from ballpoint.volume.log.fork import join
from ballpoint.volume.log.keys import MemberName
from ballpoint.volume.log.log import Writer, read
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import Record, read_record, write_record
from ballpoint.volume.sync import differences
from ballpoint.volume.sync import keeper as keeper_module
from ballpoint.volume.sync import local as local_module
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.sync.world import SETTINGS, Scribbler, disk_at, disk_in, freezer_of, keeper_of, settled, sync


class HangingStore(DirectoryStore):
    """A store that makes objects and then does not say so, while `hangs` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hangs = False
        self.has_made = asyncio.Event()

    async def create(self, key: str, data: bytes) -> bool:
        made = await super().create(key, data)
        if self.hangs:
            self.has_made.set()
            await asyncio.Event().wait()
        return made


@pytest.fixture
def store(tmp_path: Path) -> HangingStore:
    return HangingStore(tmp_path / "store")


def copied(pool: VolumePool, volume_id: str) -> str:
    """A copy of all that the pool has of a volume, as a node has it whose disk was copied, or put back to an earlier
    state.
    """
    made = ids.new_uuid()
    source, target = pool.directory(volume_id), pool.volumes_directory / made
    subprocess.run(["cp", "--archive", "--reflink=always", source, target], check=True)
    return made


async def test_a_stale_copy_writes_nothing_and_disturbs_nobody(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    scribbler = Scribbler(image, 1)
    scribbler.write()
    await sync(keeper)
    copy_id = copied(pool, volume_id)
    scribbler.write()
    await sync(keeper)
    before = await read(store, UUID(volume_id))

    directory = pool.directory(copy_id)
    Scribbler(directory / "disk.img", 2).write()
    copy = keeper_of(pool, copy_id, store, uploads)
    kept = await copy.checkpoint(None, comment="", auto=False, frozen=None)
    local, files = disk_at(directory / "disk.img"), read_record(directory).snapshots
    for _ in range(2):
        with pytest.raises(FencedError):
            await sync(copy)
    with pytest.raises(FencedError):
        await copy.trash()
    assert await read(store, UUID(volume_id)) == before
    assert disk_at(directory / "disk.img") == local
    assert read_record(directory).checkpoints == (kept,)
    assert {int(each.stem) for each in (directory / "snapshots").iterdir()} == files

    scribbler.write()
    await sync(keeper)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_of_two_equal_copies_the_second_takes_the_volume_and_the_first_is_fenced(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    first = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    Scribbler(first, 1).write()
    await sync(keeper)
    copy_id = copied(pool, volume_id)
    second = pool.directory(copy_id) / "disk.img"
    Scribbler(second, 2).write()
    await sync(keeper_of(pool, copy_id, store, uploads))
    Scribbler(first, 3).write()
    local = disk_at(first)
    for each in (keeper, keeper_of(pool, volume_id, store, uploads)):
        with pytest.raises(FencedError):
            await sync(each)
    assert disk_at(first) == local
    assert await disk_in(store, UUID(volume_id)) == disk_at(second)


async def test_a_commit_whose_answer_was_lost_is_counted_in(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    """A block that it changed, and that is as before by now, differs from the log."""
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    write(image, b"before")
    await settled(keeper)
    write(image, b"between")
    store.hangs = True
    saving = asyncio.ensure_future(sync(keeper))
    await store.has_made.wait()
    saving.cancel()
    await asyncio.wait([saving])
    store.hangs = False
    write(image, b"before")
    await settled(keeper)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)


def write(image: Path, text: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(100 * BLOCK_BYTES)
        file.write(text.ljust(BLOCK_BYTES, b"."))


async def test_an_attempt_in_vain_leaves_no_snapshot(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    refusing = FaultyStore(store, Faults(), 1)
    keeper = keeper_of(pool, volume_id, refusing, uploads)
    await settled(keeper)
    with (pool.directory(volume_id) / "disk.img").open("r+b") as file:
        file.write(os.urandom(2 * INLINE_MAX))
    refusing.out = True
    with pytest.raises(UnavailableError):
        await sync(keeper)
    found = {int(each.stem) for each in (pool.directory(volume_id) / "snapshots").iterdir()}
    assert found == keeper.record.snapshots


async def test_a_disk_that_proves_to_be_in_the_log_is_clean(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    """Its node died when the record did without the disk that was to be evicted."""
    directory = pool.directory(volume_id)
    await settled(keeper_of(pool, volume_id, store, uploads))
    write_record(directory, msgspec.structs.replace(read_record(directory), base=None))
    keeper = keeper_of(pool, volume_id, store, uploads)
    await sync(keeper)
    assert not keeper.dirty(SETTINGS)
    assert await keeper.evict(SETTINGS)


async def test_a_checkpoint_is_deleted_while_its_disk_is_in_the_store_only(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    await settled(keeper)
    assert await keeper.evict(SETTINGS)
    await keeper.forget(kept.id)
    assert keeper.dirty(SETTINGS)
    await sync(keeper)
    view = await read(store, UUID(volume_id))
    assert view is not None
    assert view.state is not None
    assert view.state.checkpoints == ()
    assert not keeper.dirty(SETTINGS)


async def test_a_checkpoint_that_is_about_to_be_restored_is_not_left_to_the_store(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    kept = [await keeper.checkpoint(None, comment="", auto=False, frozen=None) for _ in range(2)]
    before = disk_at(image)
    Scribbler(image, 1).write()
    await settled(keeper)
    async with keeper.staged(kept[0].id) as staged:
        assert await keeper.evict_checkpoints() == 1
        await keeper.replace_disk(kept[0].id, staged)
    assert disk_at(image) == before
    await settled(keeper)
    assert await disk_in(store, UUID(volume_id)) == before


async def test_a_checkpoint_that_was_restored_and_deleted_before_it_was_saved_holds_nothing_up(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    scribbler = Scribbler(image, 1)
    for _ in range(2):
        scribbler.write()
        kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
        async with keeper.staged(kept.id) as staged:
            await keeper.replace_disk(kept.id, staged)
    await keeper.forget("v0")
    await sync(keeper)
    assert [each.id for each in keeper.record.checkpoints] == ["v1"]
    assert await disk_in(store, UUID(volume_id), "v1") == disk_at(image)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)


async def test_a_fork_waits_for_its_source_and_does_without_if_that_is_gone(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    Scribbler(pool.directory(volume_id) / "disk.img", 1).write()
    source = keeper_of(pool, volume_id, store, uploads)
    kept = await source.checkpoint(None, comment="", auto=False, frozen=None)
    forks = [ids.new_uuid(), ids.new_uuid()]
    for each in forks:
        await source.fork(kept.id, each)
    keepers = [keeper_of(pool, each, store, uploads) for each in forks]
    for keeper in keepers:
        with pytest.raises(UnavailableError):
            await sync(keeper)
    await keepers[1].trash()
    pool.destroy(volume_id)
    await sync(keepers[0])
    assert await disk_in(store, keepers[0].record.volume) == disk_at(pool.directory(forks[0]) / "disk.img")


async def test_a_volume_that_was_given_up_before_its_log_began_begins_as_another(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    Scribbler(pool.directory(volume_id) / "disk.img", 1).write()
    kept = await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    lineage = keeper.record.lineage
    await join(store, MemberName(lineage, UUID(volume_id)), None)
    assert (await collect(store, lineage, writer="test", abandon=0)).abandoned
    with pytest.raises(UnavailableError):
        await sync(keeper)
    await sync(keeper)
    assert keeper.record.volume != UUID(volume_id)
    assert await disk_in(store, keeper.record.volume) == disk_at(pool.directory(volume_id) / "disk.img")
    assert await disk_in(store, keeper.record.volume, kept.id) == disk_at(pool.directory(volume_id) / "disk.img")


async def test_a_call_that_is_cancelled_while_the_record_is_written_has_written_it(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    writing, cancelled = threading.Event(), threading.Event()

    def write_slowly(directory: Path, record: Record) -> None:
        writing.set()
        assert cancelled.wait(30)
        write_record(directory, record)

    monkeypatch.setattr(local_module, "write_record", write_slowly)
    making = asyncio.ensure_future(keeper.checkpoint(None, comment="", auto=False, frozen=None))
    assert await asyncio.to_thread(writing.wait, 30)
    for _ in range(2):
        making.cancel()
        for _ in range(5):  # what a cancellation sets going comes to its end
            await asyncio.sleep(0)
        assert not making.done()
    cancelled.set()
    await asyncio.wait([making])
    assert making.cancelled()
    assert keeper.record == read_record(pool.directory(volume_id))
    assert [each.id for each in keeper.record.checkpoints] == ["v0"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, UnavailableError, DISK_FULL),
        (errno.EIO, CorruptError, "corrupt"),
        (errno.EROFS, CorruptError, "corrupt"),
        (errno.EMFILE, UnavailableError, "unavailable"),
    ],
)
@pytest.mark.parametrize("what", ["flush", "clone", "keep", "write_record"])
async def test_what_the_pool_refuses_is_an_error_that_says_what_to_do(
    what: str,
    number: int,
    kind: type[BallpointError],
    code: str,
    pool: VolumePool,
    volume_id: str,
    store: HangingStore,
    uploads: Uploads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    Scribbler(pool.directory(volume_id) / "disk.img", 1).write()

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(local_module if what == "write_record" else snapshots, what, refuse)
        for call in (keeper.checkpoint(None, comment="", auto=False, frozen=None), sync(keeper)):
            with pytest.raises(BallpointError) as caught:
                await call
            assert isinstance(caught.value, kind)
            assert caught.value.code == code
            assert caught.value.hint is not None
    assert keeper.record.checkpoints == ()
    await settled(keeper)
    assert {int(each.stem) for each in (pool.directory(volume_id) / "snapshots").iterdir()} == keeper.record.snapshots
    assert await disk_in(store, UUID(volume_id)) == disk_at(pool.directory(volume_id) / "disk.img")


async def test_a_disk_that_cannot_be_written_out_is_said_to_be_damaged(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(pool, volume_id, store, uploads)
    disk = pool.attach(volume_id)

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filesystem, "syncfs", refuse)
    with pytest.raises(CorruptError, match=volume_id):
        await keeper.checkpoint(disk, comment="", auto=False, frozen=freezer_of(disk))
    with pytest.raises(CorruptError, match=volume_id):
        await keeper.sync(lambda: disk, SETTINGS)
    disk.detach()


async def test_a_disk_that_was_fetched_into_a_full_pool_is_not_fetched_again(
    pool: VolumePool, volume_id: str, store: HangingStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = pool.directory(volume_id)
    keeper = keeper_of(pool, volume_id, store, uploads)
    Scribbler(directory / "disk.img", 1).write()
    await settled(keeper)
    expected = disk_at(directory / "disk.img")

    def refuse(*arguments: object) -> None:
        raise UnavailableError("the pool is full")

    async def fail_to_fetch(keeper: Keeper) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(VolumePool, "stage", refuse)
            with pytest.raises(UnavailableError):
                await keeper.fetch()
        assert not keeper.local

    assert await keeper.evict(SETTINGS)
    await fail_to_fetch(keeper)
    assert await keeper.evict_checkpoints() == 1, "there is no room for it"
    assert list((directory / "snapshots").iterdir()) == []
    assert await keeper.evict_checkpoints() == 0

    await fail_to_fetch(keeper)
    for again in (keeper, keeper_of(pool, volume_id, store, uploads)):
        with monkeypatch.context() as patched:
            patched.setattr(keeper_module, "fetch", refuse)
            await again.fetch()
        assert disk_at(directory / "disk.img") == expected
        (directory / "disk.img").unlink()

    await fail_to_fetch(keeper)
    elsewhere = await Writer.take_over(store, UUID(volume_id), writer="elsewhere")
    assert elsewhere is not None
    await elsewhere.commit("settings", settings=SETTINGS)
    await keeper.fetch()
    await sync(keeper_of(pool, volume_id, store, uploads))
    (directory / "disk.img").unlink()

    keeper = keeper_of(pool, volume_id, store, uploads)
    await fail_to_fetch(keeper)
    elsewhere = await Writer.take_over(store, UUID(volume_id), writer="elsewhere")
    assert elsewhere is not None
    await elsewhere.commit("data", blocks=[(100, None)])
    await keeper.fetch()
    expected.pop(100, None)
    assert disk_at(directory / "disk.img") == expected
    assert {int(each.stem) for each in (directory / "snapshots").iterdir()} == keeper.record.snapshots


def touch(image: Path, text: bytes) -> None:
    with image.open("r+b") as file:
        file.write(text)


def always_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each save compares with the log, of the blocks that are called unchanged, those of the first page."""
    monkeypatch.setattr(local_module, "_SAMPLE_SECONDS", 0)
    monkeypatch.setattr(differences, "_SAMPLES", PAGE_BLOCKS)
    monkeypatch.setattr(ids, "random_below", lambda bound: 0)


async def test_a_change_that_was_missed_is_noticed_and_comes_into_the_log(
    pool: VolumePool,
    volume_id: str,
    store: HangingStore,
    uploads: Uploads,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    always_sampled(monkeypatch)
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    write(image, b"before")
    await settled(keeper)

    def misses(old: int | None, new: int) -> Blocks:
        found = changed(old, new)
        assert found.data == (range(1), range(100, 101))
        return Blocks(data=(range(1),), same=found.same)

    write(image, b"missed")
    touch(image, b"w")
    with monkeypatch.context() as patched:
        patched.setattr(differences, "changed", misses)
        await sync(keeper)
    assert keeper.alarms == []
    assert await disk_in(store, UUID(volume_id)) != disk_at(image)

    touch(image, b"x")
    await sync(keeper)
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)
    (alarm,) = keeper.alarms
    assert "block 100 " in alarm
    assert alarm in caplog.text
    keeper.alarms.clear()
    touch(image, b"y")
    await sync(keeper)
    assert keeper.alarms == []


async def test_a_map_that_is_damaged_is_told_of_and_keeps_nothing_from_being_saved(
    pool: VolumePool,
    volume_id: str,
    store: HangingStore,
    uploads: Uploads,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always_sampled(monkeypatch)
    image = pool.directory(volume_id) / "disk.img"
    keeper = keeper_of(pool, volume_id, store, uploads)
    write(image, b"before")
    await keeper.checkpoint(None, comment="", auto=False, frozen=None)  # all of it is in packs
    await settled(keeper)
    view = await read(store, UUID(volume_id))
    assert view is not None and view.state is not None
    pack = tmp_path / "store" / view.state.root.holder.key
    pack.write_bytes(bytes(pack.stat().st_size))
    write(image, b"after")
    await sync(keeper)
    (alarm,) = keeper.alarms
    assert view.state.root.holder.key in alarm
    after = await read(store, UUID(volume_id))
    assert after is not None
    assert after.disk > view.disk
