"""The life of a volume, in a process that a step may kill: `python -m tests.volume.sync.dying DATA STORE FAILURE`.

FAILURE is `process`, or `pool`: then the pool's file system goes with it, and what is only in its memory. With FOLLOWED
as a fourth argument, a copy follows each disk that is in use. What is done
is said as lines of JSON before it is begun and after it is done, so that whoever reads them knows what must be there.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from ballpoint.core import steps
from ballpoint.host import mount, namespaces
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.log.collect import collect
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync import local
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.sync.world import SETTINGS, disk_at, freezer_of, keeper_of, settled, snapshot_of
from tests.volume.world import path

POOL_GB: Final = 2
TEMPLATE: Final = "base"
VOLUME: Final = str(UUID(int=1))
FORK: Final = str(UUID(int=2))
LOG: Final = "upper/log"
# More than goes into a commit itself.
_DATA_BYTES: Final = 300_000

# xfs_fs.h
_XFS_IOC_GOINGDOWN: Final = 0x8004587D
_NOLOGFLUSH: Final = 2


def digest_of(disk: dict[int, bytes]) -> str:
    """By which one disk is told from another, from the blocks that are not zeros."""
    found = hashlib.sha256()
    for block, content in sorted(disk.items()):
        found.update(block.to_bytes(8, "little") + content)
    return found.hexdigest()


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class _Life:
    """One volume, and what its log inside the disk has to say."""

    def __init__(self, pool: VolumePool, volume_id: str, open: Callable[[str], Keeper], seed: int) -> None:
        self.keeper = open(volume_id)
        self._open = open
        self._pool = pool
        self._id = volume_id
        self._random = random.Random(seed)
        self._disk: AttachedVolume | None = pool.attach(volume_id)
        self._text = path(self.disk.mount, LOG).read_text()
        self._kept: dict[str, str] = {}

    @property
    def disk(self) -> AttachedVolume:
        assert self._disk is not None
        return self._disk

    def write(self) -> None:
        """One more line of the log, durable, and data that is not."""
        with path(self.disk.mount, f"upper/data-{self._random.randrange(4)}").open("wb") as file:
            file.write(self._random.randbytes(_DATA_BYTES))
        line = f"{self._random.getrandbits(64):016x}\n"
        self._say(self._text, self._text + line)
        with path(self.disk.mount, LOG).open("a") as log:
            log.write(line)
            log.flush()
            os.fsync(log.fileno())
        self._text += line
        self._say(self._text)

    async def sync(self) -> None:
        await self.keeper.sync(lambda: self._disk, SETTINGS, lambda disk: freezer_of(disk)())
        self._say(self._text, synced=True)

    async def checkpoint(self, *, auto: bool = False) -> str:
        kept = await self.keeper.checkpoint(self.disk, comment="", auto=auto, frozen=freezer_of(self.disk))
        assert kept.sequence is not None
        self._kept[kept.id] = self._text
        say(volume=self._id, checkpoint=kept.id, digest=digest_of(disk_at(self._snapshot(kept.sequence))))
        return kept.id

    def _snapshot(self, sequence: int) -> Path:
        return snapshot_of(self._pool, self._id, sequence)

    async def restore(self, checkpoint_id: str) -> None:
        async with self.keeper.staged(checkpoint_id) as staged:
            self._say(self._text, self._kept[checkpoint_id])
            await self.keeper.replace_disk(checkpoint_id, staged)
        self._text = self._kept[checkpoint_id]
        self._say(self._text)
        self.disk.detach()
        self._disk = self._pool.attach(self._id)

    async def forget(self, checkpoint_id: str) -> None:
        say(volume=self._id, forgotten=checkpoint_id)
        await self.keeper.forget(checkpoint_id)

    async def sleep(self) -> None:
        """Leave the disk to the store."""
        self.disk.detach()
        self._disk = None
        await settled(self.keeper)
        self._say(self._text, synced=True)
        assert await self.keeper.evict(SETTINGS)

    async def wake(self) -> None:
        await self.keeper.fetch()
        self._disk = self._pool.attach(self._id)

    async def go_over(self) -> None:
        """Go on as a later process does, which takes the log over."""
        await self.keeper.let_go()
        self.keeper = self._open(self._id)

    def end(self) -> None:
        self.disk.detach()

    def _say(self, *either: str, synced: bool = False) -> None:
        say(volume=self._id, either=either, synced=synced)


async def live(pool: VolumePool, store: DirectoryStore, uploads: Uploads, trace: BlockTrace | None) -> None:
    def keeper(volume_id: str) -> Keeper:
        return keeper_of(pool, volume_id, store, uploads, trace)

    pool.create(VOLUME, template=TEMPLATE, meta={"image": "digest"})
    life = _Life(pool, VOLUME, keeper, 1)
    life.write()
    await life.sync()
    life.write()
    first = await life.checkpoint()
    life.write()
    second = await life.checkpoint()
    life.write()
    await life.sync()
    life.write()
    await life.checkpoint(auto=True)
    await life.restore(first)
    life.write()
    await life.sync()
    await life.sleep()
    await life.wake()
    await life.restore(second)
    await life.sync()
    await life.go_over()
    life.write()
    await life.sync()

    await life.keeper.fork(first, FORK)
    say(forked=FORK)
    fork = _Life(pool, FORK, keeper, 2)
    fork.write()
    await fork.sync()
    await fork.checkpoint()
    await fork.sync()

    assert await life.keeper.evict_checkpoints()
    await life.forget(first)
    life.write()
    await life.sync()
    assert (await life.keeper.compact(SETTINGS)).moved
    await collect(store, life.keeper.record.lineage, writer="test")
    life.write()
    await life.sync()
    life.end()
    fork.end()
    await fork.keeper.trash()
    say(trashed=FORK)
    pool.destroy(FORK)
    # The first closes the volume for good, the second deletes its packs, the third what was left of it.
    for _ in range(3):
        await collect(store, life.keeper.record.lineage, writer="test", retention=0)


def _shut_down(directory: Path) -> None:
    """End a file system as a loss of power would: what its log has not on the disk has never been."""
    fd = os.open(directory, os.O_RDONLY)
    fcntl.ioctl(fd, _XFS_IOC_GOINGDOWN, _NOLOGFLUSH.to_bytes(4, sys.byteorder))


def main(data: str, store: str, failure: str, followed: str = "") -> None:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    pool = VolumePool.open(Path(data), pool_gb=POOL_GB)
    if failure == "pool":
        steps.before_death(lambda: _shut_down(pool.root))
    uploads = Uploads(2)
    if followed:
        local._PIECES_MANY = 0
    asyncio.run(live(pool, DirectoryStore(Path(store)), uploads, BlockTrace() if followed else None))
    uploads.close()
    pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
