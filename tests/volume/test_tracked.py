"""A copy that follows a disk in use: after each freeze it is the disk, byte by byte."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, loop, mount, staging
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.volume.changed import BLOCK
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.tracked import Mirror
from tests.volume.world import MIB, blocks_of, content, filled, path, truly_changed

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def trace(own_mounts: None) -> Iterator[BlockTrace]:
    with BlockTrace() as made:
        yield made


class Disk:
    """A mounted disk and the copy that follows it."""

    def __init__(self, pool: VolumePool, trace: BlockTrace, direct_io: bool) -> None:
        pool.create("v", template="base", meta={})
        image = pool.volumes_directory / "v/disk.img"
        self.device, fd = loop.attach(image, direct_io=direct_io)
        self._mount = staging.hold(mount.fsmount("ext4", {"source": self.device}))
        os.close(fd)
        self.files = path(self._mount, "upper")
        self.root = os.open(self.files, os.O_RDONLY)
        self.image = os.open(image, os.O_RDONLY)
        self.copy = os.open(pool.root / "staging/copy.img", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.mirror = Mirror(trace, self.device, self.image, self.copy)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        filesystem.fifreeze(self.root)
        try:
            yield
        finally:
            filesystem.fithaw(self.root)

    def trim(self) -> None:
        filesystem.fitrim(self.root, 0, 1 << 40, 4096)

    def follow(self) -> None:
        """Bring the copy up to the disk, which must be equal then."""
        self.mirror.approach()
        with self.frozen():
            self.mirror.arrive()
            assert not truly_changed(self.image, self.copy)

    def close(self) -> None:
        self.mirror.close()
        for fd in (self.root, self.image, self.copy):
            os.close(fd)
        staging.close(self._mount)


@pytest.fixture(params=[False, True], ids=["buffered", "direct"])
def disk(pool: VolumePool, trace: BlockTrace, request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = Disk(pool, trace, request.param)
    yield made
    made.close()
    loop.wait_released(pool.volumes_directory / "v/disk.img", 10)


def use(disk: Disk, rng: random.Random, steps: int) -> None:
    """Something of everything that a file system does to its device."""
    for _ in range(steps):
        name = disk.files / f"file-{rng.randrange(20)}"
        step = rng.randrange(6)
        if step == 0:
            name.write_bytes(rng.randbytes(rng.randrange(500_000)))
        elif step == 1:
            name.unlink(missing_ok=True)
        elif step == 2:
            disk.trim()
        elif step == 3 and name.exists() and name.stat().st_size:
            with name.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                memory[rng.randrange(len(memory))] = rng.randrange(256)
        elif step == 4:
            direct = os.open(name, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            with mmap.mmap(-1, 16384) as page:
                page[:] = rng.randbytes(len(page))
                os.pwritev(direct, [page], rng.randrange(64) * 4096)
            os.close(direct)
        else:
            with name.open("ab") as log:
                log.write(rng.randbytes(rng.randrange(20_000)))
                os.fsync(log.fileno())


@pytest.mark.parametrize("seed", range(2))
def test_the_copy_is_the_disk_at_the_freeze(disk: Disk, pool: VolumePool, seed: int) -> None:
    rng = random.Random(seed)
    ends, permits = threading.Event(), threading.Semaphore(0)

    def write(number: int) -> None:
        own = random.Random(number)
        with (disk.files / f"writer-{number}").open("w+b") as file:
            while permits.acquire() and not ends.is_set():
                file.seek(own.randrange(4 * MIB))
                file.write(own.randbytes(own.randrange(1, 30_000)))
                if own.random() < 0.1:
                    os.fsync(file.fileno())

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    with (pool.root / "staging/former.img").open("w+b") as file:
        former = file.fileno()
        os.ftruncate(former, os.fstat(disk.image).st_size)
        for writer in writers:
            writer.start()
        try:
            for _ in range(12):
                permits.release(200)  # some for now, some for while it is copied
                use(disk, rng, rng.randrange(30))
                disk.follow()
                found = disk.mirror.changed()
                data, holes = blocks_of(found.data), blocks_of(found.holes)
                missed = truly_changed(former, disk.copy) - data - holes
                assert not missed
                assert not any(content(disk.copy, block) for block in holes.intersection(filled(disk.copy)))
                disk.mirror.settle()
                filesystem.ficlone(disk.copy, former)
        finally:
            ends.set()
            permits.release(len(writers))
            for writer in writers:
                writer.join()


def test_what_was_not_touched_is_neither_copied_nor_reported(disk: Disk) -> None:
    (disk.files / "large").write_bytes(os.urandom(20 * MIB))
    with disk.frozen():
        pass  # all of it is in the image
    disk.follow()
    first = disk.mirror.changed()
    assert blocks_of(first.data) == set(filled(disk.image))
    disk.mirror.settle()
    assert not disk.mirror.changed()
    with (disk.files / "large").open("r+b") as file:
        file.write(b"x")
    with disk.frozen():
        pass
    disk.follow()
    second = disk.mirror.changed()
    # The file's block, its inode's, and those of the journal.
    assert 0 < len(second) < 20 * MIB // BLOCK // 4
    # Not stored yet, so it is said again.
    assert blocks_of(disk.mirror.changed().data) == blocks_of(second.data)


def test_a_first_copy_is_written_out_as_it_is_made(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever syncs a file of the pool meanwhile must not wait for all of it."""
    (disk.files / "large").write_bytes(os.urandom(100 * MIB))
    filesystem.syncfs(disk.root)
    pending: list[int] = []
    written = 0
    write, sync = os.pwrite, os.fdatasync

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        nonlocal written
        done = write(fd, data, at)
        written += done if fd == disk.copy else 0
        return done

    def fdatasync(fd: int) -> None:
        nonlocal written
        sync(fd)
        if fd == disk.copy:
            pending.append(written)
            written = 0

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    disk.mirror.approach()
    assert sum(pending) >= 90 * MIB
    assert max(*pending, written) <= 33 * MIB


