"""A pool of its own for each test, in a mount namespace that nobody else sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.host import loop, mount, namespaces
from ballpoint.volume.pool import VolumePool
from tests.volume.world import path


@pytest.fixture(scope="module", autouse=True)
def own_mounts(root: None) -> None:
    """Mounts of these tests stay in this process's own namespace."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[VolumePool]:
    made = VolumePool.open(tmp_path, pool_gb=2)

    def populate(fd: int) -> None:
        path(fd, "upper/hello").write_text("hello")

    made.ensure_template("base", 4, populate)
    yield made
    made.close()
    loop.wait_released(tmp_path / "pool.img", 10)
    assert loop.find_by_backing(tmp_path / "pool.img") is None
