"""What a node takes for many disks that nobody uses."""

from __future__ import annotations

import asyncio

from ballpoint.host.files import remove_tree
from ballpoint.store.directory import DirectoryStore
from bench.context import Bench, Context
from bench.programs import FILL, python
from bench.report import Check, Result, Series, at_most, number
from bench.rows.lost import make_logs

_MAP_MB = 150.0
_SETTLE_SECONDS = 10.0
_SECONDS = 600.0
_LOOK_SECONDS = 0.2
_PAGE = 4096
# Pages of 4 KiB from one sprite's write to the next one's: in pages of the map that lie apart.
_STRIDE = 126_719


async def cold(context: Context) -> Result:
    size, volumes = context.count(8_000_000_000, 200_000_000), context.count(1000, 100)
    dirty = context.count(50, 10)
    result = Result("cold", f"{volumes:,} volumes of {number(size / 1e9)} GB that nobody uses, {dirty} of them dirty")
    home = context.work / "cold"
    store = DirectoryStore(home / "store")
    try:
        await make_logs(store, volumes - dirty)
        async with context.node(pool=1, store=(home / "store").as_uri(), recovers=True) as bench:
            names = await _large(bench, size, dirty)
            async with asyncio.timeout(_SECONDS):
                while not [*(home / "store" / "images").glob("*/index")]:
                    await asyncio.sleep(_LOOK_SECONDS)
            for name in names:
                await bench.client.sync(name)
                await bench.client.request("POST", f"/v1/sprites/{name}/sleep")
            async with bench.unsaved():
                pass  # a new process, which has nothing in memory of any map
            await asyncio.sleep(_SETTLE_SECONDS)
            known = bench.memory_mb()
            for number_, name in enumerate(names):
                at = number_ * _STRIDE % (size // _PAGE)
                write = f"dd if=/dev/urandom of=data bs={_PAGE} count=1 seek={at} conv=notrunc,fsync status=none"
                await bench.client.run(name, "bash", "-c", write)
            awake = bench.memory_mb()
            for name in names:
                await bench.client.request("POST", f"/v1/sprites/{name}/sleep")
            await asyncio.gather(*map(bench.client.sync, names))
            saved = bench.memory_mb()
    finally:
        await store.close()
        remove_tree(home)
    result.series = {
        "all known": Series.of([known], "MB"),
        "dirty, running": Series.of([awake], "MB"),
        "dirty ones saved": Series.of([saved], "MB"),
    }
    most = max(awake, saved)
    result.checks = [
        Check(
            f"memory of the node: {number(most)} MB, before the writes {number(known)} MB", "-", None, "stated", None
        ),
        at_most(f"what {dirty} maps and all else add: {number(most - known)} MB", most - known, _MAP_MB, unit=" MB"),
    ]
    result.notes.append(
        f"private memory of the node's process, begun anew over {volumes:,} sprites of which none runs:"
        f" {volumes - dirty} came by `recover` and are in the store only, with logs of two commits and one block (of a"
        f" disk that nobody opens no map is read, however large it is); {dirty} are forks of one with"
        f" {number(size / 1e9)} GB, each with a log and a map of its own. These are woken and written, one block each"
        f" ({number(awake)} MB while they run), put to sleep and saved all at once. All that the node takes more is"
        " counted as maps"
    )
    return result


async def _large(bench: Bench, size: int, count: int) -> list[str]:
    """A sprite with so much data, and forks of it: so many together, in the store."""
    names = [bench.name()]
    await bench.client.create(names[0])
    await bench.client.run(names[0], *python(FILL, "data", size))
    await bench.client.sync(names[0])
    kept = await bench.client.checkpoint(names[0])
    await bench.client.sync(names[0])
    for _ in range(count - 1):
        names.append(bench.name())
        await bench.client.request("POST", f"/v1/sprites/{names[0]}/fork", {"name": names[-1], "checkpoint": kept})
        await bench.client.sync(names[-1])
    return names
