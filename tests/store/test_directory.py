"""What only a directory can get wrong: crashes, leftovers, names."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.host import loop, mount
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import list_all
from tests.support.seeds import fresh_seed

# include/uapi or fs/xfs/libxfs/xfs_fs.h: _IOR('X', 125, u32), without flushing the log.
_XFS_IOC_GOINGDOWN, _NO_LOG_FLUSH = 0x8004587D, 2

WRITER = """
import asyncio, sys
from hashlib import sha256
from pathlib import Path
from ballpoint.store.directory import DirectoryStore

async def main():
    store = DirectoryStore(Path(sys.argv[1]))
    for number in range(10**9):
        data = sha256(str(number).encode()).digest() * 5000
        await store.create(f"log/{number % 7}/{number:09}", data)
        print(number, flush=True)

asyncio.run(main())
"""


def content(number: int) -> bytes:
    return sha256(str(number).encode()).digest() * 5000


async def acknowledged_are_whole(directory: Path, acknowledged: set[int]) -> None:
    store = DirectoryStore(directory)
    found = {int(item.key.rpartition("/")[2]): item.key for item in await list_all(store, "log/")}
    assert acknowledged <= found.keys()
    for number, key in found.items():
        assert await store.get(key) == content(number)
    await store.close()


async def test_a_killed_writer_leaves_whole_objects(directory: Path) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    for _ in range(5):
        acknowledged = set()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randint(1, 60)):
                acknowledged.add(int(writer.stdout.readline()))
            writer.send_signal(signal.SIGKILL)
        await acknowledged_are_whole(directory, acknowledged)


@pytest.fixture
def xfs(tmp_path: Path) -> Path:
    """An image with XFS."""
    image = tmp_path / "xfs.img"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    return image


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Where it is mounted: at no place, for whoever copies a mount namespace would keep it mounted."""
    device, fd = loop.attach(image)
    try:
        root = mount.fsmount("xfs", {"source": device})
    finally:
        os.close(fd)
    try:
        yield Path(f"/proc/self/fd/{root}")
    finally:
        os.close(root)
        loop.wait_released(image, 60)


@pytest.mark.host
@pytest.mark.parametrize("last", ["create", "delete"])
async def test_what_was_answered_survives_the_loss_of_what_the_kernel_had_not_written(xfs: Path, last: str) -> None:
    """A later change would make an earlier one durable, too: each kind must be the last once."""
    kept = set(range(50))
    with mounted(xfs) as place:
        store = DirectoryStore(place / "objects")
        for number in range(50):
            assert await store.create(f"log/{number % 7}/{number:09}", content(number))
        if last == "delete":
            kept -= {0, 7, 8}
            await store.delete([f"log/{number % 7}/{number:09}" for number in (0, 7, 8)])
        await store.close()
        root = os.open(place, os.O_RDONLY)
        fcntl.ioctl(root, _XFS_IOC_GOINGDOWN, struct.pack("I", _NO_LOG_FLUSH))
        os.close(root)
    with mounted(xfs) as place:
        await acknowledged_are_whole(place / "objects", kept)
        again = DirectoryStore(place / "objects")
        assert len(await list_all(again, "log/")) == len(kept)
        await again.close()


async def test_leftovers_of_a_crash_go_when_they_are_old(directory: Path) -> None:
    await DirectoryStore(directory).close()
    old, young = directory / ".new" / "old", directory / ".new" / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store = DirectoryStore(directory)
    assert (old.exists(), young.exists()) == (False, True)
    assert await store.list("") == []
    await store.close()


async def test_no_key_goes_on_below_another(directory: Path) -> None:
    store = DirectoryStore(directory)
    assert await store.create("a/b", b"")
    for key in ("a", "a/b/c"):
        with pytest.raises(InvalidError):
            await store.create(key, b"")
    assert [item.key for item in await store.list("")] == ["a/b"]
    await store.close()


async def test_several_stores_of_one_directory_have_one_winner(directory: Path) -> None:
    """The race is over the file system, not over a lock of this process."""
    stores = [DirectoryStore(directory) for _ in range(4)]
    for number in range(100):
        made = await asyncio.gather(*(store.create(f"k/{number}", b"") for store in stores))
        assert made.count(True) == 1
    for store in stores:
        await store.close()


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError):
        DirectoryStore(tmp_path / "file")
