"""Disks that are followed by a copy: what is in the store is what they were at the freeze."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, loop
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume import tracked
from ballpoint.volume.changed import Blocks
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync import differences, local
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.support.seeds import fresh_seed
from tests.volume.sync.world import SETTINGS, disk_at, disk_in, snapshot_of
from tests.volume.world import MIB, path

pytestmark = pytest.mark.host

Disk = dict[int, bytes]


@pytest.fixture(scope="module")
def trace(own_mounts: None) -> Iterator[BlockTrace]:
    with BlockTrace() as made:
        yield made


class WatchedStore(DirectoryStore):
    """A directory whose puts can be held up, or refused.

    Attributes:
        before_put: is called before each.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before_put: Callable[[], Awaitable[None]] | None = None

    async def put(self, key: str, data: bytes) -> None:
        if self.before_put is not None:
            await self.before_put()
        await super().put(key, data)


class World:
    """A disk in use, that is followed from its first sync on.

    Attributes:
        frozen: what the disk was at its last freeze.
    """

    def __init__(self, pool: VolumePool, trace: BlockTrace, root: Path) -> None:
        self.id = ids.new_uuid()
        pool.create(self.id, template="base", meta={"image": "digest"})
        self._pool, self._trace = pool, trace
        self.uploads = Uploads()
        self._rng = random.Random(fresh_seed())
        self.store = WatchedStore(root)
        self.disk: AttachedVolume | None = pool.attach(self.id)
        self.frozen: Disk = {}
        self.image = pool.directory(self.id) / "disk.img"
        self.copy = pool.directory(self.id) / "copy.img"
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Keeper:
        self.keeper = Keeper.open(
            self._pool, self.id, store=self.store, uploads=self.uploads, writer="test", trace=self._trace
        )
        return self.keeper

    @property
    def files(self) -> Path:
        assert self.disk is not None
        return path(self.disk.mount, "upper")

    @asynccontextmanager
    async def stopped(self, disk: AttachedVolume) -> AsyncIterator[None]:
        with disk.opened() as root:
            filesystem.fifreeze(root)
            try:
                self.frozen = disk_at(self.image)
                yield
            finally:
                filesystem.fithaw(root)

    async def sync(self) -> None:
        await self.keeper.sync(lambda: self.disk, SETTINGS, self.stopped)

    async def stored(self, checkpoint: str | None = None) -> Disk:
        return await disk_in(self.store, self.keeper.record.volume, checkpoint)

    async def checkpoint(self) -> str:
        disk = self.disk
        assert disk is not None
        kept = await self.keeper.checkpoint(disk, comment="", auto=False, frozen=lambda: self.stopped(disk))
        assert kept.sequence is not None
        assert disk_at(snapshot_of(self._pool, self.id, kept.sequence)) == self.frozen
        return kept.id

    def write(self, times: int = 40) -> None:
        """Something at random, part of which stays in memory."""
        for _ in range(times):
            with (self.files / f"file-{self._rng.randrange(8)}").open("ab") as file:
                file.seek(self._rng.randrange(2 * MIB))
                match self._rng.randrange(3):
                    case 0:
                        file.write(self._rng.randbytes(self._rng.randrange(1, 60_000)))
                    case 1:
                        file.truncate(self._rng.randrange(2 * MIB))
                    case 2:
                        file.write(self._rng.randbytes(5000))
                        file.flush()
                        os.fsync(file.fileno())

    def trim(self) -> None:
        assert self.disk is not None
        with self.disk.opened() as root:
            filesystem.fitrim(root, 0, 1 << 40, 65536)

    def close(self) -> None:
        if self.disk is not None:
            self.disk.detach()
        self.uploads.close()


