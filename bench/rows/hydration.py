"""A disk that comes back from the store."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import process_time
from uuid import UUID

from tests.volume.log.disks import Disk

from ballpoint.host.files import remove_file
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import Store
from ballpoint.volume import snapshots
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.fork import found
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.place import fetch
from bench.context import Context, alternated, timed
from bench.packs import Packs, packs_of, plain, stored
from bench.report import Check, Result, Series, at_least, at_most, number

_VOLUME, _LINEAGE = UUID(int=1), UUID(int=2)
_LATENCY = 0.03
_SMALL, _LARGE = 200_000_000, 8_000_000_000
# Of the host's files, before they repeat with another number in each block.
_VARIETY = 600_000_000
_CHUNK = 2000
_SMALL_SECONDS = 1.5
_RATIO = 0.7


async def hydrate_small(context: Context) -> Result:
    return await _measure(context, "hydrate", _SMALL, context.count(15, 3))


async def hydrate_large(context: Context) -> Result:
    return await _measure(context, "hydrate-8gb", context.count(_LARGE, 4 * _SMALL), context.count(3, 1))


async def _measure(context: Context, row: str, size: int, count: int) -> Result:
    title = f"a disk of {number(size / 1e9)} GB from a store at {_LATENCY * 1000:g} ms"
    result = Result(row, title)
    inner = DirectoryStore(context.work / row / "store")
    packs = await _store_disk(inner, size)
    store = FaultyStore(inner, Faults(latency=(_LATENCY, _LATENCY)), seed=1)
    pool = VolumePool.open(context.work / row / "data", pool_gb=size // 10**9 + 4)
    try:
        directory = pool.volumes_directory / "volume"
        directory.mkdir()

        cpu: dict[str, float] = {"fetch": 0.0, "plain": 0.0}

        async def ours() -> float:
            before = process_time()
            seconds = await timed(fetch(pool, "volume", 1, store=store, volume=_VOLUME))
            cpu["fetch"] += process_time() - before
            return seconds

        async def theirs() -> float:
            before = process_time()
            seconds = await timed(plain(store, packs))
            cpu["plain"] += process_time() - before
            return seconds

        async def clean() -> None:
            remove_file(snapshots.path_of(directory, 1))
            await asyncio.to_thread(os.sync)

        measures: dict[str, Callable[[], Awaitable[float]]] = {"fetch": ours, "plain": theirs}
        samples = await alternated(count, measures, clean, warm=1)
    finally:
        pool.close()
        await inner.close()
    result.series = {key: Series.of(values, "s") for key, values in samples.items()}
    mine, other = result.series["fetch"], result.series["plain"]
    yardstick = f"the same packs read and unpacked: p50 {number(other.p50)} s"
    ratio = other.p50 / mine.p50
    if size == _SMALL:
        result.checks.append(at_most(str(mine), mine.p50, _SMALL_SECONDS, unit=" s"))
        result.checks.append(Check(f"speed: {mine}", yardstick, ratio, "stated", None))
    else:
        result.checks.append(at_least(f"speed: {mine}", ratio, _RATIO, yardstick=yardstick))
    result.notes.append(
        f"files of this host's /usr, {stored(packs) / 1e6:.0f} MB of packs, in a directory with {_LATENCY * 1000:g} ms"
        " before each answer; ours ends with an image in a pool (XFS on a loop device) that is checked, durable and"
        " immutable; the yardstick neither hashes nor writes, and has as many bytes in flight"
    )
    share = cpu["plain"] / cpu["fetch"]
    result.profile = [
        f"CPU of this process, the kernel's writing out not in it: the yardstick takes {share:.2f} of ours"
    ]
    return result


async def _store_disk(store: Store, size: int) -> Packs:
    """A disk of `size` bytes, written in large commits as the first one of a disk is; and where its blocks are."""
    writer = await found(store, _VOLUME, _LINEAGE, image="none", size=1 << 36, settings={}, writer="bench")
    assert writer is not None
    disk, contents = Disk(store, writer), _contents()
    for first in range(0, size // BLOCK_BYTES, _CHUNK):
        numbers = range(first, min(first + _CHUNK, size // BLOCK_BYTES))
        await disk.write({number: next(contents) for number in numbers})
    await disk.complete()
    return await packs_of(store, _VOLUME)


def _contents() -> Iterator[bytes]:
    """Blocks as a root file system has them, no two of them the same."""
    data = bytearray()
    for path in sorted(Path("/usr").rglob("*")):
        if path.is_file() and not path.is_symlink():
            data += path.read_bytes()
        if len(data) > _VARIETY:
            break
    blocks = [bytes(data[start : start + BLOCK_BYTES]) for start in range(0, len(data) - BLOCK_BYTES, BLOCK_BYTES)]
    yield from blocks
    for block in itertools.count():
        yield block.to_bytes(8, "little") + blocks[block % len(blocks)][8:]
