"""Answers without a known end: they stop when their source ends or their reader goes away, whichever is first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339
from ballpoint.core.errors import BallpointError
from ballpoint.node.views import EventView, ListingLine, Progress

log = logging.getLogger(__name__)


class StreamedResponse(Response):
    """A response of chunks as they come.

    The head is sent with the first chunk, so that an error raised before it is answered as any other; one after it cuts
    the connection. In every case the source is closed before the response ends.

    Args:
        chunks: the source; owned from here on.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.status_code = 200
        self.background = None
        # Proxies that collect a response before passing it on would hold back what happens now.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(send))
                watcher = tasks.create_task(_cancel_on_disconnect(receive, sender))
                sender.add_done_callback(lambda _: watcher.cancel())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        started = False
        try:
            async for chunk in self._chunks:
                if not started:
                    await send(head)
                    started = True
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            if isinstance(self._chunks, AsyncGenerator):
                await self._chunks.aclose()
        if not started:
            await send(head)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class TextStream(StreamedResponse):
    """A log as text."""

    media_type = "text/plain"


class LineStream(StreamedResponse):
    """JSON objects, one a line (NDJSON)."""

    media_type = "application/x-ndjson"


async def event_lines(events: AsyncIterator[EventView]) -> AsyncGenerator[bytes]:
    """Each event as one line of JSON; closes `events` when it is closed itself."""
    try:
        async for event in events:
            line: dict[str, Any] = {"time": rfc3339(event.time), "kind": event.kind, "cause": event.cause}
            if event.detail is not None:
                line["detail"] = event.detail
            yield msgspec.json.encode(line) + b"\n"
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def listing_lines(lines: AsyncIterator[ListingLine], org: str) -> AsyncGenerator[bytes]:
    """Each change of a listing as one line of JSON; closes `lines` when it is closed itself."""
    try:
        async for line in lines:
            told: dict[str, Any] = {"type": line.kind}
            if line.name is not None:
                told["name"] = line.name
            if line.sprite is not None:
                told |= {"status": line.sprite.status, "health": line.sprite.health}
                told["running_version"] = line.sprite.version
                for name in ("last_running_at", "last_warming_at"):
                    moment = getattr(line.sprite, name)
                    told[name] = None if moment is None else rfc3339(moment)
            told["timestamp"] = rfc3339(SYSTEM_CLOCK.now())
            told["org"] = {"name": org, **msgspec.structs.asdict(line.counts)}
            yield msgspec.json.encode(told) + b"\n"
    finally:
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()


async def progress_lines(steps: AsyncIterator[Progress], request_id: str) -> AsyncGenerator[bytes]:
    """Each step as one line of JSON, and an error after the first as the last line, since the status is sent by then.

    Closes `steps` when it is closed itself.
    """
    started = False
    try:
        async for step in steps:
            started = True
            told = "error" if step.kind == "error" else "data"
            yield msgspec.json.encode({"type": step.kind, told: step.data, "time": rfc3339(step.time)}) + b"\n"
    except BallpointError as error:
        if not started:
            raise
        line = {"type": "error", "error": error.message, "time": rfc3339(SYSTEM_CLOCK.now())}
        if error.hint is not None:
            line["hint"] = error.hint
        if error.status == 500:
            log.error("request %s: %s", request_id, error, exc_info=error)
            line["request_id"] = request_id
        yield msgspec.json.encode(line) + b"\n"
    finally:
        if isinstance(steps, AsyncGenerator):
            await steps.aclose()


async def _cancel_on_disconnect(receive: Receive, task: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
