"""A host that is lost, a power cut, and what many disks take that nobody uses."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from uuid import UUID

from tests.volume.log.disks import Disk, block

from ballpoint.core import ids
from ballpoint.core.tasks import for_each
from ballpoint.host import process
from ballpoint.host.files import remove_tree
from ballpoint.store.deployment import claim, new_deployment
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import Store
from ballpoint.volume.log.fork import found
from ballpoint.volume.record import read_record
from bench.context import Context, timed
from bench.packs import reading
from bench.programs import FILL, ROOTFS_LIKE, python
from bench.report import Check, Result, Series, at_least, at_most, number
from bench.stores import slow_s3

_LATENCY = 0.03
_ATTACH_BYTES = 200_000_000
_ATTACH_SECONDS = 1.5
_LARGE_BYTES = 8_000_000_000
_SPEED = 0.7
_AT_ONCE = 16
_SECONDS = 1200.0
_LOOK_SECONDS = 0.02
# Journals and directories of the pool stay.
_LEFT_BYTES = 20_000_000
# Of a destroyed disk the store keeps that it is so. One collection closes its log, later ones remove what it had.
_LEFT_STORED, _COLLECTIONS = 10_000, 4


async def attach(context: Context) -> Result:
    result = Result("attach", f"an empty host: from recover to the first command, store at {_LATENCY * 1000:g} ms")
    count = context.count(5, 2)
    firsts: list[float] = []
    async with slow_s3(context.work / "attach", _LATENCY) as store:
        async with context.node(pool=1, store=store) as lost:
            names = [lost.name() for _ in range(count)]
            for name in names:
                await lost.client.create(name)
                await lost.client.run(name, *python(ROOTFS_LIKE, "data", _ATTACH_BYTES))
                await lost.client.sync(name)
        started = perf_counter()
        async with context.node(pool=1, store=store, recovers=lost) as bench:
            took = perf_counter() - started
            for name in names:
                firsts.append(await timed(bench.client.run(name, "/bin/true")))
                await bench.client.sync(name)
                await bench.ready(len(firsts))
    result.series = {"first command": Series.of(firsts, "s"), "recover and start": Series.of([took], "s")}
    first = result.series["first command"]
    result.checks = [
        at_most(f"first command, disk of 0.2 GB: {first}", first.p50, _ATTACH_SECONDS, unit=" s"),
        Check(
            f"takeover: recover, start of the node, first command: {number(took + firsts[0])} s",
            "-",
            None,
            "stated",
            None,
        ),
    ]
    result.notes.append(
        "through the API, of sprites whose disks are in the store only; their data is as the image's /usr/lib. The"
        f" store is an S3 server (SeaweedFS) on the same processors, {_LATENCY * 1000:g} ms away. The node that was"
        " lost had been stopped; nothing of its directory is used"
    )
    return result


async def attach_large(context: Context) -> Result:
    size = context.count(_LARGE_BYTES, 2 * _ATTACH_BYTES)
    title = f"an empty host: a sprite with {number(size / 1e9)} GB to its first command, store at"
    result = Result("attach-8gb", f"{title} {_LATENCY * 1000:g} ms")
    async with slow_s3(context.work / "attach-8gb", _LATENCY) as store:
        async with context.node(pool=1, store=store) as lost:
            name = lost.name()
            await lost.client.create(name)
            filled = await timed(lost.client.run(name, *python(ROOTFS_LIKE, "data", size)))
            saved = await timed(lost.client.sync(name))
            volume = read_record(lost.volume(name)).volume
        async with context.node(pool=1, store=store, recovers=lost) as bench, reading(store, volume) as (stored, plain):
            plains = [await plain()]
            first = await timed(bench.client.run(name, "/bin/true"))
            plains.append(await plain())
    result.series = {"first command": Series.of([first], "s"), "plain": Series.of(plains, "s")}
    yardstick = sum(plains) / len(plains)
    result.checks = [
        at_least(
            f"first command: {number(first)} s", yardstick / first, _SPEED,
            yardstick=f"its packs read and unpacked: {number(yardstick)} s",
        )
    ]  # fmt: skip
    result.notes.append(
        f"through the API, of one sprite whose disk is in the store only ({number(stored / 1e9)} GB of packs, data as"
        f" the image's /usr/lib); from the request to the command's exit, so that it begins with the disk and the"
        f" instance is in it. The yardstick is a process of its own that reads the same packs of the same store, before"
        f" and after: {', '.join(map(number, plains))} s; it neither hashes nor writes. The S3 server (SeaweedFS) and"
        f" what delays it share the processors with both. To write the data took {number(filled)} s, to save what was"
        f" not saved by then {number(saved)} s"
    )
    return result


async def recover(context: Context) -> Result:
    count = context.count(1000, 50)
    result = Result("recover", f"recover of {count:,} sprites from a directory")
    home = context.work / "recover"
    store = DirectoryStore(home / "store")
    try:
        await make_logs(store, count)
        options = ["--data", str(home / "data"), "--store", (home / "store").as_uri(), "--pool-gb", "4", "--json"]
        started = perf_counter()
        said = await asyncio.to_thread(
            process.run, [sys.executable, "-m", "ballpoint.cli", "recover", *options], timeout=_SECONDS
        )
        took = perf_counter() - started
        came = len(json.loads(said)["sprites"])
    finally:
        await store.close()
        remove_tree(home)
    result.series = {"recover": Series.of([took], "s")}
    result.checks = [
        Check(f"{number(took)} s", "-", None, "stated", None),
        Check(f"{came} of {count} came", "-", None, "all", came == count),
    ]
    result.notes.append("logs of two commits each, disks of one block; the store is a directory of this host")
    return result


async def make_logs(store: Store, count: int) -> None:
    """Let a new store have so many sprites, whose logs are two commits each, of disks with one block."""
    await claim(store, new_deployment())

    async def make(index: int) -> None:
        made = await found(
            store, UUID(ids.new_uuid()), UUID(ids.new_uuid()), image="0" * 64, size=1 << 36,
            settings=_settings(f"s-{index}"), writer="bench",
        )  # fmt: skip
        assert made is not None
        await Disk(store, made).write({0: block(index)}, inline=True)

    await for_each(range(count), make, at_once=_AT_ONCE)


def _settings(name: str) -> dict[str, object]:
    return {
        "id": f"sprite-{ids.new_uuid()}",
        "name": name,
        "organization": {"id": "bench", "name": "bench"},
        "labels": [],
        "environment": {},
        "config": {},
        "url_settings": {},
        "privileges": {},
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }


async def space(context: Context) -> Result:
    size = context.count(2_000_000_000, 200_000_000)
    result = Result("space", f"space after a sprite with {number(size / 1e9)} GB is destroyed")
    async with context.node(pool=1) as bench:
        before, nothing = bench.pool_used(), _bytes_in(bench.store())
        name = bench.name()
        await bench.client.create(name)
        await bench.client.run(name, *python(FILL, "data", size))
        await bench.client.sync(name)
        full, stored = bench.pool_used(), _bytes_in(bench.store())
        started = perf_counter()
        await bench.client.delete(name)
        answered = perf_counter() - started
        async with asyncio.timeout(_SECONDS):
            while bench.pool_used() > before + _LEFT_BYTES:
                await asyncio.sleep(_LOOK_SECONDS)
        took = perf_counter() - started
        in_trash = _bytes_in(bench.store())
        command = [*bench.node.program, "store", "gc", "--store", bench.store().as_uri(), "--retention", "0"]
        started, runs, left = perf_counter(), 0, in_trash
        while left > nothing + _LEFT_STORED and runs < _COLLECTIONS:
            await asyncio.to_thread(process.run, command, timeout=_SECONDS)
            runs, left = runs + 1, _bytes_in(bench.store())
        collected = perf_counter() - started
    result.series = {
        "answered": Series.of([answered], "s"),
        "space is back": Series.of([took], "s"),
        "collected": Series.of([collected], "s"),
        "store": Series.of([stored - nothing], "bytes"),
        "store, left": Series.of([left - nothing], "bytes"),
    }
    kept, gone = in_trash - nothing, in_trash - left
    result.checks = [
        Check(
            f"pool: {number((full - before) / 1e9)} GB back in {number(took)} s", "-", None, "stated", None
        ),
        Check(
            f"store: {number(gone / 1e6)} MB back by {runs} times `store gc --retention 0` in {number(collected)} s",
            f"its disk there: {number((stored - nothing) / 1e6)} MB", gone / (stored - nothing), "stated", None,
        ),
    ]  # fmt: skip
    result.notes.append(
        f"the destroy was answered in {number(answered)} s. After it the store still has {number(kept / 1e6)} MB of the"
        " disk, for the 24 hours in which it can be recovered (docs/durability.md), which are not waited for here:"
        " `ballpoint store gc --retention 0` does at once what a node does then, the start of the program included. It"
        f" was run {runs} times: the first closes the log, later ones remove what it had. {left - nothing:,} bytes"
        " stay, which say that it is destroyed. The store is a directory; the data compresses well"
    )
    return result


def _bytes_in(store: Path) -> int:
    """Bytes of what a store has of volumes and their lineages."""
    trees = ("volumes", "lineages")
    return sum(path.stat().st_size for tree in trees for path in (store / tree).rglob("*") if path.is_file())


async def restart(context: Context) -> Result:
    size = context.count(8_000_000_000, 200_000_000)
    result = Result("restart", f"restart after a power loss, full hash of a disk of {number(size / 1e9)} GB")
    home = context.work / "restart"
    home.mkdir()
    command = [sys.executable, "-m", "bench.powerloss", str(home), str(size)]
    try:
        times: dict[str, float] = json.loads(await asyncio.to_thread(process.run, command, timeout=_SECONDS))
    finally:
        remove_tree(home)
    result.series = {key: Series.of([value], "s") for key, value in times.items()}
    result.checks = [
        Check(
            f"{number(times['full hash'])} s, CPU {number(times['full hash, CPU'])} s",
            f"first save: {number(times['first save'])} s", times["full hash"] / times["first save"], "stated", None,
        )
    ]  # fmt: skip
    result.notes.append(
        "the power loss took the snapshot that the store has, or what names it, so it is not known what the store has:"
        " all of the disk is read, hashed and held against the log's map, and nothing is stored. The"
        " kernel's memory has of the disk what the first save left there; data that compresses well, the store is a"
        " directory"
    )
    return result
