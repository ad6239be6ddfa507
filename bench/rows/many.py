"""Many sprites on one node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter

from bench.client import Birth, Client, Http
from bench.context import Bench, Context, alternated, cpu_sentence
from bench.report import Check, Result, Series, at_most, median, number

_IDLE = 300
_POOL = 8
_WINDOW = 20
_IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_SECONDS = 120.0
# Two medians of 20 on a host whose cores are shared differ by as much without any cause.
_NOISE = 1.25


async def idle(context: Context) -> Result:
    result = Result("idle", f"{_IDLE} sprites running idle")
    async with context.node(pool=_POOL) as full, context.node(pool=_POOL) as empty:
        names = [full.name() for _ in range(_IDLE)]
        started = perf_counter()
        for name in names:
            await full.client.create(name)
        took = perf_counter() - started
        await full.ready(_IDLE)
        anchors = full.anchors()
        name = names[_IDLE // 2]
        measures, connections = await _asking({f"{_IDLE} sprites": (full, name), "empty": (empty, empty.name())})
        samples = await alternated(context.count(500, 100), measures)
        for connection in connections:
            connection.close()
        lost = [name for name in names if (await full.client.exec(name, "/bin/true")).code != 0]
        lost += await _not_running(full.client, len(names))
        same = full.anchors() >= anchors
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    _judge(result, f"{_IDLE} sprites", "empty")
    result.checks.append(
        Check(
            f"{_IDLE - len(lost)} of {_IDLE} answer" + ("" if same else ", some were started again"),
            "-", None, "none lost", not lost and same,
        )
    )  # fmt: skip
    result.notes.append(f"{_IDLE} sprites created one after the other, each with its first command, in {took:.1f} s")
    return result


async def states(context: Context) -> Result:
    cold, warm, running = context.count(1000, 20), context.count(200, 10), context.count(50, 5)
    result = Result("states", f"{cold:,} sprites cold, {warm} warm, {running} running")
    async with context.node(pool=_POOL, pool_gb=60) as full, context.node(pool=_POOL) as empty:
        started = perf_counter()
        for _ in range(running):
            await full.client.create(full.name())
        for _ in range(cold):
            name = full.name()
            await full.client.create(name)
            await full.client.request("POST", f"/v1/sprites/{name}/sleep")
        for _ in range(warm):
            wanted = {"name": full.name(), "idle_timeout": _IDLE_SECONDS}
            await full.client.request("POST", "/v1/sprites", wanted)
        await full.ready(warm + running)
        wanted = {"cold": cold, "warm": warm, "running": running}
        async with asyncio.timeout(_SECONDS):
            while (found := await _counted(full.client)) != wanted:
                await asyncio.sleep(_LOOK_SECONDS)
        took = perf_counter() - started
        name = f"bench-{running}"
        measures, connections = await _asking({"full": (full, name), "empty": (empty, name)})
        samples = await alternated(context.count(500, 100), measures)
        for connection in connections:
            connection.close()
        found = await _counted(full.client)
        memory, bare = full.memory(), empty.memory()
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    _judge(result, "full", "empty")
    total, without = sum(memory.values()), sum(bare.values())
    each = ", ".join(f"{key} {number(value)}" for key, value in memory.items())
    result.checks.append(
        Check(
            f"memory of the node: {number(total)} MB, of an empty one {number(without)} MB", "-", None, "stated", None
        )
    )
    states = ", ".join(f"{count} {state}" for state, count in found.items())
    result.checks.append(Check(f"afterwards {states}", "-", None, "the same", found == wanted))
    result.notes.append(
        f"private memory, in MB: {each}. All sprites were made one after the other, in {took:.0f} s. Client: one"
        " process, one kept connection for each kind of request"
    )
    return result


async def _counted(client: Client) -> dict[str, int]:
    page = await client.request("GET", "/v1/sprites?max_results=1")
    return {state: page[state] for state in ("cold", "warm", "running")}


async def _asking(
    of: dict[str, tuple[Bench, str]],
) -> tuple[dict[str, Callable[[], Awaitable[float]]], list[Http]]:
    """What asks each node for a sprite and for a page of one, and the connections it uses, which the caller closes."""
    measures: dict[str, Callable[[], Awaitable[float]]] = {}
    connections: list[Http] = []
    for key, (bench, name) in of.items():
        for call, path in (("get", f"/v1/sprites/{name}"), ("list", f"/v1/sprites?prefix={name}&max_results=1")):
            connections.append(await Http.open(bench.client))
            measures[f"{call}, {key}"] = partial(_request, connections[-1], path)
    return measures, connections


def _judge(result: Result, full: str, empty: str) -> None:
    for call in ("get", "list"):
        ours, theirs = result.series[f"{call}, {full}"], result.series[f"{call}, {empty}"]
        answer = "404" if call == "get" else "an empty page"
        yardstick = f"empty node, {answer}: p50 {number(theirs.p50)} ms"
        result.checks.append(at_most(f"API {call}: {ours}", ours.p50 / theirs.p50, 1.5, yardstick=yardstick))


async def _request(connection: Http, path: str) -> float:
    started = perf_counter()
    await connection.request("GET", path, expected=404)
    return (perf_counter() - started) * 1000


async def _not_running(client: Client, count: int) -> list[str]:
    page = await client.request("GET", "/v1/sprites?max_results=1")
    return [f"{count - page['running']} not running"] if page["running"] != count else []


async def growth(context: Context) -> Result:
    last = context.count(1000, 200)
    marks = [_WINDOW, 100, last]
    result = Result("growth", f"create cost on the 1st, 100th and {last:,}th sprite")
    windows: dict[int, list[Birth]] = {}
    costs: dict[int, str] = {}
    made = 0
    async with context.node(pool=_POOL, pool_gb=60) as bench:
        started = perf_counter()
        for mark in marks:
            while made < mark - _WINDOW:
                await bench.client.create(bench.name())
                made += 1
            windows[mark] = []
            before = bench.cpu()
            while made < mark:
                await bench.ready(made)
                windows[mark].append(await bench.client.create(bench.name()))
                made += 1
            await bench.ready(made)
            costs[mark] = cpu_sentence(before, bench.cpu(), _WINDOW, f"sprite with its refill, up to the {mark}th")
        took = perf_counter() - started
        lost = await _lost(bench, made)
    for mark, births in windows.items():
        label = f"sprites {mark - _WINDOW + 1} to {mark}"
        result.series[f"create, {label}"] = Series.of([(b.created - b.started) * 1000 for b in births], "ms")
        result.series[f"TTI, {label}"] = Series.of([b.total * 1000 for b in births], "ms")
    first = median([(b.created - b.started) * 1000 for b in windows[marks[0]]])
    for mark in marks[1:]:
        cost = median([(b.created - b.started) * 1000 for b in windows[mark]])
        result.checks.append(
            at_most(
                f"create, sprites {mark - _WINDOW + 1} to {mark}: median {number(cost)} ms",
                cost / first, _NOISE, yardstick=f"sprites 1 to {_WINDOW}: median {number(first)} ms",
            )
        )  # fmt: skip
    result.notes.append(
        f"the measured creates found a full pool; {made} sprites were running at the end, {took:.0f} s after the first"
        f" create; of the first, the middle and the last, {'none is' if not lost else f'{lost} are'} lost"
    )
    phases = [f"{key} {series}" for key, series in result.series.items()]
    result.profile = [f"p50 / p90 / p99: {'; '.join(phases)}", *costs.values()]
    return result


async def _lost(bench: Bench, made: int) -> list[str]:
    names = (f"bench-{number_}" for number_ in (0, made // 2, made - 1))
    return [name for name in names if (await bench.client.exec(name, "/bin/true")).code != 0]
