"""A process killed at each step of the life of a volume, alone or with the pool's file system: nothing is lost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from ballpoint.core import steps
from ballpoint.host import filesystem, loop
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.log.check import Damage, check
from ballpoint.volume.log.collect import collect
from ballpoint.volume.log.log import read
from ballpoint.volume.log.stats import stats
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import Record, read_record
from ballpoint.volume.sync.hydrate import hydrate
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.sync.dying import LOG, POOL_GB, TEMPLATE, VOLUME, digest_of
from tests.volume.sync.world import disk_at, disk_in, keeper_of, settled, snapshot_of
from tests.volume.world import path

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(3600)]

# A step that is reached more often is the same as before, as a rule; --soak tries each time.
_TIMES: Final = 2
# Where a disk that is followed goes another way.
_COPIED: Final = "snapshot: the copy is the disk"
_OF_FOLLOWING: Final = ("snapshot: ", "checkpoint: ", "restore: ", "sync: ")


def steps_of_volumes() -> list[str]:
    """All steps that are declared by modules which a keeper or garbage collection needs."""
    modules = [module for name, module in sys.modules.items() if name.startswith("ballpoint.volume.")]
    constants = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    return sorted(constants.intersection(steps.declared()))


@dataclass
class Told:
    """What a process has said of one volume before it died.

    Attributes:
        texts: what the log inside the disk may have been, after each thing that was done; the last one is now.
        saved: index of the first of `texts` that may be in the store.
        checkpoints: what their images are.
        forgotten: checkpoints that may be gone.
    """

    texts: list[list[str]] = field(default_factory=list)
    saved: int | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def take(self, line: dict[str, Any]) -> None:
        if "either" in line:
            if line["synced"]:
                self.saved = len(self.texts)
            self.texts.append(line["either"])
        elif "checkpoint" in line:
            self.checkpoints[line["checkpoint"]] = line["digest"]
        else:
            self.forgotten.add(line["forgotten"])


@dataclass
class Story:
    """What a process has said before it died."""

    volumes: dict[str, Told] = field(default_factory=dict)
    forked: set[str] = field(default_factory=set)
    trashed: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool's file with a template in it."""
    data = tmp_path_factory.mktemp("prepared")
    pool = VolumePool.open(data, pool_gb=POOL_GB)
    pool.ensure_template(TEMPLATE, 1, lambda fd: path(fd, LOG).touch())
    pool.close()
    loop.wait_released(data / "pool.img", 10)
    yield data / "pool.img"
    shutil.rmtree(data)