def test_holes_are_not_looked_for_again_for_each_piece_that_was_written(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a disk of many extents each such question takes long, and its writers wait."""
    (disk.files / "large").write_bytes(os.urandom(20 * MIB))
    with disk.frozen():
        pass
    disk.follow()
    disk.mirror.settle()
    pieces = range(0, 20 * MIB, 4 * BLOCK)
    with (disk.files / "large").open("r+b") as file:
        for at in pieces:
            file.seek(at)
            file.write(os.urandom(2 * BLOCK))
    filesystem.syncfs(disk.root)
    asked: list[int] = []
    lseek = os.lseek

    def counted(fd: int, at: int, whence: int) -> int:
        asked.append(whence)
        return lseek(fd, at, whence)

    monkeypatch.setattr(os, "lseek", counted)
    disk.mirror.approach()
    with disk.frozen():
        disk.mirror.arrive()
    changed = blocks_of(disk.mirror.changed().data)
    monkeypatch.undo()
    assert len(changed) >= 2 * len(pieces)
    assert 0 < len(asked) < len(pieces) // 2


def test_what_is_trimmed_is_a_hole_in_the_copy(disk: Disk) -> None:
    (disk.files / "large").write_bytes(os.urandom(20 * MIB))
    with disk.frozen():
        pass
    disk.follow()
    disk.mirror.settle()
    before = os.fstat(disk.copy).st_blocks * 512
    (disk.files / "large").unlink()
    with disk.frozen():
        pass
    disk.trim()
    disk.follow()
    assert before - os.fstat(disk.copy).st_blocks * 512 >= 19 * MIB
    assert len(blocks_of(disk.mirror.changed().holes)) >= 19 * MIB // BLOCK


def test_zeros_are_holes_in_the_copy(disk: Disk) -> None:
    for new in (os.urandom(20 * MIB), bytes(20 * MIB)):
        with (disk.files / "large").open("wb") as file:
            file.write(new)
        with disk.frozen():
            pass
        disk.follow()
    assert os.fstat(disk.image).st_blocks * 512 - os.fstat(disk.copy).st_blocks * 512 >= 15 * MIB


def test_notes_that_are_incomplete(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them is believed: the whole disk is copied again, but not while it is frozen."""
    with disk.frozen():
        pytest.raises(UnavailableError, disk.mirror.arrive)
    disk.mirror.approach()
    (disk.files / "file").write_bytes(os.urandom(MIB))
    with disk.frozen(), monkeypatch.context() as patch:
        patch.setattr(disk.mirror._notes, "take", lambda: None)
        pytest.raises(UnavailableError, disk.mirror.arrive)
    with disk.frozen():
        pytest.raises(UnavailableError, disk.mirror.arrive)
    disk.follow()


def test_a_copy_that_fails_half_way(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had taken from the notes is not lost: the whole disk is copied again."""
    disk.follow()
    (disk.files / "file").write_bytes(os.urandom(MIB))
    with disk.frozen():
        pass

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "the pool is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="pool is full"):
            disk.mirror.approach()
    with disk.frozen():
        pytest.raises(UnavailableError, disk.mirror.arrive)
    disk.follow()
