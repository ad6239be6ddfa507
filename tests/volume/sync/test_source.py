"""What a disk's blocks are read from, when it moves to another file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.sync.source import Source


def opened(path: Path, content: bytes) -> int:
    path.write_bytes(content.ljust(BLOCK_BYTES, b"\0"))
    return os.open(path, os.O_RDONLY)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_what_is_closed_holds_no_file(tmp_path: Path, moves: int) -> None:
    fds = [opened(tmp_path / f"{number}", b"%d" % number) for number in range(moves + 1)]
    source = Source(fds[0])
    for fd in fds[1:]:
        source.move(fd)
    assert source.block(0).startswith(b"%d" % moves)
    source.close()
    assert not any(map(is_open, fds))


def test_what_comes_after_the_end_is_closed_at_once(tmp_path: Path) -> None:
    """The copy of a followed disk was being cloned for a reader that ended meanwhile."""
    source = Source(opened(tmp_path / "first", b"1"))
    source.close()
    second = opened(tmp_path / "second", b"2")
    source.move(second)
    assert not is_open(second)
    assert source.closed
    source.close()
