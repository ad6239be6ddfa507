"""An object store of others, on this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

from tests.store.proxy import Proxy, proxied
from tests.store.servers import ENVIRONMENT, seaweedfs, store_url

from ballpoint.core.tasks import Tasks
from ballpoint.host.files import remove_tree

_PIECE = 1 << 18


@asynccontextmanager
async def local_s3(directory: Path) -> AsyncIterator[str]:
    """The URL of a bucket of an S3 server below `directory`; nodes started meanwhile have its credentials."""
    with _server(directory) as endpoint:
        yield store_url(endpoint)


@asynccontextmanager
async def counted_s3(directory: Path) -> AsyncIterator[tuple[str, Proxy]]:
    """As `local_s3`, with what sees each request on its way there."""
    with _server(directory) as endpoint:
        async with proxied(endpoint) as proxy:
            yield store_url(proxy.endpoint), proxy


@asynccontextmanager
async def slow_s3(directory: Path, latency: float) -> AsyncIterator[str]:
    """As `local_s3`, so many seconds away: each request and its answer take half of that on their way."""
    with _server(directory) as endpoint:
        async with _delayed(endpoint, latency / 2) as far:
            yield store_url(far)


@asynccontextmanager
async def _delayed(endpoint: str, seconds: float) -> AsyncIterator[str]:
    """Passes on what comes, in both directions, so much later; as much of it at once as there is."""
    to, tasks = urlsplit(endpoint), Tasks()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(to.hostname, to.port)
        tasks.start(_pass_on(reader, server_writer, seconds), "requests")
        tasks.start(_pass_on(server_reader, writer, seconds), "answers")

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await tasks.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(arrive())
            while data := await reader.read(_PIECE):
                under_way.put_nowait((loop.time() + seconds, data))
            under_way.put_nowait((loop.time() + seconds, b""))
    except* ConnectionError:
        pass  # one of the two has gone, as it may
    finally:
        writer.close()


@contextmanager
def _server(directory: Path) -> Iterator[str]:
    directory.mkdir()
    try:
        with seaweedfs(directory) as endpoint, mock.patch.dict(os.environ, ENVIRONMENT):
            yield endpoint
    finally:
        remove_tree(directory)
