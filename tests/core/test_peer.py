"""Two sides of a connection, of which one may be hostile: it ends the connection, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from ballpoint.core import wire
from ballpoint.core.errors import InternalError, UnavailableError
from ballpoint.core.peer import Peer

SECONDS = 30.0


async def echo(message: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
    return message["op"], []


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[tuple[Peer, socket.socket]]:
    """A peer, and the bare socket of the other side."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    made = Peer(ours, serve=echo)
    yield made, theirs
    made.close()
    theirs.close()


async def received(sock: socket.socket) -> dict[str, Any]:
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, readable.set)
    try:
        async with asyncio.timeout(SECONDS):
            await readable.wait()
    finally:
        loop.remove_reader(sock)
    return wire.receive(sock)[0]


@pytest.mark.parametrize("said", ["\ud800", "x" * 100_000, ["\udfff"], {"a": None}, None, 5])
async def test_a_reason_is_text_that_can_be_written_down(ends: tuple[Peer, socket.socket], said: object) -> None:
    peer, theirs = ends
    asking = asyncio.create_task(peer.call("what", seconds=SECONDS))
    wire.send(theirs, {"id": (await received(theirs))["id"], "error": said}, [])
    with pytest.raises(InternalError) as refused:
        await asking
    text = str(refused.value)
    assert 0 < len(text.encode()) < 5000


@pytest.mark.parametrize("number", ["1", None, [[]], {"a": 1}, True, 1.5, "deep"])
async def test_who_numbers_his_requests_with_something_else_is_heard_no_more(
    ends: tuple[Peer, socket.socket], number: object
) -> None:
    """Which would have to be sent back to him: a nested one can be too deep for that, and no answer would pass it."""
    peer, theirs = ends
    if number == "deep":
        theirs.send(b'{"op": "x", "id": ' + b"[" * 900 + b"]" * 900 + b"}")
    else:
        wire.send(theirs, {"op": "x", "id": number}, [])
    assert await received(theirs) == {}
    assert peer.closed


async def test_what_cannot_be_sent_keeps_nothing_back(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecursionError):
        await peer.call("deep", seconds=SECONDS, nested=nested)
    with pytest.raises(TypeError):
        await peer.call("strange", seconds=SECONDS, object=object())
    asking = asyncio.create_task(peer.call("well", seconds=SECONDS))
    message = await received(theirs)
    assert message["op"] == "well"
    wire.send(theirs, {"id": message["id"], "ok": 7}, [])
    assert await asking == (7, [])
    wire.send(theirs, {"op": "back", "id": 1}, [])
    assert await received(theirs) == {"id": 1, "ok": "back"}
    theirs.close()
    with pytest.raises(UnavailableError):
        await peer.call("late", seconds=SECONDS)
