"""A sprite's files by the API, beside `cp` inside."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from time import perf_counter

from bench.context import Context, alternated, cpu_sentence, timed
from bench.report import Result, Series, at_least, number

_MIB = 1 << 20
_READ = "/v1/sprites/{}/fs/read?path=/home/sprite/big"
_WRITE = "/v1/sprites/{}/fs/write?path=/home/sprite/up"


async def files(context: Context) -> Result:
    """Rates of 1 GiB, in a page cache that holds it; what each has written is removed before the next."""
    total = context.count(1024, 256) * _MIB
    result = Result("files", f"{total // _MIB} MiB by the file API: read, and write with fsync")
    source = context.work / "files-source"
    with source.open("wb") as file:
        for _ in range(total // _MIB):
            file.write(os.urandom(_MIB))
    async with context.node(pool=1) as bench:
        client, name = bench.client, bench.name()
        await client.create(name)
        await client.upload(_WRITE.format(name), source)
        await client.run(name, "mv", "up", "big")

        async def clear() -> None:
            await client.run(name, "bash", "-c", "rm -f up copy; sync")

        async def rate(work: Callable[[], Awaitable[object]]) -> float:
            seconds = await timed(work())
            await clear()
            return total / _MIB / seconds

        async def read() -> None:
            received = await client.download(_READ.format(name))
            if received != total:
                raise RuntimeError(f"{received} of {total} bytes came")

        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "read": lambda: rate(read),
            "cp": lambda: rate(lambda: client.run(name, "cp", "big", "copy")),
            "write": lambda: rate(lambda: client.upload(_WRITE.format(name), source)),
            "cp and sync": lambda: rate(lambda: client.run(name, "bash", "-c", "cp big copy && sync")),
        }
        samples = await alternated(context.count(5, 3), measures, warm=1)
        profile = []
        for what in ("read", "write"):
            before, started = bench.cpu(), perf_counter()
            await measures[what]()
            took, after = perf_counter() - started, bench.cpu()
            profile.append(f"{what}, {took:.1f} s: {cpu_sentence(before, after, 1, f'{total // _MIB} MiB')}")
    source.unlink()
    result.series = {key: Series.of(values, "MiB/s") for key, values in samples.items()}
    for ours, theirs in (("read", "cp"), ("write", "cp and sync")):
        mine, other = result.series[ours].p50, result.series[theirs].p50
        text = f"{ours}: {number(mine)} MiB/s (n={len(samples[ours])})"
        result.checks.append(at_least(text, mine / other, 0.5, yardstick=f"`{theirs}` inside: {number(other)} MiB/s"))
    result.notes.append(
        "client: one process, one connection; what is read is in the page cache, what is written comes from a file"
        " that is, and is on the disk when it is answered. `cp` moves pages within one kernel; by the API each byte"
        " passes two sockets to another process"
    )
    result.profile = profile
    return result
