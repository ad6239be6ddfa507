"""What saving a disk costs: time, bytes and requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from blake3 import blake3
from tests.store.proxy import Proxy

from ballpoint.node.durable.saving import INTERVALS
from ballpoint.volume import snapshots
from ballpoint.volume.record import read_record
from bench.context import Bench, Context
from bench.programs import DATABASE, TRANSACTIONS, TRICKLE, background, python
from bench.report import Result, Series, at_most, number
from bench.stores import counted_s3

_PAGE = 4096
_DATABASE_BYTES = 80_000_000
_TRANSACTIONS = 100
_UPLOADED = 1.5
_CALM_SECONDS = 20.0
_CALM_DEADLINE = 300.0
_HOUR = 3600.0
_REQUESTS = 900.0


async def sqlite(context: Context) -> Result:
    result = Result("sqlite", f"bytes uploaded for {_TRANSACTIONS} single-row SQLite transactions in 80 MB")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.client.run(name, *python(DATABASE, "db", _DATABASE_BYTES))
        for kind in ("insert", "update"):
            await bench.client.sync(name)
            volume = bench.volume(name)
            pages, objects = _pages(_base(volume)), _objects(bench.store())
            await bench.client.run(name, *python(TRANSACTIONS, "db", kind, _TRANSACTIONS))
            await bench.client.sync(name)
            now, stored = _pages(_base(volume)), _objects(bench.store())
            changed = sum(1 for at in now.keys() | pages.keys() if now.get(at) != pages.get(at)) * _PAGE
            uploaded = sum(size for key, size in stored.items() if key not in objects)
            result.series[f"{kind}, uploaded"] = Series.of([uploaded / 1e6], "MB")
            result.series[f"{kind}, changed"] = Series.of([changed / 1e6], "MB")
            where = "appended" if kind == "insert" else "of rows all over the table"
            result.checks.append(
                at_most(
                    f"{where}: {number(uploaded / 1e6)} MB", uploaded / changed, _UPLOADED,
                    yardstick=f"changed blocks of 4 KiB: {number(changed / 1e6)} MB",
                )
            )  # fmt: skip
    result.notes.append(
        "WAL, one connection that is closed at the end, so the database itself is written; rows of 500 random"
        " hexadecimal digits; everything that the store has more after the next save, against what of the disk differs"
    )
    return result


def _base(volume: Path) -> Path:
    """The snapshot that the store has last."""
    base = read_record(volume).base
    if base is None:
        raise RuntimeError(f"{volume} was not saved")
    return snapshots.path_of(volume, base.sequence)


def _pages(image: Path) -> dict[int, bytes]:
    """Hashes of an image's blocks of 4 KiB that are not zeros, by their offset."""
    zeros, found = bytes(_PAGE), dict[int, bytes]()
    with image.open("rb", buffering=0) as file:
        for start, end in _data(file.fileno()):
            for at in range(start, end, _PAGE):
                if (page := os.pread(file.fileno(), _PAGE, at)) != zeros:
                    found[at] = blake3(page).digest()
    return found


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: none is left
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at // _PAGE * _PAGE, end
        at = end


def _objects(store: Path) -> dict[str, int]:
    """Sizes of what a store has of volumes."""
    return {str(path): path.stat().st_size for path in (store / "volumes").rglob("*") if path.is_file()}


async def requests(context: Context) -> Result:
    result = Result("requests", "requests to the store in an hour")
    idle_seconds = context.count(180, 20)
    # Of the first interval all but its beginning, and of the second one what shows that it is another.
    spans = [context.count(580, 20), *([] if context.quick else [180])]
    async with counted_s3(context.work / "requests") as (store, proxy), context.node(pool=1, store=store) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.client.sync(name)
        await _calm(proxy)
        idle = await _requests_in(proxy, idle_seconds)
        await bench.client.run(name, *background(*python(TRICKLE, sum(spans) + 120)))
        measured = []
        for span in spans:
            await asyncio.sleep(_CALM_SECONDS)
            first = _commits(bench, name)
            came = await _requests_in(proxy, span)
            saves = _commits(bench, name) - first
            if not saves:
                raise RuntimeError(f"a disk that is written all the time was not saved in {span} s")
            measured.append(_Saves(span, came, saves))
    result.series = {"idle": Series.of([idle], "requests")}
    for number_, each in enumerate(measured, 1):
        result.series[f"writing, interval {number_}, a save"] = Series.of([each.requests / each.saves], "requests")
        result.series[f"writing, interval {number_}, every"] = Series.of([each.cycle], "s")
    result.checks.append(at_most(f"idle sprite: {idle} in {idle_seconds} s", idle, 0, unit=""))
    total = sum(each.requests for each in measured)
    text = f"{total} requests in {sum(each.seconds for each in measured):g} s, {sum(e.saves for e in measured)} saves"
    result.checks.append(at_most(f"4 KiB every second: {text}", _in_an_hour(measured), _REQUESTS, unit=""))
    seen = "; ".join(
        f"in the {place} {each.seconds:g} s, {each.requests / each.saves:.2f} requests a save, and a save every"
        f" {each.cycle:.1f} s"
        for place, each in zip(("first", "second"), measured, strict=False)
    )
    cycles = ", ".join(f"{cycle:.1f} s" for cycle in _cycles(measured))
    result.notes.append(
        f"counted before an S3 server; of the writer {seen}. Its hour is extrapolated from that: the first 10 minutes,"
        f" the next 10 and the rest have a save every {cycles} (docs/durability.md; the last as the interval before"
        f" and its longer wait). The idle sprite was looked at for {idle_seconds} s, not for an hour. The node itself"
        " looks over its whole store for garbage a quarter of an hour after its start, and then once a day: what falls"
        " into the writer's time is counted as its"
    )
    return result


@dataclass(frozen=True)
class _Saves:
    """What was counted in so many seconds."""

    seconds: float
    requests: int
    saves: int

    @property
    def cycle(self) -> float:
        """Seconds from one save to the next."""
        return self.seconds / self.saves


def _cycles(measured: list[_Saves]) -> list[float]:
    """Seconds from one save to the next, for each of the intervals; of those not measured as of the last that was."""
    more = measured[-1].cycle - INTERVALS[len(measured) - 1][1]
    return [each.cycle for each in measured] + [wait + more for _, wait in INTERVALS[len(measured) :]]


def _in_an_hour(measured: list[_Saves]) -> float:
    """Requests of a disk's first hour of being written."""
    each = [one.requests / one.saves for one in measured]
    each += each[-1:] * (len(INTERVALS) - len(each))
    until = [0.0, *(min(busy, _HOUR) for busy, _ in INTERVALS)]
    return sum(
        (end - start) / cycle * requests
        for (start, end), cycle, requests in zip(pairwise(until), _cycles(measured), each, strict=True)
    )


def _commits(bench: Bench, name: str) -> int:
    base = read_record(bench.volume(name)).base
    return base.number if base is not None else 0


async def _requests_in(proxy: Proxy, seconds: float) -> int:
    """How many come in so many seconds."""
    before = len(proxy.requests)
    await asyncio.sleep(seconds)
    return len(proxy.requests) - before


async def _calm(proxy: Proxy) -> None:
    """Wait until what the node does for itself at the start is over, its image's way into the store for one."""
    async with asyncio.timeout(_CALM_DEADLINE):
        while await _requests_in(proxy, _CALM_SECONDS):
            pass