def run(data: Path, store: Path, failure: str, step: str, count: int, followed: str = "") -> Story | None:
    """Live until `step` is reached for the `count`-th time; None where it is not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.volume.sync.dying", str(data), str(store), failure, followed],
        env={**os.environ, steps.VARIABLE: f"{step}@{count}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    loop.wait_released(data / "pool.img", 30)
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done.stderr
    story = Story()
    for line in map(json.loads, done.stdout.splitlines()):
        if "volume" in line:
            story.volumes.setdefault(line["volume"], Told()).take(line)
        elif "forked" in line:
            story.forked.add(line["forked"])
        else:
            story.trashed.add(line["trashed"])
    return story


@pytest.mark.parametrize("failure", ["process", "pool"])
@pytest.mark.parametrize("step", [step for step in steps_of_volumes() if step != _COPIED])
async def test_nothing_is_lost_at(
    step: str, failure: str, prepared: Path, uploads: Uploads, tmp_path: Path, soak: bool
) -> None:
    await nothing_is_lost_at(step, failure, prepared, uploads, tmp_path, soak)


@pytest.mark.parametrize("failure", ["process", "pool"])
@pytest.mark.parametrize("step", [step for step in steps_of_volumes() if step.startswith(_OF_FOLLOWING)])
async def test_nothing_of_a_followed_disk_is_lost_at(
    step: str, failure: str, prepared: Path, uploads: Uploads, tmp_path: Path, soak: bool
) -> None:
    await nothing_is_lost_at(step, failure, prepared, uploads, tmp_path, soak, "followed")


async def nothing_is_lost_at(
    step: str, failure: str, prepared: Path, uploads: Uploads, tmp_path: Path, soak: bool, followed: str = ""
) -> None:
    for count in itertools.count(1) if soak else range(1, _TIMES + 1):
        data = tmp_path / f"data-{count}"
        data.mkdir()
        subprocess.run(["cp", "--sparse=always", prepared, data / "pool.img"], check=True)
        story = run(data, tmp_path / f"store-{count}", failure, step, count, followed)
        if story is None:
            assert count > 1, "this step is never reached"
            return
        pool = VolumePool.open(data, pool_gb=POOL_GB)
        try:
            await everything_is_there(pool, DirectoryStore(tmp_path / f"store-{count}"), uploads, story)
        finally:
            pool.close()
            loop.wait_released(data / "pool.img", 10)
        shutil.rmtree(data)


async def everything_is_there(pool: VolumePool, store: DirectoryStore, uploads: Uploads, story: Story) -> None:
    assert {VOLUME, *story.forked} - story.trashed <= set(pool.volumes())
    for volume_id in pool.volumes():
        await is_whole(pool, volume_id, store, uploads, story.volumes.get(volume_id, Told()))
    for volume_id in story.trashed:
        view = await read(store, UUID(volume_id))
        assert view is not None and (view.dead or view.trashed is not None)
    await nothing_is_left_over(pool, store)


async def is_whole(pool: VolumePool, volume_id: str, store: DirectoryStore, uploads: Uploads, told: Told) -> None:
    directory = pool.directory(volume_id)
    in_store = await text_in_store(pool, volume_id, store)
    if told.saved is not None:
        assert in_store in {text for texts in told.texts[told.saved :] for text in texts}
    keeper = keeper_of(pool, volume_id, store, uploads)
    if not keeper.local:
        await keeper.fetch()
    for kept in keeper.record.checkpoints:
        if kept.sequence is not None and kept.id in told.checkpoints:
            assert digest_of(disk_at(snapshot_of(pool, volume_id, kept.sequence))) == told.checkpoints[kept.id]
    assert told.checkpoints.keys() - told.forgotten <= {each.id for each in keeper.record.checkpoints}
    assert_kept_files(directory, keeper.record)

    here = text_in_pool(pool, volume_id, directory / "disk.img")
    if told.texts:
        assert here in told.texts[-1]
    await goes_on(pool, volume_id, keeper, store, told)


async def goes_on(pool: VolumePool, volume_id: str, keeper: Keeper, store: DirectoryStore, told: Told) -> None:
    image = pool.directory(volume_id) / "disk.img"
    for more in ("", "more\n"):
        disk = pool.attach(volume_id)
        with path(disk.mount, LOG).open("a") as log:
            log.write(more)
        disk.detach()
        await settled(keeper)
        assert await disk_in(store, keeper.record.volume) == disk_at(image)
    assert not keeper.record.pending and keeper.record.origin is None
    assert_kept_files(image.parent, keeper.record)
    view = await read(store, keeper.record.volume)
    assert view is not None and view.state is not None
    assert {each.id for each in view.state.checkpoints} == {each.id for each in keeper.record.checkpoints}
    for name in told.checkpoints.keys() - told.forgotten:
        assert all(each.durable for each in keeper.record.checkpoints)
        assert digest_of(await disk_in(store, keeper.record.volume, name)) == told.checkpoints[name]


def assert_kept_files(directory: Path, record: Record) -> None:
    """The snapshots that the record names are there, immutable, and no others."""
    found = {int(each.stem): each for each in (directory / "snapshots").glob("*.img")}
    assert found.keys() == record.snapshots
    for each in found.values():
        with each.open("rb") as file:
            assert filesystem.is_immutable(file.fileno())


async def text_in_store(pool: VolumePool, volume_id: str, store: DirectoryStore) -> str | None:
    """What the log inside the disk says that the store has; None where it has none, or all of it is a hole yet."""
    if await read(store, UUID(volume_id)) is None or not await disk_in(store, UUID(volume_id)):
        return None
    image = pool.root / "staging" / "stored.img"
    with image.open("x+b") as file:
        await hydrate(store, UUID(volume_id), file.fileno())
    text = text_in_pool(pool, volume_id, image)
    image.unlink()
    return text


def text_in_pool(pool: VolumePool, volume_id: str, image: Path) -> str:
    disk = pool.attach_staged(volume_id, image)
    text = path(disk.mount, LOG).read_text()
    disk.detach()
    return text


async def nothing_is_left_over(pool: VolumePool, store: DirectoryStore) -> None:
    """What nobody reaches can be collected, and nothing else is."""
    damages: list[Damage] = []
    await collect(store, read_record(pool.directory(VOLUME)).lineage, writer="test")
    assert (await stats(store)).garbage == 0
    await check(store, damages.append, whole=True)
    assert damages == []
