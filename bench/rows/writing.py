"""A disk that is written at random, while it is saved and while checkpoints are made of it."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

from ballpoint.core.clock import SYSTEM_CLOCK
from bench.context import Bench, Context, appears
from bench.programs import FILL, WRITE, background, python
from bench.report import Check, Result, Series, at_least, at_most, median, number
from bench.rows.rooms import COPY
from bench.written import BLOCK, Written

_HOME = "home/sprite"
_FILE = "random"
_ANSWER, _STOP, _READY = "answer", "stop", "ready"
_THREADS = 16
_MINUTE = 60
_SPEED = 0.7
# Two minutes on a host whose cores are shared differ by as much without any cause.
_STEADY = 0.8
_LAG_SECONDS = 120.0
_LOOK_SECONDS = 0.5

_CHECKPOINTS, _EARLY = 30, 10
_STALL_MS = 400.0
_FLAT = 1.25
_APART_SECONDS = 2.0
_STALLS_SECONDS = 180.0
_AGING_SECONDS = 120.0


async def random_writes(context: Context) -> Result:
    size = context.count(2_000_000_000, 200_000_000)
    seconds = 600 if context.long else context.count(180, 12)
    result = Result(
        "random-writes", f"random 4 KiB writes for {seconds} s, {_THREADS} at once, in {number(size / 1e9)} GB"
    )
    what = {"path": _FILE, "threads": _THREADS, "seconds": seconds, "answer": _ANSWER}
    async with context.node(pool=1) as bench:
        name = await _sprite(bench)
        root = await bench.root(name) / _HOME
        both = f'python3 -c "$1" {_FILE} {size} && python3 -c "$2" "$3"'
        await bench.client.run(name, *background("bash", "-c", both, "both", FILL, WRITE, json.dumps(what)))
        async with bench.unsaved():
            await appears(root / _ANSWER)
        unsaved = Written.read(root / _ANSWER)
        await bench.client.delete(name)

        name, empty = await _sprite(bench), bench.pool_used()
        root = await bench.root(name) / _HOME
        await bench.client.run(name, *python(FILL, _FILE, size))
        await bench.client.sync(name)
        await bench.client.run(name, *background(*python(WRITE, json.dumps(what))))
        lags, rooms, copied = [0.0], [0], False
        while not (root / _ANSWER).exists():
            disk = await bench.client.request("GET", f"/v1/sprites/{name}/disk")
            lags.append(disk["lag_seconds"] or 0.0)
            rooms.append(bench.pool_used() - empty)
            copied = copied or (bench.volume(name) / COPY).exists()
            await asyncio.sleep(_LOOK_SECONDS)
        saved = Written.read(root / _ANSWER)
    for label, written in (("saved", saved), ("not saved", unsaved)):
        result.series[f"{label}, a second"] = Series.of(written.writes, "writes/s")
        result.series[f"{label}, fsync"] = Series.of([each * 1000 for each in written.fsyncs], "ms")
        result.series[f"{label}, longest write"] = Series.of([written.longest], "ms")
    result.series["lag"] = Series.of(lags, "s")
    result.checks.append(
        at_least(
            f"{number(saved.rate)} a second", saved.rate / unsaved.rate, _SPEED,
            yardstick=f"the same disk while no node runs: {number(unsaved.rate)} a second",
        )
    )  # fmt: skip
    minutes = _minutes(saved)
    middle = minutes[(len(minutes) - 1) // 2]
    result.checks.append(
        at_least(
            f"minute {len(minutes)}: {number(minutes[-1])} a second", minutes[-1] / middle, _STEADY,
            yardstick=f"minute {(len(minutes) + 1) // 2}: {number(middle)} a second",
        )
    )  # fmt: skip
    result.checks.append(at_most(f"lag, the longest: {number(max(lags))} s", max(lags), _LAG_SECONDS, unit=" s"))
    room = f"room in the pool, at most: {number(max(rooms) / 1e9)} GB"
    result.checks.append(Check(room, f"the file: {number(size / 1e9)} GB", max(rooms) / size, "stated", None))
    for key, unit, ours, theirs in (
        ("fsync p99", "ms", result.series["saved, fsync"].p99, result.series["not saved, fsync"].p99),
        ("longest write", "ms", saved.longest, unsaved.longest),
    ):
        result.checks.append(
            Check(f"{key}: {number(ours)} {unit}", f"not saved: {number(theirs)} {unit}", None, "stated", None)
        )
    way = "was followed by a copy" if copied else "shared blocks with its snapshots"
    result.notes.append(
        "by threads of one Python program inside, O_DIRECT, an fsync a second beside them; half of each block can be"
        f" compressed. Writes a second, each minute: saved {_list(minutes)}; not saved {_list(_minutes(unsaved))}. The"
        f" disk {way}; room is of all that is kept for it here, by the size of the file, all of which is written. Not"
        " saved: its node is stopped, and the sprite runs on"
    )
    return result


async def stalls(context: Context) -> Result:
    size = context.count(2_000_000_000, 100_000_000)
    title = f"longest wait of a writer during a checkpoint, {number(size / 1e9)} GB written at random"
    result = Result("stalls", title)
    aging = {
        "path": _FILE, "threads": _THREADS, "count": size // BLOCK, "seconds": _AGING_SECONDS, "answer": _READY
    }  # fmt: skip
    steady = {"path": _FILE, "threads": 4, "pause": 0.008, "answer": _ANSWER}
    count = context.count(_CHECKPOINTS, 12)
    async with context.node(pool=1) as bench:
        name = await _sprite(bench)
        root = await bench.root(name) / _HOME
        await bench.client.run(name, *python(FILL, _FILE, size))
        await bench.client.run(name, *python(WRITE, json.dumps(aging)))
        aged = Written.read(root / _READY).size
        await bench.client.run(name, *background(*python(WRITE, json.dumps(steady))))
        windows: list[tuple[float, float]] = []
        copied: list[bool] = []
        started = perf_counter()
        while len(windows) < count and perf_counter() - started < _STALLS_SECONDS:
            await asyncio.sleep(_APART_SECONDS)
            before = _wall()
            await bench.client.steps(f"/v1/sprites/{name}/checkpoint")
            windows.append((before, _wall()))
            copied.append((bench.volume(name) / COPY).exists())
        await bench.client.run(name, "touch", _STOP)
        await appears(root / _ANSWER)
        written = Written.read(root / _ANSWER)
    waits = [written.longest_in(*window) for window in windows]
    early = waits[max(0, _EARLY - 3) : _EARLY]
    late = waits[-3:]
    result.series = {"longest wait": Series.of(waits, "ms")}
    text = f"longest of {len(waits)}: {number(max(waits))} ms"
    if all(copied):
        result.checks.append(at_most(text, max(waits), _STALL_MS, unit=" ms"))
        result.checks.append(
            at_most(
                f"the last 3, median: {number(median(late))} ms", median(late) / max(median(early), 1.0), _FLAT,
                yardstick=f"the 8th to 10th: {number(median(early))} ms",
            )
        )  # fmt: skip
    else:
        result.checks.append(Check(text, "-", None, "stated", None))
        result.checks.append(
            Check(
                f"the last 3, median: {number(median(late))} ms", f"the 8th to 10th: {number(median(early))} ms",
                median(late) / max(median(early), 1.0), "stated", None,
            )
        )  # fmt: skip
    result.notes.append(
        f"the file was written at random, {number(aged / 1e9)} GB of it (in {_AGING_SECONDS:g} s at most), and"
        f" saved meanwhile. {sum(copied)} of the {len(windows)} checkpoints were made of a copy that follows the disk,"
        " the others of the disk itself: the node chooses. About 500 writes a second meanwhile; a checkpoint"
        f" {_APART_SECONDS:g} s after the last one, for up to {_STALLS_SECONDS:g} s. Waits of less than 10 ms count as"
        f" none. In order, in ms: {_list(waits)}"
    )
    return result


async def _sprite(bench: Bench) -> str:
    name = bench.name()
    await bench.client.create(name)
    return name


def _minutes(written: Written) -> list[float]:
    """Writes a second in each minute; what is left over at the end is in none, unless there is nothing else."""
    starts = range(0, max(1, len(written.writes) - _MINUTE + 1), _MINUTE)
    parts = [written.writes[start : start + _MINUTE] for start in starts]
    return [sum(part) / len(part) for part in parts]


def _wall() -> float:
    return SYSTEM_CLOCK.now().timestamp()


def _list(values: list[float]) -> str:
    return ", ".join(map(number, values))
