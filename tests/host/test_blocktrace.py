"""What is written to loop devices, as the kernel notes it."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import blocktrace, btf, loop
from ballpoint.host.blocktrace import UNIT, BlockTrace, open_trace

pytestmark = pytest.mark.host

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
MIB = 1 << 20
SIZE = 8 << 30


@pytest.fixture(scope="module")
def trace(root: None) -> Iterator[BlockTrace]:
    with BlockTrace() as made:
        yield made


@contextmanager
def device(path: Path, *, direct_io: bool = False) -> Iterator[tuple[str, int]]:
    with path.open("wb") as file:
        file.truncate(SIZE)
    name, fd = loop.attach(path, direct_io=direct_io)
    try:
        yield name, fd
    finally:
        os.close(fd)
        loop.wait_released(path, 10)
        path.unlink()


def units(start: int, length: int) -> range:
    return range(start // UNIT, (start + length - 1) // UNIT + 1)


def union(runs: list[range] | None) -> set[int]:
    assert runs is not None
    return {unit for run in runs for unit in run}


@pytest.mark.parametrize("direct_io", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_is_noted_and_nothing_else(
    trace: BlockTrace, tmp_path: Path, seed: int, direct_io: bool
) -> None:
    rng = random.Random(seed)
    with device(tmp_path / "disk", direct_io=direct_io) as (name, fd):
        notes = trace.note(name, SIZE)
        try:
            for _ in range(8):
                expected: set[int] = set()
                for _ in range(rng.randrange(40)):
                    length = rng.choice([4096, 4096, 8192, 65536, 300 * 4096, 3 * MIB])
                    start = rng.randrange((SIZE - length) // 4096) * 4096
                    call = rng.choice([None, None, None, BLKDISCARD, BLKZEROOUT])
                    if call is None:
                        os.pwrite(fd, rng.randbytes(length), start)
                    else:
                        fcntl.ioctl(fd, call, struct.pack("=QQ", start, length))
                    expected.update(units(start, length))
                os.fsync(fd)
                os.pread(fd, MIB, rng.randrange(SIZE - MIB))
                assert union(notes.take()) == expected
            assert notes.take() == []
        finally:
            notes.close()


def test_one_request_may_be_most_of_the_disk(trace: BlockTrace, tmp_path: Path) -> None:
    with device(tmp_path / "disk") as (name, fd):
        notes = trace.note(name, SIZE)
        lengths = [n * UNIT for n in (1, 63, 64, 65, 1023, 1024, 1025, 1026)] + [(4 << 30) - MIB, 3 << 30]
        for start in (0, UNIT, 63 * UNIT, 64 * UNIT, 4 << 30):
            for length in lengths:
                fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", start, length))
                found = union(notes.take())
                assert found == set(units(start, length))
        notes.close()


def test_more_long_requests_than_there_is_room_for(trace: BlockTrace, tmp_path: Path) -> None:
    """Then anything may have been written, once."""
    with device(tmp_path / "disk") as (name, fd):
        notes = trace.note(name, SIZE)
        length = 2 * blocktrace._SHORT_UNITS * UNIT
        for number in range(blocktrace._LONG_MAX + 1):
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", number % 1000 * length, length))
        assert notes.take() is None
        assert notes.take() == []
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        assert union(notes.take()) == {0}
        assert notes.take() == []
        notes.close()


def test_what_the_kernel_skipped_may_have_been_anything(
    trace: BlockTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trace.missed() == 0
    with device(tmp_path / "disk") as (name, _):
        notes = trace.note(name, SIZE)
        monkeypatch.setattr(trace, "missed", lambda: 1)
        assert notes.take() is None
        assert notes.take() == []
        notes.close()


def test_devices_are_told_apart(trace: BlockTrace, tmp_path: Path) -> None:
    with device(tmp_path / "one") as (name, fd), device(tmp_path / "other") as (other_name, other_fd):
        notes, other = trace.note(name, SIZE), trace.note(other_name, SIZE)
        for each, place in ((fd, 3), (other_fd, 5)):
            os.pwrite(each, b"x" * UNIT, place * UNIT)
            os.fsync(each)
        assert union(notes.take()) == {3}
        notes.close()
        notes.close()
        os.pwrite(fd, b"x" * UNIT, 7 * UNIT)
        os.fsync(fd)
        again = trace.note(name, SIZE)
        assert again.take() == []
        assert union(other.take()) == {5}
        again.close()
        other.close()


def test_what_is_taken_while_others_write_has_reached_the_image(trace: BlockTrace, tmp_path: Path) -> None:
    """A copy of what each `take` says, made while writers go on, ends as the disk."""
    image, copy = tmp_path / "disk", bytearray(64 * MIB)
    with device(image) as (name, _), image.open("rb") as file:
        notes = trace.note(name, SIZE)
        ends = threading.Event()

        def write(seed: int) -> None:
            rng = random.Random(seed)
            direct = os.open(name, os.O_WRONLY | os.O_DIRECT)
            page = mmap.mmap(-1, UNIT)
            while not ends.is_set():
                page[:] = rng.randbytes(UNIT)
                os.pwritev(direct, [page], rng.randrange(len(copy) // UNIT) * UNIT)
            os.close(direct)

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]

        def carry() -> None:
            for unit in union(notes.take()):
                copy[unit * UNIT : (unit + 1) * UNIT] = os.pread(file.fileno(), UNIT, unit * UNIT)

        for thread in threads:
            thread.start()
        for _ in range(40):
            carry()
        ends.set()
        for thread in threads:
            thread.join()
        carry()
        assert bytes(copy) == os.pread(file.fileno(), len(copy), 0)
        notes.close()


def test_a_kernel_without_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no_such"):
        btf.kernel_types([(btf.STRUCT, "request"), (btf.STRUCT, "no_such_structure")])
    monkeypatch.setattr(btf, "_VMLINUX", tmp_path / "absent")
    with pytest.raises(UnavailableError):
        BlockTrace()


def test_the_program_is_tried_before_it_is_believed(
    root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open_trace(tmp_path) as trace, device(tmp_path / "disk") as (name, fd):
        notes = trace.note(name, SIZE)
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        assert union(notes.take()) == {0}
        notes.close()
    monkeypatch.setattr(blocktrace.Notes, "take", lambda _: [])
    with pytest.raises(UnavailableError):
        open_trace(tmp_path)
    assert not list(tmp_path.iterdir())
