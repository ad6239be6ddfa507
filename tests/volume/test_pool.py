"""Volumes: made, attached, destroyed; and a pool that runs full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core.errors import ConflictError, CorruptError, InvalidError, NotFoundError, UnavailableError
from ballpoint.host import loop
from ballpoint.volume import pool as pool_module
from ballpoint.volume.guard import PoolGuard
from ballpoint.volume.pool import DIRECTORIES, AttachedVolume, VolumePool
from tests.volume.world import MIB, path

pytestmark = pytest.mark.host


def test_a_volume_starts_as_its_template_and_keeps_what_is_written(pool: VolumePool) -> None:
    pool.create("v1", template="base", meta={"image": "digest"})
    volume = pool.attach("v1")
    assert all(path(volume.mount, name).is_dir() for name in DIRECTORIES)
    assert path(volume.mount, "upper/hello").read_text() == "hello"
    path(volume.mount, "upper/mine").write_text("mine")
    volume.detach()
    again = pool.attach("v1")
    assert path(again.mount, "upper/mine").read_text() == "mine"
    again.detach()
    assert pool.meta("v1")["image"] == "digest"
    assert pool.destroy("v1")
    assert not pool.destroy("v1")
    assert pool.volumes() == []


def test_the_pool_goes_past_the_page_cache_below_it(pool: VolumePool, tmp_path: Path) -> None:
    device = loop.find_by_backing(tmp_path / "pool.img")
    assert device is not None
    assert Path("/sys/block", Path(device).name, "loop/dio").read_text().strip() == "1"


def test_what_a_volume_has_unwritten_is_bounded_and_the_pool_is_not(
    pool: VolumePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the pool gets a device that a volume had before: the kernel keeps the bound."""
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    device = loop.find_by_backing(tmp_path / "pool.img")
    assert device is not None
    assert (is_bounded(volume.device), is_bounded(device)) == (True, False)
    loop.bound_dirty_data(device, MIB)
    pool.close()
    assert is_bounded(device)
    pool = VolumePool.open(tmp_path, pool_gb=2)
    assert loop.find_by_backing(tmp_path / "pool.img") == device
    assert not is_bounded(device)

    volume.detach()
    pool.close()
    loop.wait_released(tmp_path / "pool.img", 10)
    attach, attached = loop.attach, []

    def of_a_volume(*arguments: Any, **options: Any) -> tuple[str, int]:
        device, fd = attach(*arguments, **options)
        loop.bound_dirty_data(device, MIB)
        attached.append(device)
        return device, fd

    monkeypatch.setattr(loop, "attach", of_a_volume)
    pool = VolumePool.open(tmp_path, pool_gb=2)
    assert [is_bounded(each) for each in attached] == [False]
    pool.close()


def is_bounded(device: str) -> bool:
    return Path("/sys/block", Path(device).name, "bdi/strict_limit").read_text().strip() == "1"


def test_volumes_do_not_see_each_other(pool: VolumePool) -> None:
    for name in ("a", "b"):
        pool.create(name, template="base", meta={})
    first, second = pool.attach("a"), pool.attach("b")
    path(first.mount, "upper/only-a").write_text("")
    assert not path(second.mount, "upper/only-a").exists()
    first.detach()
    second.detach()


