"""New data on its way into a store."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import zstandard
from blake3 import blake3

from ballpoint.volume.log.blob import BLOCK_BYTES
from bench.context import Bench, Context, appears, timed
from bench.places import Chroot
from bench.programs import COMPUTE, ROOTFS_LIKE, background, python
from bench.report import Result, Series, at_least, at_most, number
from bench.stores import local_s3

_SPEED = 0.7
_SLOWED = 1.1
_HOME = "home/sprite"
_FILL = 'python3 -c "$1" data "$2" && touch ready'


async def upload(context: Context) -> Result:
    size = context.count(1_000_000_000, 200_000_000)
    result = Result("upload", f"saving {number(size / 1e9)} GB of new data to a local S3 server")
    samples: dict[str, list[float]] = {"save": [], "plain": [], "alone": [], "beside a save": []}
    data = context.work / "rootfs" / _HOME / "data"
    await Chroot(context.work / "rootfs").run(f"python3 -c '{ROOTFS_LIKE}' data {size}")
    try:
        async with local_s3(context.work / "upload") as store, context.node(pool=1, store=store) as bench:
            for _ in range(context.count(2, 1)):
                name = await _unsaved_data(bench, size)
                samples["plain"].append(size / 1e6 / await asyncio.to_thread(_plain, data))
                seconds = await timed(bench.client.sync(name))
                samples["save"].append(size / 1e6 / seconds)
                span = seconds / 2
                samples["alone"].append(await _computed(bench, name, span))
                await bench.client.delete(name)

                name = await _unsaved_data(bench, size)
                async with asyncio.TaskGroup() as tasks:
                    saving = tasks.create_task(bench.client.sync(name))
                    samples["beside a save"].append(await _computed(bench, name, span))
                    if saving.done():
                        raise RuntimeError("the save was over before the computing was")
                await bench.client.delete(name)
    finally:
        data.unlink()
    units = {"save": "MB/s", "plain": "MB/s"}
    result.series = {key: Series.of(values, units.get(key, "rounds/s")) for key, values in samples.items()}
    ours, plain = result.series["save"].p50, result.series["plain"].p50
    result.checks.append(
        at_least(
            f"{number(ours)} MB/s (n={len(samples['save'])})", ours / plain, _SPEED,
            yardstick=f"blake3 and zstd -1 of the same: {number(plain)} MB/s",
        )
    )  # fmt: skip
    alone, beside = result.series["alone"].p50, result.series["beside a save"].p50
    result.checks.append(
        at_most(
            f"one process that computes in the sprite: {number(beside)} rounds/s", alone / beside, _SLOWED,
            yardstick=f"without a save: {number(alone)} rounds/s",
        )
    )  # fmt: skip
    result.notes.append(
        "data as the image's /usr/lib, written while no node ran, so that none of it was in the store; the yardstick"
        " reads it from the host's file system, not from memory, hashes and compresses blocks of 64 KiB with a thread"
        " for each processor, and keeps nothing; the S3 server (SeaweedFS) takes its share of the same processors"
    )
    return result


async def _unsaved_data(bench: Bench, size: int) -> str:
    """A sprite with so many bytes of which the store has none. Returns its name."""
    name = bench.name()
    await bench.client.create(name)
    await bench.client.sync(name)
    await bench.client.run(name, *background("bash", "-c", _FILL, "fill", ROOTFS_LIKE, str(size)))
    root = await bench.root(name)
    async with bench.unsaved():
        await appears(root / _HOME / "ready")
    return name


async def _computed(bench: Bench, name: str, seconds: float) -> float:
    """How many rounds a second a process in the sprite computes."""
    await bench.client.run(name, *python(COMPUTE, seconds, "rounds"))
    return int((await bench.root(name) / _HOME / "rounds").read_text()) / seconds


def _plain(path: Path) -> float:
    """Seconds it takes to read, hash and compress a file."""

    def work(start: int) -> None:
        compressor = zstandard.ZstdCompressor(level=1)
        for at in range(start, min(start + chunk, size), BLOCK_BYTES):
            block = os.pread(fd, BLOCK_BYTES, at)
            blake3(block).digest()
            compressor.compress(block)

    fd = os.open(path, os.O_RDONLY)
    try:
        size, chunk = os.fstat(fd).st_size, 32 * BLOCK_BYTES
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        started = perf_counter()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for _ in threads.map(work, range(0, size, chunk)):
                pass
        return perf_counter() - started
    finally:
        os.close(fd)
