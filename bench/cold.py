"""One large disk, many volumes, and what they take; two programs that print JSON.

`python -m bench.cold prepare WORK BYTES VOLUMES DIRTY`, then `measure WORK`: a process of its own, whose memory is that
of a node's saving and nothing else, and in which nothing was freed before.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from uuid import UUID

import msgspec

from ballpoint.core import ids
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import Record, write_record
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from bench.context import private_mb

_SETTINGS: dict[str, Any] = {"name": "bench"}
_IMAGE = "0" * 64
_BLOCK, _PAGE = 1 << 16, 4096
# Blocks from one dirty volume's to the next one's: in pages of the map that lie apart.
_STRIDE = 7919


@dataclass(frozen=True)
class _Host:
    """A pool and a store below a directory."""

    pool: VolumePool
    store: DirectoryStore
    uploads: Uploads

    def keeper(self, volume_id: str) -> Keeper:
        return Keeper.open(self.pool, volume_id, store=self.store, uploads=self.uploads, writer="bench")

    def place(self, volume_id: str, size: int) -> None:
        record = Record(volume=UUID(volume_id), lineage=UUID(ids.new_uuid()), size=size, image=_IMAGE)
        self.pool.place(volume_id, meta={"image": _IMAGE}, record=record)

    def disk(self, volume_id: str) -> Path:
        return self.pool.directory(volume_id) / "disk.img"


@asynccontextmanager
async def _host(work: Path, pool_gb: int) -> AsyncIterator[_Host]:
    store, uploads = DirectoryStore(work / "store"), Uploads()
    pool = VolumePool.open(work / "data", pool_gb=pool_gb)
    try:
        yield _Host(pool, store, uploads)
    finally:
        uploads.close()
        pool.close()
        await store.close()


async def prepare(work: Path, size: int, volumes: int, dirty: int) -> dict[str, float]:
    """Save one disk, and again as after a power loss; make the other volumes: forks of it, and some without a disk.

    Args:
        size: bytes of a disk.
        dirty: how many of the volumes have their disk here.
    """
    said: dict[str, float] = {}
    async with _host(work, 3 * size // 10**9 + 4) as host:
        first = ids.new_uuid()
        host.place(first, size)
        _fill(host.disk(first), size)
        origin = host.keeper(first)
        said["first save"] = await _synced(origin)
        kept = await origin.checkpoint(None, comment="", auto=False, frozen=None)
        await _synced(origin)

        # As after a power loss that took the snapshot, or what says which one the store has.
        write_record(host.pool.directory(first), msgspec.structs.replace(origin.record, base=None, snapshot_mtime_ns=0))
        origin = host.keeper(first)
        began = process_time()
        said["full hash"] = await _synced(origin)
        said["full hash, CPU"] = process_time() - began

        for _ in range(dirty - 1):
            volume_id = ids.new_uuid()
            await origin.fork(kept.id, volume_id)
            await _synced(host.keeper(volume_id))
        for _ in range(volumes - dirty):
            host.place(ids.new_uuid(), size)
    return said


async def measure(work: Path) -> dict[str, float]:
    """What a process takes that knows all volumes, and what more after it has saved those that are dirty."""
    async with _host(work, 0) as host:
        gc.collect()
        before = private_mb(os.getpid())
        keepers = [host.keeper(volume_id) for volume_id in host.pool.volumes()]
        gc.collect()
        known = private_mb(os.getpid())
        dirty = [each for each in keepers if each.local]
        for number, each in enumerate(dirty):
            with host.disk(each.volume_id).open("r+b") as file:
                blocks = each.record.size // _BLOCK
                os.pwrite(file.fileno(), os.urandom(_PAGE), number * _STRIDE % blocks * _BLOCK)
                os.fsync(file.fileno())
        await asyncio.gather(*map(_synced, dirty))
        gc.collect()
        return {"all known": known - before, "dirty ones saved": private_mb(os.getpid()) - before}


async def _synced(keeper: Keeper) -> float:
    """Seconds until the store has everything of a volume that is not attached."""
    started = perf_counter()
    await keeper.sync(lambda: None, _SETTINGS)
    return perf_counter() - started


def _fill(image: Path, size: int) -> None:
    """An image of blocks that differ from each other and compress well; durable."""
    block = bytearray(os.urandom(4096) * 16)
    with image.open("wb", buffering=0) as file:
        for number in range(size // _BLOCK):
            block[:8] = number.to_bytes(8, "little")
            file.write(block)
        os.fsync(file.fileno())


def main() -> None:
    match sys.argv[1:]:
        case ["prepare", work, size, volumes, dirty]:
            said = asyncio.run(prepare(Path(work), int(size), int(volumes), int(dirty)))
        case ["measure", work]:
            said = asyncio.run(measure(Path(work)))
        case _:
            sys.exit(__doc__)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
