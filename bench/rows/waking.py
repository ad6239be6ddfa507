"""From warm and from cold to the first byte of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import perf_counter

from bench.client import Http
from bench.context import Bench, Context, alternated, cpu_sentence
from bench.programs import FILL, python
from bench.report import Result, Series, at_most, number

_IDLE_SECONDS = 0.3
_LOOK_SECONDS = 0.02
_WAIT_SECONDS = 60.0
_PORT = 8080
_SERVER = ("python3", "-m", "http.server")
_RETRY_SECONDS = 0.001
# As a node has it that is told nothing. The last blank would be replaced at once, beside what has just been woken.
_POOL = 4


async def warm(context: Context) -> Result:
    result = Result("warm", "exec in a frozen sprite, to its first output")
    async with context.node(pool=1) as bench:
        sleeper, awake = bench.name(), bench.name()
        await bench.client.request("POST", "/v1/sprites", {"name": sleeper, "idle_timeout": _IDLE_SECONDS})
        await bench.client.create(awake)

        async def first(name: str) -> float:
            done = await bench.client.exec(name, "/bin/echo", "awake")
            if done.code != 0:
                raise RuntimeError(f"/bin/echo ended with {done.code}")
            return (done.first - done.started) * 1000

        async def frozen() -> None:
            await _becomes(bench, sleeper, "warm")

        await frozen()
        # Both come after the same pause: the processors' caches are as cold for the one as for the other.
        samples = await alternated(
            context.count(200, 20), {"warm": lambda: first(sleeper), "running": lambda: first(awake)}, frozen
        )
        costs = []
        for name in (sleeper, awake):
            count = context.count(50, 10)
            before = bench.cpu()
            for _ in range(count):
                await first(name)
                await frozen()
            costs.append(cpu_sentence(before, bench.cpu(), count, f"exec, {'warm' if name == sleeper else 'running'}"))
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    ours, theirs = result.series["warm"], result.series["running"]
    yardstick = f"the same in a running sprite: {theirs}"
    result.checks = [at_most(str(ours), ours.p50 / theirs.p50, 1.2, yardstick=yardstick)]
    result.notes.append(
        f"client: one process, a fresh WebSocket for each. The sprite freezes after {_IDLE_SECONDS} s, as the API says"
        " before each sample; nothing of it is swapped out"
    )
    result.profile = [f"both with the wait until it is frozen: {cost}" for cost in costs]
    return result


async def cold_exec(context: Context) -> Result:
    size = context.count(2_000_000_000, 200_000_000)
    result = Result("wake-exec", f"exec `/bin/true` in a cold sprite of {number(size / 1e9)} GB with a service")
    async with context.node(pool=_POOL) as bench:
        name = bench.name()
        await bench.client.create(name)
        await bench.client.run(name, *python(FILL, "data", size))
        await _service(bench, name, {"cmd": "sleep", "args": ["infinity"]})
        await bench.client.sync(name)
        born: list[str] = []

        async def wake() -> float:
            done = await bench.client.exec(name, "/bin/true")
            if done.code != 0:
                raise RuntimeError(f"/bin/true ended with {done.code}")
            return done.total * 1000

        async def create() -> float:
            birth = await bench.client.create(bench.name())
            born.append(birth.name)
            return birth.total * 1000

        async def settle() -> None:
            await _sleep(bench, name)
            while born:
                await bench.client.delete(born.pop())
            await bench.ready()

        await settle()
        samples = await alternated(context.count(30, 5), {"wake": wake, "create": create}, settle)
        before = bench.cpu()
        await wake()
        after = bench.cpu()
        await _sleep(bench, name)
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    ours, theirs = result.series["wake"], result.series["create"]
    yardstick = f"create to exit of `/bin/true`: {theirs}"
    result.checks = [at_most(str(ours), ours.p50 / theirs.p50, 2.0, yardstick=yardstick)]
    result.notes.append(
        "client: one process, a fresh WebSocket for each. Put to sleep by the API, so its disk was unmounted; the disk"
        " is on this host, and what is read of it is in the page cache. A full pool stands by, for both"
    )
    result.profile = [cpu_sentence(before, after, 1, "wake")]
    return result


async def cold_url(context: Context) -> Result:
    result = Result("wake-url", "a request to a cold sprite's URL, whose service is `python3 -m http.server`")
    async with context.node(pool=_POOL) as bench:
        served, awake = bench.name(), bench.name()
        for name in (served, awake):
            await bench.client.create(name)
            await bench.client.run(name, "bash", "-c", "mkdir web && echo inside > web/small")
        place = ["--directory", "/home/sprite/web"]
        service = {"cmd": _SERVER[0], "args": [*_SERVER[1:], str(_PORT), *place], "http_port": _PORT}
        await _service(bench, served, service)
        host = (await bench.client.request("GET", f"/v1/sprites/{served}"))["url"].partition("://")[2]
        address = await bench.address(awake)

        async def url() -> float:
            started = perf_counter()
            connection = await Http.open(bench.client)
            try:
                first = await connection.first_byte("/small", host)
            finally:
                connection.close()
            return (first - started) * 1000

        async def by_hand() -> float:
            started = perf_counter()
            running = asyncio.create_task(
                bench.client.exec(awake, *_SERVER, str(_PORT), *place),
            )
            first = await _fetched(address, running)
            await bench.client.run(awake, "pkill", "-f", "http.server")
            await running
            return (first - started) * 1000

        async def settle() -> None:
            await _sleep(bench, served)
            await bench.ready(1)

        await settle()
        measures: dict[str, Callable[[], Awaitable[float]]] = {"url": url, "by hand": by_hand}
        samples = await alternated(context.count(30, 5), measures, settle)
    result.series = {key: Series.of(values, "ms") for key, values in samples.items()}
    ours, theirs = result.series["url"], result.series["by hand"]
    yardstick = f"that server started by exec in a running sprite, and fetched from once: {theirs}"
    result.checks = [at_most(str(ours), ours.p50 / theirs.p50, 1.3, yardstick=yardstick)]
    result.notes.append(
        "to the first byte of the answer. By hand the client connects to the sprite's own interface, again each"
        f" {_RETRY_SECONDS * 1000:g} ms until somebody listens; of a URL the sprite's agent does that. Hot page cache"
    )
    return result


async def _service(bench: Bench, name: str, service: dict[str, object]) -> None:
    await bench.client.request("PUT", f"/v1/sprites/{name}/services/served?duration=100ms", service)


async def _sleep(bench: Bench, name: str) -> None:
    await bench.client.request("POST", f"/v1/sprites/{name}/sleep")
    await _becomes(bench, name, "cold")


async def _becomes(bench: Bench, name: str, status: str) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while (await bench.client.request("GET", f"/v1/sprites/{name}"))["status"] != status:
            await asyncio.sleep(_LOOK_SECONDS)


async def _fetched(address: str, running: asyncio.Task[object]) -> float:
    """When the first byte came from the server that is being started at an address of a sprite."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while not running.done():
            try:
                reader, writer = await asyncio.open_connection(address, _PORT)
            except ConnectionRefusedError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            writer.write(b"GET /small HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n")
            await reader.readexactly(1)
            first = perf_counter()
            if not (await reader.read()).endswith(b"inside\n"):
                raise RuntimeError("another answer than the file")
            writer.close()
            return first
    raise RuntimeError(f"the server has ended: {json.dumps(repr(running))}")
