"""Streams over a real server: what a reader sees, and that nothing stays behind when it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from ballpoint.api.streams import progress_lines
from ballpoint.core.clock import rfc3339
from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, UnavailableError
from ballpoint.node.views import Progress

from .double import START, NodeDouble, caller_header

EVENTS = "/v1/sprites/web/events"


@pytest.fixture
async def remote(app: FastAPI, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app behind the server that the node uses, on a unix socket."""
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", log_config=None))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", headers=caller_header()) as client:
            yield client
        server.should_exit = True
    listener.close()


async def test_events_are_one_object_a_line(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.get(EVENTS)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {
            "time": "2026-01-02T03:04:05.678901Z",
            "kind": "created",
            "cause": "the API asked",
            "detail": {"image": "blake3:00"},
        },
        {"time": "2026-01-02T03:04:06.678901Z", "kind": "running", "cause": "claimed a blank"},
    ]
    assert node.open_streams == 0


async def test_logs_are_text(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.get("/v1/sprites/web/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "agent: ready\ncontainer: gr\u00fc\u00df dich\n"


@pytest.mark.parametrize("query", ["", "?follow=true"])
async def test_an_error_before_the_first_line_has_its_status(remote: httpx2.AsyncClient, query: str) -> None:
    answer = await remote.get(EVENTS + query)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_follow_gives_each_event_as_it_comes_and_ends_with_its_source(
    remote: httpx2.AsyncClient, node: NodeDouble
) -> None:
    node.put("web")
    async with remote.stream("GET", EVENTS, params={"follow": "true"}) as answer:
        lines = answer.aiter_lines()
        assert [json.loads(await anext(lines))["kind"] for _ in range(2)] == ["created", "running"]
        node.more.put_nowait(True)
        assert json.loads(await anext(lines))["kind"] == "note"
        node.more.put_nowait(False)
        assert [line async for line in lines] == []
    assert node.open_streams == 0


async def test_a_reader_that_leaves_closes_the_source(remote: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    async with remote.stream("GET", EVENTS, params={"follow": "true"}) as answer:
        await anext(answer.aiter_lines())
        assert node.open_streams == 1
    await node.closed.wait()
    assert node.open_streams == 0


async def test_a_reader_that_takes_nothing_and_leaves_closes_the_source(app: FastAPI, node: NodeDouble) -> None:
    node.put("web")
    sending = asyncio.Event()
    left = asyncio.Event()

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sending.set()
        await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": EVENTS,
        "query_string": b"follow=true",
        "headers": [(name.lower().encode(), value.encode()) for name, value in caller_header().items()],
    }
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(app(scope, receive, send))
        await sending.wait()
        assert node.open_streams == 1
        left.set()
    assert node.open_streams == 0


@pytest.mark.parametrize("failure", [UnavailableError("gone"), RuntimeError("a defect")])
async def test_an_error_after_the_first_line_cuts_the_connection(
    remote: httpx2.AsyncClient, node: NodeDouble, failure: Exception
) -> None:
    node.put("web")
    node.late_failure = failure
    seen = ""
    with pytest.raises(httpx2.RemoteProtocolError):
        async with remote.stream("GET", EVENTS) as answer:
            async for piece in answer.aiter_text():
                seen += piece
    assert json.loads(seen)["kind"] == "created"
    assert node.open_streams == 0


@pytest.mark.parametrize("below", ["/checkpoint", "/checkpoints/v0/restore"])
async def test_a_step_is_told_when_it_is_made(remote: httpx2.AsyncClient, node: NodeDouble, below: str) -> None:
    node.put("web")
    await remote.post("/v1/sprites/web/checkpoint")
    node.slow = True
    async with remote.stream("POST", f"/v1/sprites/web{below}") as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["type"] == "info"
        node.more.put_nowait(True)
        assert [json.loads(line)["type"] async for line in lines] == ["complete"]
    assert node.open_streams == 0


@pytest.mark.parametrize("kind", [ConflictError, CorruptError])
async def test_an_error_after_the_first_step_is_the_last_line(
    remote: httpx2.AsyncClient, node: NodeDouble, kind: type[BallpointError], caplog: pytest.LogCaptureFixture
) -> None:
    node.put("web")
    node.late_failure = kind("it went wrong", hint="do this")
    with caplog.at_level(logging.ERROR):
        answer = await remote.post("/v1/sprites/web/checkpoint")
    first, last = map(json.loads, answer.text.splitlines())
    assert (answer.status_code, first["type"]) == (200, "info")
    assert (last["type"], last["error"], last["hint"]) == ("error", "it went wrong", "do this")
    assert datetime.fromisoformat(last["time"]).tzinfo is not None
    request_id = answer.headers["x-request-id"]
    assert ("request_id" in last, request_id in caplog.text) == (kind.status == 500, kind.status == 500)
    assert last.get("request_id", request_id) == request_id
    assert node.open_streams == 0


async def test_a_defect_after_the_first_step_cuts_the_connection(remote: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    node.late_failure = RuntimeError("a defect")
    with pytest.raises(httpx2.RemoteProtocolError):
        await remote.post("/v1/sprites/web/checkpoint")
    assert node.open_streams == 0


async def test_a_client_that_leaves_a_checkpoint_closes_the_source(
    remote: httpx2.AsyncClient, node: NodeDouble
) -> None:
    node.put("web")
    node.slow = True
    async with remote.stream("POST", "/v1/sprites/web/checkpoint") as answer:
        await anext(answer.aiter_lines())
        assert node.open_streams == 1
    await node.closed.wait()
    assert node.open_streams == 0


async def test_an_error_that_a_verb_tells_itself_is_an_error_line() -> None:
    async def steps() -> AsyncIterator[Progress]:
        yield Progress(kind="error", data="it went wrong", time=START)

    (line,) = [json.loads(line) async for line in progress_lines(steps(), "r")]
    assert line == {"type": "error", "error": "it went wrong", "time": rfc3339(START)}


async def test_a_stream_that_is_closed_closes_its_source_at_once() -> None:
    closed = False

    async def steps() -> AsyncIterator[Progress]:
        nonlocal closed
        try:
            while True:
                yield Progress(kind="info", data="a step", time=START)
        finally:
            closed = True

    source = steps()  # held, so that no garbage collector closes it
    stream = progress_lines(source, "r")
    await anext(stream)
    await stream.aclose()
    assert closed
