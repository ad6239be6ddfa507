"""A volume of a real pool, its keeper, and a directory as its store; and disks read back from the store alone."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from ballpoint.host import filesystem
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.store.store import Store
from ballpoint.volume import snapshots
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.log import read
from ballpoint.volume.pool import AttachedVolume, VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.log.disks import contents
from tests.volume.world import filled

SETTINGS: dict[str, Any] = {"name": "one"}


def keeper_of(
    pool: VolumePool, volume_id: str, store: Store, uploads: Uploads, trace: BlockTrace | None = None
) -> Keeper:
    return Keeper.open(pool, volume_id, store=store, uploads=uploads, writer="test", trace=trace)


async def sync(keeper: Keeper) -> None:
    """Bring a volume that is not attached into the log."""
    await keeper.sync(lambda: None, SETTINGS)


async def settled(keeper: Keeper) -> None:
    """As `sync`, until that is known: a snapshot right after a write cannot be sure of its time."""
    while keeper.dirty(SETTINGS):
        await sync(keeper)


def freezer_of(disk: AttachedVolume) -> Any:
    """What stops the writers of a disk, here without a process of its own."""

    @asynccontextmanager
    async def frozen() -> AsyncIterator[None]:
        with disk.opened() as root:
            filesystem.fifreeze(root)
            try:
                yield
            finally:
                filesystem.fithaw(root)

    return frozen


class Scribbler:
    """Writes into an image as a disk is written, by a seed: the image stands for a detached disk."""

    def __init__(self, image: Path, seed: int) -> None:
        self._image = image
        self._random = random.Random(seed)

    def write(self, times: int = 5) -> None:
        size = self._image.stat().st_size
        with self._image.open("r+b") as file:
            for _ in range(times):
                at = (
                    self._random.randrange(size // 8192) * 4096
                    if self._random.random() < 0.5
                    else self._random.randrange(1 << 22)
                )
                length = self._random.choice((1, 4096, 70_000, 300_000))
                match self._random.randrange(4):
                    case 0:
                        data = self._random.randbytes(length)
                    case 1:
                        data = bytes(length)
                    case 2:
                        data = b"text " * (length // 5 + 1)
                    case _:
                        os.posix_fallocate(file.fileno(), at, length)
                        continue
                file.seek(at)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())


async def disk_in(store: Store, volume: UUID, checkpoint: str | None = None) -> dict[int, bytes]:
    """The blocks that are no holes of what the store has of a disk."""
    view = await read(store, volume)
    assert view is not None and view.state is not None
    named = {each.id: each.root for each in view.state.checkpoints}
    return await contents(store, view, named[checkpoint] if checkpoint is not None else None)


def disk_at(image: Path) -> dict[int, bytes]:
    """The blocks of an image that are not all zeros."""
    found = {}
    with image.open("rb") as file:
        for block in filled(file.fileno()):
            content = os.pread(file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")
            if any(content):
                found[block] = content
    return found


def snapshot_of(pool: VolumePool, volume_id: str, sequence: int) -> Path:
    return snapshots.path_of(pool.directory(volume_id), sequence)
