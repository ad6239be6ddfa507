"""Extents of files, looked up on the device they are on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.host import fiemap, filesystem, loop, mount, namespaces

pytestmark = pytest.mark.host

BLOCK = 4096


@pytest.fixture(scope="module")
def own_mounts(root: None) -> None:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)


@pytest.fixture
def xfs(own_mounts: None, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system with reflinks, and the file it is in."""
    image, root = tmp_path / "xfs.img", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    root.mkdir()
    device, fd = loop.attach(image)
    mount.mount_at(root, "xfs", {"source": device})
    os.close(fd)
    yield root, image
    mount.umount2(root)
    loop.wait_released(image, 10)


def test_bytes_are_where_the_extents_say_and_nowhere_else(xfs: tuple[Path, Path]) -> None:
    """More extents than one call answers, and a hole behind each."""
    root, image = xfs
    number = 20_000
    with (root / "file").open("w+b") as file, image.open("rb") as device:
        file.truncate(2 * number * BLOCK)
        for block in range(number):
            os.pwrite(file.fileno(), block.to_bytes(8, "big") * (BLOCK // 8), 2 * block * BLOCK)
        extents = list(fiemap.extents(file.fileno()))
        os.fsync(file.fileno())
        covered = {}
        for logical, physical, length, flags in extents:
            assert not flags & (fiemap.DELALLOC | fiemap.UNKNOWN)
            if flags & fiemap.UNWRITTEN:
                continue
            for offset in range(0, length, BLOCK):
                covered[logical + offset] = os.pread(device.fileno(), BLOCK, physical + offset)
        for block in range(number):
            assert covered.pop(2 * block * BLOCK) == block.to_bytes(8, "big") * (BLOCK // 8)
        assert not any(any(content) for content in covered.values())  # written with its neighbours


def test_a_file_without_bytes_has_no_extents(xfs: tuple[Path, Path]) -> None:
    with (xfs[0] / "file").open("w+b") as file:
        file.truncate(1 << 30)
        assert list(fiemap.extents(file.fileno())) == []


def test_what_is_reserved_is_unwritten_and_what_is_cloned_is_in_the_same_place(xfs: tuple[Path, Path]) -> None:
    root, _ = xfs
    with (root / "file").open("w+b") as file, (root / "clone").open("w+b") as clone:
        os.posix_fallocate(file.fileno(), 0, 64 * BLOCK)
        assert {flags & fiemap.UNWRITTEN for *_, flags in fiemap.extents(file.fileno())} == {fiemap.UNWRITTEN}
        os.pwrite(file.fileno(), b"x" * BLOCK, 8 * BLOCK)
        filesystem.ficlone(file.fileno(), clone.fileno())
        written = [
            [extent[:3] for extent in fiemap.extents(each.fileno()) if not extent[3] & fiemap.UNWRITTEN]
            for each in (file, clone)
        ]
        assert written[0] == written[1]
        assert [(logical, length) for logical, _, length in written[0]] == [(8 * BLOCK, BLOCK)]


def test_a_file_system_without_maps() -> None:
    with Path("/proc/self/maps").open("rb") as file, pytest.raises(OSError, match="ioctl|supported"):
        list(fiemap.extents(file.fileno()))
