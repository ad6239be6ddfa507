"""Ending a session by request: the three ways clients ask, and what becomes of those that do not obey."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ballpoint.agent.sessions.kill import Wish, parse_kill
from ballpoint.core.errors import InvalidError
from tests.acceptance.hostile import JSON
from tests.agent.world import World, alive, eventually, listen, output_until

# With a time: bash looks at its traps before it begins to read, and a signal that comes in between only ends a read.
OBEYS = "trap 'exit 9' TERM; echo on; while :; do read -t 0.1 x < {gate}; done"
DEAF = "trap '' TERM INT; echo on; while :; do read x < {gate}; done"


async def kill(world: World, session_id: str, query: str = "", body: Any = None) -> list[dict[str, Any]]:
    data = b"" if body is None else json.dumps(body).encode()
    wire = await world.wire()
    wire.send(
        f"POST /exec/{session_id}/kill{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    status, fields = await wire.head()
    assert (status, fields["content-type"]) == (200, "application/x-ndjson"), await wire.rest()
    lines = []
    while (chunk := await wire.frame()) is not None:
        lines.append(json.loads(chunk))
    wire.close()
    return lines


@pytest.mark.parametrize(
    ("query", "body", "name", "code"),
    [
        ("", None, "SIGTERM", 9),
        ("?signal=TERM&timeout=10s", None, "SIGTERM", 9),
        ("", {"signal": "SIGTERM", "timeout": 10}, "SIGTERM", 9),
        ("?signal=SIGINT", None, "SIGINT", 130),
        ("", {"signal": "USR1"}, "SIGUSR1", 138),
        ("?signal=KILL", None, "SIGKILL", 137),
        ("?signal=9", {"signal": "TERM"}, "SIGKILL", 137),
    ],
)
async def test_one_that_obeys(world: World, query: str, body: Any, name: str, code: int) -> None:
    async with world.open("bash", "-c", OBEYS.format(gate=world.gate().path)) as client:
        heard = await output_until(client, b"on\n")
        lines = await kill(world, heard.info["session_id"], query, body)
        ended = "killed" if name == "SIGKILL" else "exited"
        assert [line["type"] for line in lines] == ["signal", ended, "complete"]
        assert (lines[0]["signal"], lines[0]["pid"]) == (name, int(heard.info["session_id"]))
        assert lines[-1]["exit_code"] == code
        assert (await listen(client)).terminal == [code]


async def test_one_that_does_not(world: World) -> None:
    async with world.open("bash", "-c", DEAF.format(gate=world.gate().path)) as client:
        heard = await output_until(client, b"on\n")
        lines = await kill(world, heard.info["session_id"], "?timeout=100ms")
        assert [line["type"] for line in lines] == ["signal", "timeout", "killed", "complete"]
        assert lines[-1]["exit_code"] == 137
        assert (await listen(client)).terminal == [137]


async def test_a_signal_and_no_more(world: World) -> None:
    async with world.open("bash", "-c", DEAF.format(gate=world.gate().path)) as client:
        heard = await output_until(client, b"on\n")
        lines = await kill(world, heard.info["session_id"], "?timeout=0s&signal=INT")
        assert [line["type"] for line in lines] == ["signal", "complete"]
        assert "exit_code" not in lines[-1]
        assert len(world.sessions) == 1
        await kill(world, heard.info["session_id"], "?signal=KILL")
        await listen(client)


async def test_whoever_left_its_group_is_killed_too(world: World) -> None:
    """A shell with job control gives each job a group of its own; they stay in its session."""
    script = "set -m; sleep 600 & echo $!; sleep 601 & echo $!; echo on; wait"
    async with world.open("bash", "-c", script) as client:
        heard = await output_until(client, b"on\n")
        children = [int(line) for line in heard.stdout.split()[:2]]
        assert all(map(alive, children))
        await kill(world, heard.info["session_id"], "?signal=KILL")
        await eventually(lambda: not any(map(alive, children)))
        await listen(client)


async def test_it_goes_on_when_its_client_leaves(world: World) -> None:
    async with world.open("bash", "-c", DEAF.format(gate=world.gate().path)) as client:
        heard = await output_until(client, b"on\n")
        wire = await world.wire()
        wire.send(f"POST /exec/{heard.info['session_id']}/kill?timeout=200ms HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await wire.head())[0] == 200
        wire.close()
        assert (await listen(client)).terminal == [137]


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("?signal=NOPE", b""),
        ("?signal=0", b""),
        ("?signal=65", b""),
        ("?timeout=soon", b""),
        ("?timeout=-1s", b""),
        ("?timeout=10000h", b""),
        ("", b"[]"),
        ("", b"{"),
        ("", b'{"timeout": true}'),
        ("", b'{"timeout": []}'),
        ("", b'{"timeout": -1}'),
        ("", b'{"signal": {}}'),
    ],
)
async def test_what_is_no_wish_is_refused_and_nothing_sent(world: World, query: str, body: bytes) -> None:
    async with world.open("bash", "-c", "trap 'exit 9' TERM; echo on; read x", stdin="true") as client:
        heard = await output_until(client, b"on\n")
        fields = {"Content-Length": str(len(body))}
        answer = await world.ask(f"POST /exec/{heard.info['session_id']}/kill{query}", fields, body)
        assert (answer.status, answer.json["error"]) == (400, "invalid")
        await client.send(b"\0\n")
        assert (await listen(client)).terminal == [0]


async def test_too_much_is_refused(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        (session,) = world.sessions
        body = b'"' + b"x" * 70000 + b'"'
        answer = await world.ask(f"POST /exec/{session.id}/kill", {"Content-Length": str(len(body))}, body)
        assert answer.status == 413
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


@given(
    st.text(max_size=40),
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["signal", "timeout"]), JSON).map(lambda said: json.dumps(said).encode()),
)
@example("", b'{"timeout": 1' + b"0" * 400 + b"}")
def test_any_wish_is_one_or_is_refused(query: str, body: bytes) -> None:
    try:
        wish = parse_kill(query, body)
    except InvalidError:
        return
    assert isinstance(wish, Wish)
    assert 0 < wish.number < 65
    assert 0 <= wish.timeout <= 3600
