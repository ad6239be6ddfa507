"""Commands in a sprite that lives: their latency, their streams, their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter

from bench.client import Exec
from bench.context import Context, alternated, cpu_sentence
from bench.report import Result, Series, at_least, at_most, missing, number
from bench.yardsticks import stream_servers

_RUNC = "runc exec"
_MIB = 1 << 20


async def exec_row(context: Context) -> Result:
    result = Result("exec", "exec `/bin/true` in a live sprite, fresh WebSocket")
    execs: list[Exec] = []
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.ready(1)

        async def ours() -> float:
            done = await bench.client.exec(name, "/bin/true")
            if done.code != 0:
                raise RuntimeError(f"/bin/true ended with {done.code}")
            execs.append(done)
            return done.total * 1000

        async def theirs() -> float:
            return await context.containers.time(_RUNC, "/bin/true") * 1000

        measures: dict[str, Callable[[], Awaitable[float]]] = {"sprite": ours}
        if _RUNC not in context.containers.missing:
            measures[_RUNC] = theirs
        count = context.count(300, 50)
        samples = await alternated(count, measures)
        before = bench.cpu()
        for _ in range(count):
            await ours()
        after = bench.cpu()
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    execs = execs[-2 * count : -count]
    result.series["WebSocket open"] = Series.of([(done.opened - done.started) * 1000 for done in execs], "ms")
    result.series["command"] = Series.of([(done.exited - done.opened) * 1000 for done in execs], "ms")
    sprite = result.series["sprite"]
    if _RUNC in samples:
        median = result.series[_RUNC].p50
        result.checks.append(
            at_most(str(sprite), sprite.p50 / median, 0.3, yardstick=f"{_RUNC}: p50 {number(median)} ms")
        )
    else:
        result.checks.append(missing(str(sprite), _RUNC, context.containers.missing[_RUNC], "p50 at most 0.3x"))
    result.profile = [
        f"by the client's clock: WebSocket open {result.series['WebSocket open']}, then {result.series['command']}",
        cpu_sentence(before, after, count, "exec"),
    ]
    return result


async def control(context: Context) -> Result:
    result = Result("control", "exec `/bin/true` on a control socket")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.ready(1)
        socket = await bench.client.control(name)
        try:

            async def ours() -> float:
                return await socket.exec("/bin/true") * 1000

            async def theirs() -> float:
                return await context.containers.spawned("/bin/true") * 1000

            count = context.count(500, 50)
            samples = await alternated(count, {"sprite": ours, "posix_spawn": theirs})
            before = bench.cpu()
            for _ in range(count):
                await ours()
            after = bench.cpu()
        finally:
            await socket.close()
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    sprite, spawn = result.series["sprite"], result.series["posix_spawn"]
    yardstick = f"posix_spawn of the host's: p50 {number(spawn.p50)} ms"
    result.checks = [at_most(str(sprite), sprite.p50 / spawn.p50, 4.0, yardstick=yardstick)]
    result.notes.append(
        "client: one process, one WebSocket, one command after the other, each until its operation is complete."
        " Both programs are in the page cache"
    )
    result.profile = [cpu_sentence(before, after, count, "exec")]
    return result


async def close(context: Context) -> Result:
    result = Result("close", "exit frame to closed socket")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        done = [await bench.client.exec(name, "/bin/true") for _ in range(context.count(1000, 100))]
    result.series = {"close": Series.of([(each.closed - each.exited) * 1000 for each in done], "ms")}
    result.checks = [at_most(str(result.series["close"]), result.series["close"].p99, 50.0, unit=" ms at p99")]
    result.notes.append(
        "client: one process, a fresh WebSocket for each, one after the other; the program is in the page cache"
    )
    result.profile = ["the server's close frame and the end of its connection come after the exit frame"]
    return result


async def stream(context: Context) -> Result:
    total = context.count(1024, 256) * _MIB
    result = Result("stream", f"{total // _MIB} MiB through exec `cat`, stdout")
    async with context.node(pool=1) as bench, stream_servers(context.work, total) as urls:
        name = bench.name()
        await bench.client.create(name)
        fill = f"head -c {total} /dev/urandom > big"
        if (await bench.client.exec(name, "bash", "-c", fill)).code != 0:
            raise RuntimeError("the file could not be written")

        async def rate(run: Callable[[], Awaitable[Exec]]) -> float:
            done = await run()
            if (done.received, done.code) != (total, 0):
                raise RuntimeError(f"{done.received} of {total} bytes came, and exit code {done.code}")
            return total / _MIB / done.total

        measures = {"sprite": partial(rate, partial(bench.client.exec, name, "cat", "big"))}
        measures |= {key: partial(rate, partial(bench.client.read, url)) for key, url in urls.items()}
        samples = await alternated(context.count(5, 3), measures, warm=1)
        before, started = bench.cpu(), perf_counter()
        await measures["sprite"]()
        took, after = perf_counter() - started, bench.cpu()
    result.series = {key: Series.of(values, "MiB/s") for key, values in samples.items()}
    ours = result.series["sprite"].p50
    for key, limit in (("relay", 0.6), ("bare server", 0.25)):
        theirs = result.series[key].p50
        text = f"{'bare relay, same hops' if key == 'relay' else 'bare WebSocket server'}: {number(theirs)} MiB/s"
        result.checks.append(
            at_least(f"{number(ours)} MiB/s (n={len(samples['sprite'])})", ours / theirs, limit, yardstick=text)
        )
    busy = {key: (after[key] - before[key]) / took for key in before}
    result.notes.append(
        "the relay's source is a blocking unix socket that sends ready-made frames: it reads no file, runs no command"
        " and has no pipe"
    )
    result.profile = [
        f"cores busy while a sprite streams: {', '.join(f'{key} {value:.2f}' for key, value in busy.items())}",
        cpu_sentence(before, after, total >> 30 or 1, f"{total // _MIB} MiB"),
    ]
    return result
