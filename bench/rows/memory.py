"""Memory: of a blank that stands by, and of an agent that has worked."""

from __future__ import annotations

import asyncio

from bench.context import Context, available_mb, private_mb
from bench.report import Result, Series, at_most, median, number

_BLANKS = 100
_LOOKS = 20
_LOOK_SECONDS = 0.1
_SETTLE_SECONDS = 2.0
_OUTPUT = 50_000_000
# One page table more or less, and the allocator's arenas.
_GROWTH_MB = 0.25


async def blank(context: Context) -> Result:
    result = Result("blank", f"memory of one idle blank, {_BLANKS} of them")
    rounds = context.count(3, 1)
    values: list[float] = []
    for _ in range(rounds):
        few, few_blanks = await _available(context, 1)
        many, many_blanks = await _available(context, 1 + _BLANKS)
        few_again, _ = await _available(context, 1)
        values.append(((few + few_again) / 2 - many) / (many_blanks - few_blanks))
    result.series = {"blank": Series.of(values, "MB")}
    value = median(values)
    result.checks = [at_most(f"{number(value)} MB", value, 5.0, unit=" MB")]
    result.notes.append(
        f"MemAvailable of a node with 1 blank, less that of one with {1 + _BLANKS}, the first measured before and"
        f" after; {rounds} rounds: {', '.join(map(number, values))} MB"
    )
    return result


async def _available(context: Context, pool: int) -> tuple[float, int]:
    """MemAvailable beside a node that stands still, and its blanks."""
    async with context.node(pool=pool) as bench:
        await asyncio.sleep(_SETTLE_SECONDS)
        looks = []
        for _ in range(_LOOKS):
            looks.append(available_mb())
            await asyncio.sleep(_LOOK_SECONDS)
        return median(looks), bench.blanks


async def agent(context: Context) -> Result:
    result = Result("agent", "memory of one agent after 1,000 execs and 50 MB of output")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        pid = await bench.agent(name)
        stages = {"new": private_mb(pid)}
        for upto, count in ((100, 100), (500, 400), (1000, 500)):
            for _ in range(count):
                await bench.client.exec(name, "/bin/true")
            stages[f"after {upto} execs"] = private_mb(pid)
        for number_ in (1, 2):
            done = await bench.client.exec(name, "head", "-c", str(_OUTPUT), "/dev/zero")
            if done.received != _OUTPUT:
                raise RuntimeError(f"{done.received} of {_OUTPUT} bytes came")
            stages[f"after {50 * number_} MB of output"] = private_mb(pid)
        if await bench.agent(name) != pid:
            raise RuntimeError("the agent was started again")
    result.series = {stage: Series.of([value], "MB") for stage, value in stages.items()}
    grown = stages["after 1000 execs"] - stages["after 500 execs"]
    output = stages["after 100 MB of output"] - stages["after 50 MB of output"]
    value = stages["after 50 MB of output"]
    result.checks = [
        at_most(f"{number(value)} MB private; the second 500 execs add", grown, _GROWTH_MB, unit=" MB"),
        at_most("a second 50 MB of output adds", output, _GROWTH_MB, unit=" MB"),
    ]
    result.notes.append(", ".join(f"{stage} {value:.2f} MB" for stage, value in stages.items()))
    return result
