"""What random writes take of the pool."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from itertools import count

from bench.context import Bench, Context
from bench.programs import FILL, WRITE, background, python
from bench.report import Check, Result, Series, at_most, number
from bench.written import Written

_HOME, _FILE = "home/sprite", "random"
_THREADS = 4
_ROOM = 2.0
_LOOK_SECONDS = 0.5
# Settled: so many looks of a second in a row differ by no more. XFS frees in the background.
_STEADY_LOOKS, _STEADY_BYTES = 10, 1_000_000
_SETTLE_SECONDS = 300.0
_FOLLOWED_TRIES = 10
# Of a disk that is followed by a copy; else its snapshots share blocks with it (docs/volume-layout.md).
COPY = "copy.img"

_answers = count()


@dataclass(frozen=True)
class _Taken:
    """Bytes written, and what the pool then had less, settled and at most; whether a copy followed the disk."""

    written: int
    room: int
    most: int
    copied: bool


async def space_per_write(context: Context) -> Result:
    size = context.count(1_000_000_000, 200_000_000)
    few, many = context.count(5_000, 2_000), context.count(50_000, 30_000)
    result = Result("space-per-write", "room in the pool for each byte of random 4 KiB writes after a checkpoint")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.client.run(name, *python(FILL, _FILE, size))
        shared = await _taken(bench, name, few)
        before = await _settled(bench)
        aged = await _written(bench, name, many)
        followed = await _is_followed(bench, name)
        begun = await _settled(bench) - before
        copied = await _taken(bench, name, many)
    for label, taken in (("shared", shared), ("followed", copied)):
        result.series[f"{label}, written"] = Series.of([taken.written / 1e6], "MB")
        result.series[f"{label}, room"] = Series.of([taken.room / 1e6], "MB")
        result.series[f"{label}, room at most"] = Series.of([taken.most / 1e6], "MB")
        result.checks.append(
            at_most(
                f"{_way(taken.copied)}: {number(taken.room / 1e6)} MB", taken.room / taken.written, _ROOM,
                yardstick=f"written: {number(taken.written / 1e6)} MB",
            )
        )  # fmt: skip
    if followed:
        text = f"to begin the copy, and {number(aged.size / 1e6)} MB written before: {number(begun / 1e6)} MB"
        result.checks.append(
            Check(text, f"the file: {number(size / 1e6)} MB", begun / size, "stated, once a disk", None)
        )
    result.notes.append(
        f"one disk with a file of {number(size / 1e9)} GB: a checkpoint, {few:,} writes; {many:,} writes more, after"
        f" which {'a copy followed it' if followed else 'no copy followed it'}; a second checkpoint, {many:,} writes."
        " Which way a disk is saved is the node's choice. By threads inside, O_DIRECT, an fsync a second beside them,"
        " and saves meanwhile. Room is what of the pool is taken more, once all is in the store and it stands still;"
        f" while writing it was at most {number(shared.most / 1e6)} and {number(copied.most / 1e6)} MB. Both"
        " checkpoints are kept, so a block that is written for the first time since can take two new places"
    )
    return result


def _way(copied: bool) -> str:
    return "followed by a copy" if copied else "blocks shared with the checkpoint"


async def _taken(bench: Bench, name: str, writes: int) -> _Taken:
    """Make a checkpoint, and write to a sprite's file."""
    await bench.client.checkpoint(name)
    await bench.client.sync(name)
    before = await _settled(bench)
    most = [before]
    written = await _written(bench, name, writes, most)
    await bench.client.sync(name)
    after = await _settled(bench)
    copied = (bench.volume(name) / COPY).exists()
    return _Taken(written.size, after - before, max(*most, after) - before, copied)


async def _written(bench: Bench, name: str, writes: int, used: list[int] | None = None) -> Written:
    """Write so many blocks at random; what of the pool is used meanwhile is added to `used`."""
    answer = f"answer-{next(_answers)}"
    what = {"path": _FILE, "threads": _THREADS, "count": writes, "answer": answer}
    path = await bench.root(name) / _HOME / answer
    await bench.client.run(name, *background(*python(WRITE, json.dumps(what))))
    while not path.exists():
        await asyncio.sleep(_LOOK_SECONDS)
        if used is not None:
            used.append(bench.pool_used())
    return Written.read(path)


async def _is_followed(bench: Bench, name: str) -> bool:
    """Save a disk that was written at random until a copy follows it; False: none does, however often it is saved."""
    for attempt in range(_FOLLOWED_TRIES):
        await bench.client.run(name, "bash", "-c", f"echo {attempt} > again")
        await bench.client.sync(name)
        if (bench.volume(name) / COPY).exists():
            return True
    return False


async def _settled(bench: Bench) -> int:
    """Bytes used of the pool, once they stand still and everything is written out."""
    looks: list[int] = []
    async with asyncio.timeout(_SETTLE_SECONDS):
        while len(looks) < _STEADY_LOOKS or max(looks) - min(looks) > _STEADY_BYTES:
            await asyncio.to_thread(os.sync)
            looks = [*looks, bench.pool_used()][-_STEADY_LOOKS:]
            await asyncio.sleep(1)
    return looks[-1]
