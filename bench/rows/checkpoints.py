"""Checkpoints of small and large disks, and what is started from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from bench.client import Client
from bench.context import Bench, Context, alternated, timed
from bench.programs import FILL, python
from bench.report import Check, Result, Series, at_most, number

_SIZES = (100_000_000, 2_000_000_000, 8_000_000_000)
_QUICK = (20_000_000, 100_000_000, 400_000_000)
_CHECKPOINT_MS = 60.0
_FLAT = 1.5
# Two medians of few samples on a host whose cores are shared differ by as much without any cause.
_NOISE = 1.25
_RESTORE, _FORK = 2.0, 1.5
_POOL = 4

Measures = dict[str, Callable[[], Awaitable[float]]]


async def checkpoint(context: Context) -> Result:
    result = Result("checkpoint", "a checkpoint through the API, idle disk")
    async with context.node(pool=1) as bench:
        filled = await _filled(bench, _SIZES if not context.quick else _QUICK)

        async def made(name: str) -> float:
            return await timed(bench.client.steps(f"/v1/sprites/{name}/checkpoint")) * 1000

        async def settled() -> None:
            for name in filled.values():
                await bench.client.sync(name)

        measures: Measures = {label: partial(made, name) for label, name in filled.items()}
        samples = await alternated(context.count(20, 5), measures, settled)
    result.series = {label: Series.of(values, "ms") for label, values in samples.items()}
    for label, series in result.series.items():
        result.checks.append(at_most(f"{label}: {series}", series.p50, _CHECKPOINT_MS, unit=" ms at p50"))
    small, large = list(result.series)[0], list(result.series)[-1]
    result.checks.append(_flat(result, small, large, _FLAT))
    result.notes.append("sequential data, all of it in the store; the next is made when the store has the last one")
    return result


async def restore(context: Context) -> Result:
    result = Result("restore", "restore and fork, each to the exit of `/bin/true` in it")
    async with context.node(pool=_POOL) as bench:
        sizes = (_SIZES[0], _SIZES[-1]) if not context.quick else (_QUICK[0], _QUICK[-1])
        filled = await _filled(bench, sizes)
        kept = {name: await bench.client.checkpoint(name) for name in filled.values()}
        new: list[str] = []

        async def created() -> float:
            new.append(bench.name())
            return (await bench.client.create(new[-1])).total * 1000

        async def forked(name: str) -> float:
            new.append(bench.name())
            return await timed(_fork(bench.client, name, kept[name], new[-1])) * 1000

        async def restored(name: str) -> float:
            return await timed(_restore(bench.client, name, kept[name])) * 1000

        async def settled() -> None:
            for name in filled.values():
                await bench.client.sync(name)
            while new:
                # A fork that is not in the store yet keeps its origin's checkpoint in use.
                await bench.client.sync(new[-1])
                await bench.client.delete(new.pop())
            await bench.ready(len(filled))

        measures: Measures = {"create": created}
        for label, name in filled.items():
            measures[f"fork, {label}"] = partial(forked, name)
            measures[f"restore, {label}"] = partial(restored, name)
        await settled()
        samples = await alternated(context.count(12, 4), measures, settled)
    result.series = {label: Series.of(values, "ms") for label, values in samples.items()}
    create = result.series["create"]
    for verb, limit in (("restore", _RESTORE), ("fork", _FORK)):
        labels = [f"{verb}, {label}" for label in filled]
        for label in labels:
            ours = result.series[label]
            yardstick = f"create, `/bin/true`: p50 {number(create.p50)} ms"
            result.checks.append(at_most(f"{label}: {ours}", ours.p50 / create.p50, limit, yardstick=yardstick))
        result.checks.append(_flat(result, labels[0], labels[-1], _NOISE))
    result.notes.append(
        f"of a checkpoint that is here and in the store; before each measurement the pool has its {_POOL} blanks and"
        " the store everything. A restore is of a running sprite, and begins with an automatic checkpoint of what it is"
    )
    return result


async def _fork(client: Client, source: str, checkpoint_id: str, name: str) -> None:
    await client.request("POST", f"/v1/sprites/{source}/fork", {"name": name, "checkpoint": checkpoint_id})
    await client.run(name, "/bin/true")


async def _restore(client: Client, name: str, checkpoint_id: str) -> None:
    await client.steps(f"/v1/sprites/{name}/checkpoints/{checkpoint_id}/restore")
    await client.run(name, "/bin/true")


async def _filled(bench: Bench, sizes: tuple[int, ...]) -> dict[str, str]:
    """A sprite with so much data for each size, saved: label -> name."""
    found: dict[str, str] = {}
    for size in sizes:
        name = found[f"{number(size / 1e9)} GB"] = bench.name()
        await bench.client.create(name)
        await bench.client.run(name, *python(FILL, "data", size))
        await bench.client.sync(name)
    return found


def _flat(result: Result, small: str, large: str, limit: float) -> Check:
    """The larger one's median by the smaller one's."""
    ours, yardstick = result.series[large].p50, result.series[small].p50
    return at_most(
        f"{large}: p50 {number(ours)} ms", ours / yardstick, limit, yardstick=f"{small}: p50 {number(yardstick)} ms"
    )
