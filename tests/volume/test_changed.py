"""Which blocks of a disk changed: nothing that differs may be missing, whatever was done to the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ballpoint.core.errors import InvalidError
from ballpoint.host import fiemap, filesystem
from ballpoint.host.libc import libc
from ballpoint.volume.changed import BLOCK, Blocks, changed
from ballpoint.volume.pool import VolumePool
from tests.volume.world import MIB, blocks_of, content, filled, path, truly_changed

PUNCH_HOLE, ZERO_RANGE, KEEP_SIZE = 0x2, 0x10, 0x1


def check(old: int | None, new: int) -> Blocks:
    """What `changed` says, having compared it with every byte of both."""
    found = changed(old, new)
    data, holes = blocks_of(found.data), blocks_of(found.holes)
    assert not data & holes
    assert len(found) == len(data) + len(holes)
    if old is None:
        assert not holes
        assert {block for block in filled(new) if content(new, block)} <= data
    else:
        missed = truly_changed(old, new) - data - holes
        assert not missed
    assert not any(content(new, block) for block in holes)
    return found


class Snapshots:
    """A file, and the two youngest snapshots of it."""

    def __init__(self, live: int, directory: Path) -> None:
        self._live, self._directory = live, directory
        self._number = 0
        self._files: list[tuple[int, Path]] = []

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        for fd, _path in self._files:
            os.close(fd)

    def take(self) -> int:
        """A new one; what the oldest held is free from here on, and is given to what is written next."""
        self._number += 1
        name = self._directory / f"{self._number}.img"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        self._files.append((fd, name))
        filesystem.ficlone(self._live, fd)
        os.fsync(fd)
        if len(self._files) > 2:
            oldest, old_name = self._files.pop(0)
            os.close(oldest)
            old_name.unlink()
        return fd

    def both(self) -> tuple[int, int]:
        (old, _), (new, _) = self._files
        return old, new


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    result = libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    assert result == 0, os.strerror(ctypes.get_errno())


SIZE = 8 * MIB + 5000  # the last block is not whole


class Writes:
    """What can be done to a file without changing its size, at random."""

    def __init__(self, fd: int, rng: random.Random) -> None:
        self.fd, self.rng = fd, rng
        os.truncate(fd, SIZE)

    def piece(self) -> tuple[int, int]:
        length = self.rng.choice([1, 513, 4096, 4096, 20_000, 65536, 300_000])
        offset = self.rng.randrange(SIZE - length)
        if self.rng.random() < 0.6:
            offset -= offset % 4096
        return offset, length

    def random_bytes(self) -> None:
        offset, length = self.piece()
        os.pwrite(self.fd, self.rng.randbytes(length), offset)

    def zeros(self) -> None:
        offset, length = self.piece()
        os.pwrite(self.fd, bytes(length), offset)

    def the_same(self) -> None:
        offset, length = self.piece()
        os.pwrite(self.fd, os.pread(self.fd, length, offset), offset)

    def through_memory(self) -> None:
        offset, length = self.piece()
        with mmap.mmap(self.fd, SIZE) as memory:
            memory[offset : offset + length] = self.rng.randbytes(length)

    def punch(self) -> None:
        fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, *self.piece())

    def zero_range(self) -> None:
        fallocate(self.fd, ZERO_RANGE | KEEP_SIZE, *self.piece())

    def reserve(self) -> None:
        fallocate(self.fd, KEEP_SIZE, *self.piece())

    def cut_and_grow(self) -> None:
        os.truncate(self.fd, SIZE - self.rng.randrange(300_000))
        os.truncate(self.fd, SIZE)

    def flush(self) -> None:
        os.fsync(self.fd)

    def any(self) -> None:
        steps = {
            self.random_bytes: 8, self.zeros: 1, self.the_same: 1, self.through_memory: 3, self.punch: 2,
            self.zero_range: 1, self.reserve: 1, self.cut_and_grow: 1, self.flush: 2,
        }  # fmt: skip
        self.rng.choices(list(steps), list(steps.values()))[0]()


@pytest.fixture
def live(pool: VolumePool) -> Iterator[int]:
    fd = os.open(pool.root / "staging/live.img", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fd
    os.close(fd)


@pytest.mark.host
@pytest.mark.parametrize("seed", range(3))
def test_no_change_is_missed_when_a_file_is_written(pool: VolumePool, live: int, seed: int) -> None:
    rng = random.Random(seed)
    writes = Writes(live, rng)
    seen = 0
    with Snapshots(live, pool.root / "staging") as snapshots:
        for _ in range(60):
            for _ in range(rng.randrange(25)):
                writes.any()
            check(None, snapshots.take())
            seen += len(check(*snapshots.both()))
    assert seen


@pytest.mark.host
@pytest.mark.parametrize("seed", range(2))
def test_no_change_is_missed_when_a_disk_is_used(pool: VolumePool, seed: int) -> None:
    rng = random.Random(seed)
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    files = path(volume.mount, "upper")

    def put(name: str) -> None:
        (files / name).write_bytes(rng.randbytes(rng.randrange(500_000)))

    def append(name: str) -> None:
        with (files / name).open("ab") as file:
            file.write(rng.randbytes(rng.randrange(1, 9000)))
            if rng.random() < 0.5:
                os.fsync(file.fileno())

    def overwrite(name: str) -> None:
        with (files / name).open("r+b" if (files / name).exists() else "w+b") as file:
            file.seek(rng.randrange(400_000))
            file.write(rng.randbytes(rng.randrange(1, 60_000)))

    def remove(name: str) -> None:
        (files / name).unlink(missing_ok=True)

    def trim(_: str) -> None:
        with volume.opened() as root:
            filesystem.fitrim(root, 0, 1 << 40, BLOCK)

    verbs: tuple[Callable[[str], None], ...] = (put, append, overwrite, remove, trim)
    seen = 0
    with volume.image.open("rb") as disk, Snapshots(disk.fileno(), pool.root / "staging") as snapshots:
        for _ in range(40):
            for _ in range(rng.randrange(30)):
                rng.choices(verbs, (4, 6, 6, 4, 1))[0](f"file-{rng.randrange(40)}")
            with volume.opened() as root:
                assert libc.syncfs(root) == 0
            check(None, snapshots.take())
            seen += len(check(*snapshots.both()))
    assert seen
    volume.detach()


@pytest.mark.host
def test_what_was_not_touched_is_not_reported(pool: VolumePool, live: int) -> None:
    os.truncate(live, 1024 * BLOCK)
    os.pwrite(live, os.urandom(512 * BLOCK), 0)
    filesystem.set_cowextsize(live, 4096)
    with Snapshots(live, pool.root / "staging") as snapshots:
        snapshots.take()
        assert changed(*snapshots.both()) == Blocks(same=(range(512),))
        os.pwrite(live, b"x", 7 * BLOCK + 100)
        os.pwrite(live, b"x" * BLOCK, 600 * BLOCK - 1)
        fallocate(live, PUNCH_HOLE | KEEP_SIZE, 20 * BLOCK, 3 * BLOCK)
        fallocate(live, KEEP_SIZE, 700 * BLOCK, BLOCK)
        new = snapshots.take()
        touched = changed(*snapshots.both())
        assert blocks_of(touched.holes) == {20, 21, 22}
        assert blocks_of(touched.data) == {7, 599, 600}
        assert blocks_of(changed(None, new).data) == {*range(512), 599, 600} - {20, 21, 22}


@pytest.mark.host
def test_what_cannot_be_compared(pool: VolumePool, live: int, tmp_path: Path) -> None:
    os.truncate(live, BLOCK)
    with (tmp_path / "elsewhere").open("wb") as elsewhere, Snapshots(live, pool.root / "staging") as snapshots:
        elsewhere.truncate(BLOCK)
        os.truncate(live, 2 * BLOCK)
        snapshots.take()
        old, new = snapshots.both()
        for other in (elsewhere.fileno(), new):
            with pytest.raises(InvalidError):
                changed(old, other)


UNIT = 4096
UNITS = 6 * BLOCK // UNIT
SURE = (0, 0x2000, 0x1, fiemap.UNWRITTEN, fiemap.UNWRITTEN | 0x2000)
UNSURE = (
    fiemap.UNKNOWN,
    fiemap.DELALLOC | fiemap.UNKNOWN,
    fiemap.DELALLOC | fiemap.UNWRITTEN,
    fiemap.ENCODED,
    fiemap.NOT_ALIGNED,
)


@st.composite
def maps(draw: st.DrawFn) -> list[fiemap.Extent]:
    """A map of a file of UNITS; places are few, so that two maps often agree."""
    extents, at = [], 0
    while (at := at + draw(st.sampled_from([0, 0, 1, 16, 20]))) < UNITS:
        length = min(draw(st.sampled_from([1, 2, 15, 16, 17, 40])), UNITS - at)
        place = at + draw(st.sampled_from([0, 0, 0, 100, 200]))
        flags = draw(st.sampled_from(SURE + SURE + UNSURE))
        extents.append((at * UNIT, place * UNIT, length * UNIT, flags))
        at += length
    return extents


def units(extents: list[fiemap.Extent]) -> dict[int, object]:
    """What is known of each unit that is no hole: its place, or nothing that equals anything."""
    known: dict[int, object] = {}
    for at, physical, length, flags in extents:
        for offset in range(0, length, UNIT):
            if flags in UNSURE:
                known[(at + offset) // UNIT] = object()
            elif not flags & fiemap.UNWRITTEN:
                known[(at + offset) // UNIT] = physical + offset
    return known


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=maps(), new=maps())
def test_what_maps_prove(
    old: list[fiemap.Extent], new: list[fiemap.Extent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any two maps, however cut: exactly what they do not prove to be the same."""
    with (tmp_path / "old").open("wb") as first, (tmp_path / "new").open("wb") as second:
        for file in (first, second):
            file.truncate(UNITS * UNIT)
        given_maps = {first.fileno(): old, second.fileno(): new}
        monkeypatch.setattr(fiemap, "extents", lambda fd: iter(given_maps[fd]))
        found, everything = changed(first.fileno(), second.fileno()), changed(None, second.fileno())
    before, after = units(old), units(new)
    differing = {unit * UNIT // BLOCK for unit in range(UNITS) if before.get(unit) != after.get(unit)}
    present = {unit * UNIT // BLOCK for unit in after}
    assert blocks_of(found.data) == differing & present
    assert blocks_of(found.holes) == differing - present
    assert blocks_of(everything.data) == present
    assert not everything.holes