def test_a_volume_in_use_is_neither_attached_again_nor_destroyed(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    with pytest.raises(ConflictError):
        pool.attach("v")
    other = pool.adopt("v")
    assert other is not None
    assert os.fstatvfs(other.mount).f_fsid == os.fstatvfs(volume.mount).f_fsid
    volume.release()
    with pytest.raises(UnavailableError):
        volume.detach(timeout=0.1)
    other.detach()
    assert pool.adopt("v") is None
    assert pool.destroy("v")


def test_bad_names_and_absent_volumes(pool: VolumePool) -> None:
    for bad in ("..", "a/b", "", "A", "x" * 65):
        with pytest.raises(InvalidError):
            pool.create(bad, template="base", meta={})
    with pytest.raises(NotFoundError):
        pool.attach("absent")
    with pytest.raises(NotFoundError):
        pool.create("v", template="absent", meta={})
    with pytest.raises(InvalidError):
        pool.create("v", template="../templates/base", meta={})
    assert pool.volumes() == []
    assert list((pool.root / "staging").iterdir()) == []
    pool.create("v", template="base", meta={})
    with pytest.raises(ConflictError):
        pool.create("v", template="base", meta={})


def test_a_volume_that_cannot_be_made_holds_no_room(pool: VolumePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool_module, "write_new", full)
    with pytest.raises(UnavailableError):
        pool.create("v", template="base", meta={})
    assert list((pool.root / "staging").iterdir()) == []
    monkeypatch.undo()
    pool.create("v", template="base", meta={})


def test_a_pool_has_one_node(pool: VolumePool, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from ballpoint.volume.pool import VolumePool;"
        f"VolumePool.open(Path({str(tmp_path)!r}), pool_gb=2)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConflictError" in other.stderr


def test_what_was_interrupted_is_swept(pool: VolumePool, tmp_path: Path) -> None:
    pool.create("kept", template="base", meta={})
    (pool.root / "staging/half").mkdir()
    (pool.root / "staging/half/disk.img").write_bytes(b"x")
    (pool.root / "trash/gone").mkdir()
    pool.close()
    again = VolumePool.open(tmp_path, pool_gb=2)
    assert (again.volumes(), list((again.root / "staging").iterdir()), list((again.root / "trash").iterdir())) == (
        ["kept"],
        [],
        [],
    )
    again.close()


def test_the_same_superblock_is_found_again(pool: VolumePool, tmp_path: Path) -> None:
    """A pool that volumes keep alive is mounted through the loop device it has: a second one would destroy it."""
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    device = loop.find_by_backing(tmp_path / "pool.img")
    pool.close()
    again = VolumePool.open(tmp_path, pool_gb=2)
    assert loop.find_by_backing(tmp_path / "pool.img") == device
    path(volume.mount, "upper/f").write_text("through the old mount")
    adopted = again.adopt("v")
    assert adopted is not None
    assert path(adopted.mount, "upper/f").read_text() == "through the old mount"
    volume.release()
    adopted.detach()
    again.close()


def test_a_volume_of_a_later_version_is_refused_and_left_as_it_is(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={"image": "digest"})
    file = pool.volumes_directory / "v/volume.json"
    text = file.read_text().replace('"format": 1', '"format": 2, "more": [1]')
    file.write_text(text)
    for verb in (pool.attach, pool.meta, pool.destroy):
        with pytest.raises(ConflictError) as caught:
            verb("v")
        assert "later version" in str(caught.value.hint)
    assert (pool.volumes(), file.read_text(), loop.find_by_backing(file.with_name("disk.img"))) == (["v"], text, None)
    file.write_text(text.replace('"format": 2', '"format": 1'))
    assert pool.meta("v")["image"] == "digest"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": null}', "\0", None])
def test_a_volume_whose_description_is_damaged(pool: VolumePool, text: str | None) -> None:
    pool.create("v", template="base", meta={})
    file = pool.volumes_directory / "v/volume.json"
    file.unlink() if text is None else file.write_text(text)
    for verb in (pool.attach, pool.meta):
        with pytest.raises(CorruptError) as caught:
            verb("v")
        assert str(file) in str(caught.value)
    assert pool.destroy("v")


def test_what_a_pool_promises_and_has_not(pool: VolumePool, tmp_path: Path) -> None:
    image = tmp_path / "pool.img"
    size = image.stat().st_size
    assert pool.shortfall() == 0
    with image.open("r+b") as file:
        file.truncate(size + (1 << 43))
    assert 0 < pool.shortfall() < 1 << 43
    with image.open("r+b") as file:
        file.truncate(size)


def test_of_many_who_attach_a_volume_one_gets_it(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    together = threading.Barrier(4)

    def attach(_: int) -> AttachedVolume | None:
        together.wait()
        try:
            return pool.attach("v")
        except ConflictError:
            return None

    with ThreadPoolExecutor(4) as executor:
        (volume,) = [each for each in executor.map(attach, range(4)) if each is not None]
    volume.detach()


def test_a_volume_is_whole_after_a_loss_of_power(pool: VolumePool, tmp_path: Path) -> None:
    """The pool's file system stops without writing its log or any data that nobody has synced."""
    pool.create("v", template="base", meta={"image": "digest"})
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(pool.root)], check=True)
    pool.close()
    loop.wait_released(tmp_path / "pool.img", 10)
    again = VolumePool.open(tmp_path, pool_gb=2)
    assert again.meta("v")["image"] == "digest"
    volume = again.attach("v")
    assert path(volume.mount, "upper/hello").read_text() == "hello"
    volume.detach()
    again.close()


def test_a_pool_that_fills_up_loses_no_byte(pool: VolumePool) -> None:
    """Ten writers that never fsync are stopped before the pool is full, and go on when there is room."""
    names = [f"w{number}" for number in range(10)]
    for name in (*names, "ballast"):
        pool.create(name, template="base", meta={})
    ballast = pool.attach("ballast")
    path(ballast.mount, "upper/ballast").write_bytes(os.urandom(MIB) * 1000)
    os.sync()
    ballast.detach()
    volumes = {name: pool.attach(name) for name in names}
    guard = PoolGuard(pool)
    # More than there is room for, so that they cannot end without having been stopped.
    blocks, burst = 120, 8
    assert len(names) * blocks * MIB > pool.usage().free
    permits = {name: threading.Semaphore(0) for name in names}

    def write(name: str) -> None:
        block = name.encode().ljust(16) * (MIB // 16)
        with path(volumes[name].mount, "upper/data").open("wb") as file:
            for _ in range(blocks):
                permits[name].acquire()
                file.write(block)

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    stopped = threading.Event()
    seen: set[str] = set()
    least = pool.usage().free
    deadline = time.monotonic() + 250
    try:
        for thread in threads:
            thread.start()
        while guard.frozen or any(thread.is_alive() for thread in threads):
            assert time.monotonic() < deadline, f"the writers wait for ever: {pool.usage()}, frozen {guard.frozen}"
            for permit in permits.values():
                permit.release(burst)  # a machine that is slow to look is not slow to write
            seen |= {notice.kind for notice in guard.tick(volumes.values())}
            least = min(least, pool.usage().free)
            if guard.frozen and "ballast" in pool.volumes():
                with pytest.raises(UnavailableError):
                    pool.create("late", template="base", meta={})
                pool.destroy("ballast")
            stopped.wait(0.1)
        assert seen == {"frozen", "thawed"}
        assert least > 0
    finally:
        guard.close()
        for permit in permits.values():
            permit.release(blocks)
        for thread in threads:
            thread.join()
        for volume in volumes.values():
            volume.detach()
    for name, volume in volumes.items():
        check = subprocess.run(["e2fsck", "-fn", volume.image], capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stdout
        again = pool.attach(name)
        assert path(again.mount, "upper/data").read_bytes() == name.encode().ljust(16) * (MIB // 16) * blocks
        again.detach()
