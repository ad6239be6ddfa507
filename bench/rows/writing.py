"""A disk that is written at random, while it is saved and while checkpoints are made of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host.blocktrace import open_trace
from bench.context import Bench, Context, appears, say
from bench.programs import FILL, WRITE, background, python
from bench.report import Check, Result, Series, at_least, at_most, median, number
from bench.rows.rooms import COPY
from bench.written import BLOCK, Written

_HOME = "home/sprite"
_FILE = "random"
_ANSWER, _STOP, _READY = "answer", "stop", "ready"
_THREADS = 16
_PARTS = 10
_SPEED = 0.7
# Two minutes on a host whose cores are shared differ by as much without any cause.
_STEADY = 0.8
_LAG_SECONDS = 120.0
_LOOK_SECONDS = 0.5
_LONG_SECONDS = 0.1
_TRIES = 10

_CHECKPOINTS, _EARLY = 30, 10
# Single waits differ by twice without any cause; medians of ten hardly do.
_WINDOW = 10
_STALL_MS = 400.0
_FLAT = 1.25
_APART_SECONDS = 2.0
_NOTED_MS = 10.0
# The row takes 10 minutes at most, and says where that is not enough.
_STALLS_SECONDS = 360.0
_AGING_SECONDS = 150.0


async def random_writes(context: Context) -> Result:
    size = context.count(2_000_000_000, 200_000_000)
    seconds, plain = context.count(_PARTS * 60, 20), context.count(180, 6)
    result = Result(
        "random-writes", f"random 4 KiB writes for {seconds} s, {_THREADS} at once, in {number(size / 1e9)} GB"
    )
    async with context.node(pool=1) as bench:
        before = await _unsaved(bench, size, plain)
        saved, seen = await _saved(bench, size, seconds)
        after = await _unsaved(bench, size, plain)
    unsaved = Written(before.writes + after.writes, before.fsyncs + after.fsyncs, before.stalls + after.stalls)
    for label, written in (("saved", saved), ("not saved", unsaved)):
        result.series[f"{label}, a second"] = Series.of(written.writes, "writes/s")
        result.series[f"{label}, fsync"] = Series.of([each * 1000 for each in written.fsyncs], "ms")
        result.series[f"{label}, longest write"] = Series.of([written.longest], "ms")
    result.series["lag"] = Series.of(seen.lags, "s")
    result.checks.append(
        at_least(
            f"{number(saved.rate)} a second", saved.rate / unsaved.rate, _SPEED,
            yardstick=f"the same while no node runs: {number(unsaved.rate)} a second",
        )
    )  # fmt: skip
    parts = _parts(saved, seconds)
    middle, last = median(parts[_PARTS // 2 - 1]), median(parts[-1])
    result.checks.append(
        at_least(
            f"minute {_PARTS}: median of its seconds {number(last)}", last / middle if middle else 0.0, _STEADY,
            yardstick=f"minute {_PARTS // 2}: {number(middle)}",
        )
    )  # fmt: skip
    longest = max(seen.lags)
    result.checks.append(at_most(f"lag, the longest: {number(longest)} s", longest, _LAG_SECONDS, unit=" s"))
    for key, ours, theirs in (
        ("fsync p99", result.series["saved, fsync"].p99, result.series["not saved, fsync"].p99),
        ("longest fsync", result.series["saved, fsync"].high, result.series["not saved, fsync"].high),
        ("longest write", saved.longest, unsaved.longest),
    ):
        result.checks.append(
            Check(f"{key}: {number(ours)} ms", f"not saved: {number(theirs)} ms", None, "stated", None)
        )
    shares = [each.waited(_LONG_SECONDS) / len(each.writes) for each in (saved, unsaved)]
    result.checks.append(
        Check(
            f"of the time some write took over {_LONG_SECONDS * 1000:g} ms: {shares[0]:.1%}",
            f"not saved: {shares[1]:.1%}", None, "stated", None,
        )
    )  # fmt: skip
    room = f"room in the pool, at most: {number(max(seen.rooms) / 1e9)} GB"
    result.checks.append(Check(room, f"the file: {number(size / 1e9)} GB", max(seen.rooms) / size, "stated", None))
    way = f"was followed by a copy after {number(seen.copied)} s" if seen.copied else "shared blocks with its snapshots"
    minute = "minute" if seconds == _PARTS * 60 else f"{seconds / _PARTS:g} s"
    result.notes.append(
        "by threads of one Python program inside, O_DIRECT, an fsync a second beside them; half of each block can be"
        f" compressed. Not saved: a new disk of the same kind, {plain} s before and {plain} s after, while its node is"
        f" stopped and the sprite runs on: {number(before.rate)} and {number(after.rate)} a second. Saved, the mean of"
        f" each {minute}: {_list([sum(part) / len(part) for part in parts])}. The medians of two minutes may differ"
        f" down to {_STEADY:g}x: that is for other work on a host whose cores are shared. The disk {way}; the store is"
        " a directory on the same device. Room is of all that is kept for the disk here"
    )
    return result


@dataclass
class _Seen:
    """What a node said of a disk that was written.

    Attributes:
        lags: in seconds. rooms: bytes more used of the pool than before the disk was made.
        copied: after how many seconds a copy followed it; None: none did.
    """

    lags: list[float] = field(default_factory=lambda: [0.0])
    rooms: list[int] = field(default_factory=lambda: [0])
    copied: float | None = None


async def _unsaved(bench: Bench, size: int, seconds: int) -> Written:
    """Write a new file at random while no node runs; the sprite goes after it."""
    name = await _sprite(bench)
    root = await bench.root(name) / _HOME
    both = f'python3 -c "$1" {_FILE} {size} && python3 -c "$2" "$3"'
    await bench.client.run(name, *background("bash", "-c", both, "both", FILL, WRITE, json.dumps(_what(seconds))))
    async with bench.unsaved():
        await appears(root / _ANSWER)
    written = Written.read(root / _ANSWER)
    await _gone(bench, name)
    return written


async def _saved(bench: Bench, size: int, seconds: int) -> tuple[Written, _Seen]:
    """The same while its node saves it; the file is in the store before the first write."""
    name, empty, seen = await _sprite(bench), bench.pool_used(), _Seen()
    root = await bench.root(name) / _HOME
    await bench.client.run(name, *python(FILL, _FILE, size))
    await bench.client.sync(name)
    started = perf_counter()
    await bench.client.run(name, *background(*python(WRITE, json.dumps(_what(seconds)))))
    while not (root / _ANSWER).exists():
        disk = await bench.client.request("GET", f"/v1/sprites/{name}/disk")
        seen.lags.append(disk["lag_seconds"] or 0.0)
        seen.rooms.append(bench.pool_used() - empty)
        if seen.copied is None and (bench.volume(name) / COPY).exists():
            seen.copied = perf_counter() - started
        await asyncio.sleep(_LOOK_SECONDS)
    written = Written.read(root / _ANSWER)
    await _gone(bench, name)
    return written, seen


async def _gone(bench: Bench, name: str) -> None:
    """Destroy a sprite, whose disk may be being saved; what was measured stays measured where that takes too long."""
    for _ in range(_TRIES):
        try:
            return await bench.client.delete(name)
        except RuntimeError as error:
            say(f"{name} is not destroyed: {error}")
            await asyncio.sleep(_APART_SECONDS)


def _what(seconds: int) -> dict[str, object]:
    return {"path": _FILE, "threads": _THREADS, "seconds": seconds, "answer": _ANSWER}


def _parts(written: Written, seconds: int) -> list[list[int]]:
    """Writes of each second, in ten parts: minutes, where it is ten of them."""
    each = seconds // _PARTS
    return [written.writes[start : start + each] or [0] for start in range(0, _PARTS * each, each)]


async def stalls(context: Context) -> Result:
    size = context.count(2_000_000_000, 100_000_000)
    title = f"longest wait of a writer during a checkpoint, {number(size / 1e9)} GB written at random"
    result = Result("stalls", title)
    aging = {
        "path": _FILE, "threads": _THREADS, "count": size // BLOCK, "seconds": _AGING_SECONDS, "answer": _READY
    }  # fmt: skip
    steady = {"path": _FILE, "threads": 4, "pause": 0.008, "answer": _ANSWER}
    count = context.count(_CHECKPOINTS, 12)
    windows: list[tuple[float, float]] = []
    copied: list[bool] = []
    async with context.node(pool=1) as bench:
        why = await asyncio.to_thread(_untracked, bench.pool())
        name = await _sprite(bench)
        root = await bench.root(name) / _HOME
        await bench.client.run(name, *python(FILL, _FILE, size))
        await bench.client.run(name, *python(WRITE, json.dumps(aging)))
        aged = Written.read(root / _READY).size
        copy = bench.volume(name) / COPY
        await bench.client.run(name, *background(*python(WRITE, json.dumps(steady))))
        started = perf_counter()
        while len(windows) < count and perf_counter() - started < _STALLS_SECONDS:
            await asyncio.sleep(_APART_SECONDS)
            was, before = copy.exists(), _wall()
            await bench.client.steps(f"/v1/sprites/{name}/checkpoint")
            windows.append((before, _wall()))
            copied.append(was and copy.exists())
        took = perf_counter() - started
        await bench.client.run(name, "touch", _STOP)
        await appears(root / _ANSWER)
        written = Written.read(root / _ANSWER)
    waits = [written.longest_in(*window) for window in windows]
    result.series = {"longest wait": Series.of(waits, "ms")}
    for label, way in (("by a copy", True), ("by a clone", False)):
        if some := [wait for wait, by_copy in zip(waits, copied, strict=True) if by_copy is way]:
            result.series[f"longest wait, {label}"] = Series.of(some, "ms")
    early, late = median(waits[_EARLY - 1 :][:_WINDOW] or [0.0]), median(waits[-_WINDOW:])
    clones = copied.count(False)
    text = f"longest of {len(waits)}, {clones} of them by a clone: {number(max(waits))} ms"
    flat = f"the last {_WINDOW}, median: {number(late)} ms"
    yardstick = f"the {_EARLY}th to {_EARLY + _WINDOW - 1}th: {number(early)} ms"
    # Waits that are too short to be noted are none.
    ratio = max(late, _NOTED_MS) / max(early, _NOTED_MS)
    without = "without the notes of the kernel"
    if why is None:
        result.checks.append(at_most(text, max(waits), _STALL_MS, unit=" ms"))
        result.checks.append(at_most(flat, ratio, _FLAT, yardstick=yardstick))
        result.checks.append(Check(f"{without}: not measured", "a node has no switch for that", None, "stated", None))
    else:
        result.checks.append(Check(f"{without}, {text}", f"they cannot be had: {why}", None, "stated", None))
        result.checks.append(Check(flat, yardstick, ratio, "stated", None))
    result.checks.append(
        Check(
            f"{len(waits)} checkpoints in {number(took)} s",
            "-",
            None,
            f"{count} in {_STALLS_SECONDS:g} s",
            len(waits) == count,
        )
    )
    # Threads write the same number of blocks each, so that some of the last may be left.
    result.checks.append(
        Check(
            f"written at random before: {number(aged / 1e9)} GB",
            "-",
            None,
            f"{number(size / 1e9)} GB in {_AGING_SECONDS:g} s",
            aged >= size - _THREADS * BLOCK,
        )
    )
    share = written.waited(_LONG_SECONDS) / len(written.writes)
    result.checks.append(
        Check(f"of the time some write took over {_LONG_SECONDS * 1000:g} ms: {share:.1%}", "-", None, "stated", None)
    )
    result.notes.append(
        "the disk is saved all the while, as any is. Of a disk that is cloned writers wait for the clone; where the"
        f" kernel notes writes, a copy follows it, once it is in many pieces: here {len(waits) - clones} of the"
        f" {len(waits)} checkpoints were made of the copy, and all are judged. About 500 writes a second meanwhile; a"
        f" checkpoint {_APART_SECONDS:g} s after the last one. Waits of less than {_NOTED_MS:g} ms count as none. In"
        f" order, in ms, those of a clone in brackets:"
        f" {', '.join(number(w) if c else f'({number(w)})' for w, c in zip(waits, copied, strict=True))}"
    )
    return result


def _untracked(directory: Path) -> str | None:
    """Why this kernel cannot note what is written to a disk in a directory; None: it can."""
    try:
        open_trace(directory).close()
    except (UnavailableError, OSError) as error:
        return str(error)
    return None


async def _sprite(bench: Bench) -> str:
    name = bench.name()
    await bench.client.create(name)
    return name


def _wall() -> float:
    return SYSTEM_CLOCK.now().timestamp()


def _list(values: list[float]) -> str:
    return ", ".join(map(number, values))