@pytest.fixture
async def world(
    pool: VolumePool, trace: BlockTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(local, "_PIECES_MANY", 0)
    made = World(pool, trace, tmp_path / "store")
    yield made
    await made.keeper.let_go()
    made.close()
    loop.wait_released(made.image, 10)


@pytest.fixture
def forbid_scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on it is an error to compare a disk with the log's map, or with a snapshot."""

    def forbid() -> None:
        async def scan(*_: Any) -> None:
            raise AssertionError("the whole disk is looked at")

        monkeypatch.setattr(differences, "load_map", scan)
        monkeypatch.setattr(differences, "_compared", scan)

    return forbid


async def test_the_store_has_what_the_disk_was_at_the_freeze(world: World, forbid_scans: Callable[[], None]) -> None:
    ends = threading.Event()

    def use() -> None:
        rng = random.Random(1)
        with (world.files / "in-use").open("w+b") as file:
            while not ends.is_set():
                file.seek(rng.randrange(4 * MIB))
                file.write(rng.randbytes(rng.randrange(1, 30_000)))
                if rng.random() < 0.2:
                    os.fsync(file.fileno())

    writer = threading.Thread(target=use)
    writer.start()
    try:
        for _ in range(6):
            world.write()
            world.trim()
            await world.sync()
            assert world.keeper.followed
            assert await world.stored() == world.frozen
            forbid_scans()
    finally:
        ends.set()
        writer.join()


async def test_a_disk_that_is_not_written_is_clean(world: World) -> None:
    world.write()
    await world.sync()
    assert not world.keeper.dirty(SETTINGS)
    head = world.keeper.record
    await world.sync()
    assert world.keeper.record.base == head.base and not world.keeper.dirty(SETTINGS)
    world.write()
    await world.sync()
    assert await world.stored() == world.frozen


async def test_what_a_freeze_wrote_is_in_the_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a crash of the host: the local disk is never older than the last commit."""
    flushed: list[str] = []
    flush = os.fdatasync

    def note(fd: int) -> None:
        flush(fd)
        flushed.append(os.readlink(f"/proc/self/fd/{fd}"))

    async def stored() -> None:
        assert any(name.endswith("disk.img") for name in flushed)

    def forget(mirror: tracked.Mirror) -> None:
        arrive(mirror)
        flushed.clear()

    arrive = tracked.Mirror.arrive
    monkeypatch.setattr(tracked.Mirror, "arrive", forget)
    monkeypatch.setattr(os, "fdatasync", note)
    await world.sync()
    world.store.before_put = stored
    (world.files / "large").write_bytes(os.urandom(MIB))
    await world.sync()
    assert world.keeper.followed and flushed


async def test_checkpoints_that_come_before_the_ones_before_are_stored(
    world: World, forbid_scans: Callable[[], None]
) -> None:
    world.write()
    await world.sync()
    forbid_scans()
    states: dict[str, Disk] = {}
    for _ in range(3):
        for _ in range(2):
            world.write()
            name = await world.checkpoint()
            states[name] = world.frozen
        world.write()
        await world.sync()
        assert all(each.durable for each in world.keeper.record.checkpoints)
        for name, expected in states.items():
            assert await world.stored(name) == expected
        assert await world.stored() == world.frozen


async def test_a_checkpoint_while_the_disk_is_stored(world: World, forbid_scans: Callable[[], None]) -> None:
    """What is being stored is read from a state that the copy leaves meanwhile."""
    world.write()
    await world.sync()
    forbid_scans()
    world.uploads.packs = asyncio.Semaphore(1)  # the reading waits for the first pack
    for _ in range(3):
        (world.files / "large").write_bytes(os.urandom(40 * MIB))
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def hold(reached: asyncio.Event = reached, go_on: asyncio.Event = go_on) -> None:
            reached.set()
            await go_on.wait()

        world.store.before_put = hold
        storing = asyncio.create_task(world.sync())
        await reached.wait()
        present = world.frozen
        (world.files / "large").write_bytes(os.urandom(40 * MIB))
        world.write()
        name = await world.checkpoint()
        expected = world.frozen
        go_on.set()
        await storing
        world.store.before_put = None
        assert await world.stored() == present
        await world.sync()
        assert await world.stored(name) == expected
        assert await world.stored() == world.frozen


async def test_what_could_not_be_stored_comes_with_the_next(world: World, forbid_scans: Callable[[], None]) -> None:
    async def refuse() -> None:
        raise UnavailableError("the store does not answer")

    world.write()
    await world.sync()
    forbid_scans()
    for _ in range(3):
        world.store.before_put = refuse
        for _ in range(2):
            (world.files / f"large-{ids.new_uuid()}").write_bytes(os.urandom(2 * MIB))
            world.write()
            with pytest.raises(UnavailableError):
                await world.sync()
        kept = await world.checkpoint()
        expected = world.frozen
        with pytest.raises(UnavailableError):
            await world.sync()
        world.store.before_put = None
        world.write()
        await world.sync()
        assert world.keeper.followed
        assert await world.stored(kept) == expected
        assert await world.stored() == world.frozen


async def test_a_later_process_begins_anew(world: World) -> None:
    for _ in range(2):
        world.write()
        name = await world.checkpoint()
        expected = world.frozen
        await world.sync()
        assert world.keeper.followed and world.copy.exists()
        await world.keeper.let_go()  # as the end of a process: what it noted is lost
        world.copy.touch()
        world.write()
        assert not world.new_keeper().followed
        assert not world.copy.exists()
        world.write()
        await world.sync()
        assert await world.stored() == world.frozen
        assert await world.stored(name) == expected


async def test_a_disk_is_followed_and_not_in_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        monkeypatch.setattr(local, "_PIECES_MANY", 0 if number % 2 else 1 << 30)
        world.write()
        await world.sync()
        assert world.keeper.followed == world.copy.exists() == bool(number % 2)
        if world.keeper.followed:
            assert await world.stored() == world.frozen
        name = await world.checkpoint()
        expected = world.frozen
        world.write()
        await world.keeper.let_go()
        await world.sync()
        assert await world.stored(name) == expected
        await world.keeper.let_go()
        assert not world.copy.exists()


async def test_the_end_of_a_sprite_ends_it(world: World, pool: VolumePool, forbid_scans: Callable[[], None]) -> None:
    world.write()
    await world.sync()
    assert world.keeper.followed and world.disk is not None
    forbid_scans()
    world.write()
    world.disk.detach()
    world.disk = None
    await world.sync()
    assert not world.copy.exists()
    assert await world.stored() == disk_at(world.image)
    pool.attach(world.id).detach()  # nobody holds its device
    later = world.new_keeper()
    assert later.record.base is not None


@pytest.mark.parametrize("cancelled", [False, True], ids=["awaited", "cancelled"])
async def test_whoever_ends_it_waits_for_no_copy(
    world: World, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """A first copy takes minutes, and a restart, a destroy or the node's end must not."""
    (world.files / "large").write_bytes(os.urandom(20 * MIB))
    copy, end, pieces = tracked.Mirror._copy_bytes, tracked.Mirror.end, 0
    copying, go, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(mirror: tracked.Mirror, start: int, end: int) -> int:
        nonlocal pieces
        copying.set()
        assert go.wait(30)
        done = copy(mirror, start, end)
        pieces += 1
        return done

    def told(mirror: tracked.Mirror) -> None:
        end(mirror)
        ended.set()

    monkeypatch.setattr(tracked.Mirror, "_copy_bytes", slowly)
    monkeypatch.setattr(tracked.Mirror, "end", told)
    saving = asyncio.ensure_future(world.sync())
    assert await asyncio.to_thread(copying.wait, 30)
    if cancelled:
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
    ending = asyncio.ensure_future(world.keeper.let_go())
    assert await asyncio.to_thread(ended.wait, 30)
    go.set()
    await ending
    assert pieces == 0 and not world.copy.exists()
    if not cancelled:
        await saving
        assert await world.stored() == disk_at(world.image)
    world.write()
    await world.sync()  # nothing keeps it from being followed again
    assert world.keeper.followed and await world.stored() == world.frozen


async def test_a_sprite_that_ends_clean_lets_go_of_its_disk(world: World) -> None:
    world.write()
    await world.sync()
    assert world.disk is not None
    world.disk.detach()
    world.disk = None
    while world.keeper.dirty(SETTINGS):
        await world.sync()
    await world.sync()
    assert not world.keeper.followed
    loop.wait_released(world.image, 10)  # others ask every device whose it is


async def test_a_restore_ends_it(world: World, pool: VolumePool) -> None:
    world.write()
    await world.sync()
    world.write()
    name = await world.checkpoint()
    expected = world.frozen
    world.write()
    async with world.keeper.staged(name) as staged:
        new = pool.attach_staged(world.id, staged)
        await world.keeper.replace_disk(name, staged)
    assert not world.copy.exists()
    former, world.disk = world.disk, new
    assert former is not None
    former.detach()
    world.write()
    await world.sync()
    assert world.keeper.followed
    assert await world.stored() == world.frozen
    assert await world.stored(name) == expected


async def test_a_disk_that_thaws_too_early_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The freezer has a deadline, and may be killed; then the copy is no state that the disk ever had."""
    world.write()
    await world.sync()
    assert world.disk is not None
    disk, arrive, early = world.disk, tracked.Mirror.arrive, [True, True]

    def thaw_meanwhile(mirror: tracked.Mirror) -> None:
        arrive(mirror)
        if early and early.pop():
            with disk.opened() as root:
                filesystem.fithaw(root)
            with (world.files / "file-0").open("r+b") as file:
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())

    monkeypatch.setattr(tracked.Mirror, "arrive", thaw_meanwhile)
    world.write()
    await world.sync()
    assert world.keeper.followed and not early
    assert await world.stored() == world.frozen


async def test_a_write_that_was_not_noted_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write()
    (world.files / "large").write_bytes(os.urandom(30 * MIB))
    await world.sync()
    (world.files / "large").write_bytes(os.urandom(30 * MIB))
    assert world.disk is not None
    with world.disk.opened() as root:
        filesystem.syncfs(root)
    following = world.keeper._local._following
    assert following is not None
    following._mirror._notes.take()  # gone
    before = disk_at(world.copy)
    missed = [block for block, content in disk_at(world.image).items() if before.get(block) != content]
    monkeypatch.setattr(ids, "random_below", lambda count: missed[len(missed) // 2])
    (world.files / "small").write_bytes(b"x")
    await world.sync()
    assert not world.keeper.followed, "it is not believed any more"
    assert len(world.keeper.alarms) == 1
    assert await world.stored() == disk_at(world.image)


async def test_a_change_that_was_forgotten_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_SAMPLE_SECONDS", 0)
    world.write()
    await world.sync()
    world.write()
    with monkeypatch.context() as patched:
        patched.setattr(tracked.Mirror, "changed", lambda mirror: Blocks())
        patched.setattr(differences, "_allocated", lambda new: ())
        await world.sync()
    assert not world.keeper.alarms
    stored, here = await world.stored(), world.frozen
    missed = {block for block in stored.keys() | here.keys() if stored.get(block) != here.get(block)}
    chosen = lambda runs: [block for run in runs for block in run if block in missed]  # noqa: E731
    monkeypatch.setattr(differences, "_some", chosen)
    (world.files / "small").write_bytes(b"x")
    await world.sync()
    assert len(world.keeper.alarms) == 1
    assert await world.stored() == world.frozen


async def test_a_pool_without_room_has_no_copies(
    world: World, pool: VolumePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = pool.usage()
    monkeypatch.setattr(type(pool), "usage", lambda *_: type(usage)(usage.total, usage.soft, usage.soft, usage.hard))
    world.write()
    await world.sync()
    assert not world.keeper.followed
    assert await world.stored() == disk_at(world.image)
