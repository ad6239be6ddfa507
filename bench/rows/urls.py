"""A sprite's URL: many small answers, and large ones, beside a proxy that asks the same server."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import web
from bench.context import Bench, Context, alternated
from bench.report import Result, Series, at_least, missing, number
from bench.web import CONNECTIONS, wrk

_PORT = 8080
_PROXY = "nginx"
_SMALL, _LARGE = "small", "large"
_FILES = {_SMALL: b"Hello from the inside.\n", _LARGE: bytes(1 << 20)}


@dataclass(frozen=True)
class _Sides:
    """Where the same server is reached: at the sprite's URL with its fields, and by the proxy."""

    url: str
    fields: tuple[str, ...]
    proxy: str


async def url(context: Context) -> Result:
    result = Result("url", f"small answers of a sprite's URL, {CONNECTIONS} connections")
    await _measure(context, result, _SMALL, "requests/s", 0, 0.5)
    return result


async def url_large(context: Context) -> Result:
    result = Result("url-large", f"answers of 1 MiB of a sprite's URL, {CONNECTIONS} connections")
    await _measure(context, result, _LARGE, "MiB/s", 1, 0.7)
    return result


async def _measure(context: Context, result: Result, name: str, unit: str, which: int, limit: float) -> None:
    if lacking := web.missing():
        result.checks.append(missing("", _PROXY, f"{' and '.join(lacking)} not installed", f"at least {limit}x"))
        return
    seconds = context.count(4, 2)

    async def ask(url: str, *fields: str) -> float:
        return (await wrk(f"{url}/{name}", seconds, *fields))[which]

    async with context.node(pool=1) as bench, _sides(context, bench) as sides:
        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "sprite": partial(ask, sides.url, *sides.fields),
            _PROXY: partial(ask, sides.proxy),
        }
        samples = await alternated(context.count(9, 3), measures, warm=1)
        before = bench.cpu()
        rate, _ = await wrk(f"{sides.url}/{name}", seconds, *sides.fields)
        after = bench.cpu()
    result.series = {key: Series.of(values, unit) for key, values in samples.items()}
    # Both of a pair ran one after the other, so what else the host did was much the same.
    ratios = Series.of([ours / theirs for ours, theirs in zip(*samples.values(), strict=True)], "x")
    ours, theirs = result.series["sprite"].p50, result.series[_PROXY].p50
    result.checks.append(
        at_least(
            f"{number(ours)} {unit} (n={len(samples['sprite'])})",
            ratios.p50,
            limit,
            yardstick=f"nginx, proxying to the same server: {number(theirs)} {unit}",
        )
    )
    result.notes.append(
        f"client: wrk, one thread and {CONNECTIONS} connections that are kept, on the host, from the sprite to it."
        " The files are in the page cache. The ratio is the median of pairs' ratios. The server is nginx with one"
        " process, in the sprite's network namespace; the proxy reaches it over the sprite's own interface, and has"
        " as many processes as there are edges"
    )
    count = rate * seconds
    used = {key: (after[key] - before[key]) / count * 1e6 for key in ("edge", "node")}
    result.profile = [f"CPU per request, in microseconds: {', '.join(f'{k} {v:.0f}' for k, v in used.items())}"]


@asynccontextmanager
async def _sides(context: Context, bench: Bench) -> AsyncIterator[_Sides]:
    name = bench.name()
    await bench.client.create(name)
    init = await bench.process(name, "inner/main", "init")
    inside = ["nsenter", "--target", str(init), "--net"]
    address = await bench.address(name)
    host = (await bench.client.request("GET", f"/v1/sprites/{name}"))["url"].partition("://")[2]
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    place = Path(tempfile.mkdtemp(dir=context.work))
    async with (
        web.server(place / "inside", _PORT, _FILES, inside),
        web.proxy(place / "proxy", port, f"{address}:{_PORT}"),
    ):
        yield _Sides(
            f"http://{bench.client.host}:{bench.client.port}",
            (f"Host: {host}", f"Authorization: Bearer {bench.node.token}"),
            f"http://127.0.0.1:{port}",
        )
