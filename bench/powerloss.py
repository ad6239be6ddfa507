"""A power loss that took what says which state of a disk the store has: `python -m bench.powerloss WORK BYTES`.

A process of its own, so that its time of the processors is that of a node's saving and nothing else. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
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

_SETTINGS: dict[str, Any] = {"name": "bench"}
_IMAGE = "0" * 64
_BLOCK = 1 << 16


async def measure(work: Path, size: int) -> dict[str, float]:
    """Seconds to save a disk of `size` bytes, and again as after a power loss: all of it is hashed, and is the same."""
    said: dict[str, float] = {}
    store, uploads = DirectoryStore(work / "store"), Uploads()
    pool = VolumePool.open(work / "data", pool_gb=3 * size // 10**9 + 4)
    volume_id = ids.new_uuid()

    def keeper() -> Keeper:
        return Keeper.open(pool, volume_id, store=store, uploads=uploads, writer="bench")

    try:
        record = Record(volume=UUID(volume_id), lineage=UUID(ids.new_uuid()), size=size, image=_IMAGE)
        pool.place(volume_id, meta={"image": _IMAGE}, record=record)
        _fill(pool.directory(volume_id) / "disk.img", size)
        first = keeper()
        said["first save"] = await _synced(first)
        # As after a power loss that took the snapshot, or what says which one the store has.
        lost = msgspec.structs.replace(first.record, base=None, snapshot_mtime_ns=0)
        write_record(pool.directory(volume_id), lost)
        again = keeper()
        began = process_time()
        said["full hash"] = await _synced(again)
        said["full hash, CPU"] = process_time() - began
    finally:
        uploads.close()
        pool.close()
        await store.close()
    return said


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
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), int(sys.argv[2])))))


if __name__ == "__main__":
    main()
