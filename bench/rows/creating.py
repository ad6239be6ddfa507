"""Creating a sprite and running its first command, one at a time and all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from bench.client import Birth
from bench.context import Bench, Context, alternated, cpu_sentence
from bench.report import Check, Result, Series, at_most, missing, number

_PODMAN, _CRUN = "podman run", "crun run"
_POOL = 16


async def tti(context: Context) -> Result:
    return await _one_by_one(context, "tti", ("/bin/true",))


async def tti_node(context: Context) -> Result:
    return await _one_by_one(context, "tti-node", ("node", "-v"))


async def burst(context: Context) -> Result:
    return await _at_once(context, "burst", ("/bin/true",))


async def burst_node(context: Context) -> Result:
    return await _at_once(context, "burst-node", ("node", "-v"))


async def _one_by_one(context: Context, row: str, command: tuple[str, ...]) -> Result:
    text = " ".join(command)
    result = Result(row, f"TTI: create to exit of `{text}`")
    result.notes.append(
        f"the next measurement starts when the pool has its {_POOL} blanks again and the last sprite is gone,"
        " so that neither side pays for the other's work"
    )
    births: list[Birth] = []
    count = context.count(100, 15)
    async with context.node(pool=_POOL) as bench:

        async def ours() -> float:
            birth = await bench.client.create(bench.name(), command)
            births.append(birth)
            return birth.total * 1000

        async def theirs(yardstick: str) -> float:
            return await context.containers.time(yardstick, *command) * 1000

        async def clean() -> None:
            for birth in births[len(cleaned) :]:
                await bench.client.delete(birth.name)
                cleaned.append(birth.name)
            await bench.ready()

        cleaned: list[str] = []
        measures: dict[str, Callable[[], Awaitable[float]]] = {"sprite": ours}
        for yardstick in (_PODMAN, _CRUN):
            if yardstick not in context.containers.missing:
                measures[yardstick] = partial(theirs, yardstick)
        samples = await alternated(count, measures, clean)
        before = bench.cpu()
        for _ in range(profiled := context.count(30, 10)):
            await ours()
        # Only the sprites' own work, with the filling that follows them; deleting is not in it.
        await bench.ready(profiled)
        after = bench.cpu()
    births = births[: -context.count(30, 10)][-count:]
    result.series = {name: Series.of(values, "ms") for name, values in samples.items()} | _phases(births)
    series = result.series
    result.checks = [
        _against(context, series, _PODMAN, "p50", 0.15),
        _against(context, series, _PODMAN, "p99", 0.5),
        _against(context, series, _CRUN, "p50", 3.0),
    ]
    result.profile = [
        _phase_sentence(series),
        cpu_sentence(before, after, profiled, "sprite with the refill it causes"),
    ]
    return result


def _phases(births: list[Birth]) -> dict[str, Series]:
    return {
        "create": Series.of([(b.created - b.started) * 1000 for b in births], "ms"),
        "WebSocket open": Series.of([(b.first.opened - b.first.started) * 1000 for b in births], "ms"),
        "command": Series.of([(b.first.exited - b.first.opened) * 1000 for b in births], "ms"),
    }


def _phase_sentence(series: dict[str, Series]) -> str:
    phases = ", ".join(f"{name} {series[name]}" for name in ("create", "WebSocket open", "command"))
    return f"by the client's clock, p50 / p90 / p99: {phases}"


def _against(context: Context, series: dict[str, Series], yardstick: str, quantile: str, limit: float) -> Check:
    """Our quantile by the yardstick's median (a 99th percentile has to beat half an ordinary run, not a slow one)."""
    measured = f"{quantile} {number(getattr(series['sprite'], quantile))} ms (n={series['sprite'].n})"
    if yardstick not in series:
        why = context.containers.missing[yardstick]
        return missing(measured, yardstick, why, f"{quantile} at most {limit:g}x")
    ratio = getattr(series["sprite"], quantile) / series[yardstick].p50
    return at_most(measured, ratio, limit, yardstick=f"{yardstick}: p50 {number(series[yardstick].p50)} ms")


async def _at_once(context: Context, row: str, command: tuple[str, ...]) -> Result:
    count = 100
    rounds = context.count(2, 1)
    result = Result(row, f"{count} at once with {_POOL} blanks ready, `{' '.join(command)}`")
    ours: list[float] = []
    theirs: list[float] = []
    births: list[Birth] = []
    failures = 0
    why = context.containers.missing.get(_PODMAN)
    async with context.node(pool=_POOL) as bench:
        before = bench.cpu()
        spent = dict.fromkeys(before, 0.0)
        for _ in range(rounds):
            before = bench.cpu()
            outcomes = await _create_many(bench, count, command)
            after = bench.cpu()
            spent = {name: spent[name] + after[name] - before[name] for name in spent}
            made = [outcome for outcome in outcomes if isinstance(outcome, Birth)]
            failures += len(outcomes) - len(made)
            result.notes += sorted({str(outcome)[:200] for outcome in outcomes if not isinstance(outcome, Birth)})[:3]
            births += made
            first = min(birth.started for birth in made)
            ours += [(birth.first.exited - first) * 1000 for birth in made]
            for name in [sprite["name"] for sprite in await _all_sprites(bench)]:
                await bench.client.delete(name)
            await bench.ready()
            if why is None:
                theirs += [s * 1000 for s in await context.containers.at_once(_PODMAN, count, *command)]
    result.series = {"sprite": Series.of(ours, "ms"), **_phases(births)}
    measured = f"{result.series['sprite']}"
    if why is None:
        result.series[_PODMAN] = Series.of(theirs, "ms")
        median = result.series[_PODMAN].p50
        ratio = result.series["sprite"].p50 / median
        result.checks.append(
            at_most(measured, ratio, 0.2, yardstick=f"{_PODMAN}, {count} at once: p50 {number(median)} ms")
        )
    else:
        result.checks.append(missing(measured, _PODMAN, why, "p50 at most 0.2x"))
    total = count * rounds
    result.checks.append(Check(f"{total - failures} of {total} succeed", "-", None, "all", failures == 0))
    result.profile = [
        _phase_sentence(result.series),
        cpu_sentence(dict.fromkeys(spent, 0.0), spent, len(births), "sprite"),
    ]
    return result


async def _create_many(bench: Bench, count: int, command: tuple[str, ...]) -> list[Birth | BaseException]:
    creates = (bench.client.create(bench.name(), command) for _ in range(count))
    return list(await asyncio.gather(*creates, return_exceptions=True))


async def _all_sprites(bench: Bench) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    query = "?max_results=50"
    while True:
        page = await bench.client.request("GET", f"/v1/sprites{query}")
        found += page["sprites"]
        if not page["has_more"]:
            return found
        query = f"?max_results=50&continuation_token={page['next_continuation_token']}"
