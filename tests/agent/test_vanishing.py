"""A client that vanishes: the process goes on for a while, then ends; nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from ballpoint.agent.sessions import session as sessions
from tests.agent.world import World, alive, eventually, output_until, post_head


def trapping(result: Path, then: str = "exit") -> str:
    return f"trap 'echo term > {result}; {then}' TERM; echo ready; while :; do sleep 0.01; done"


async def vanish(world: World, *argv: str, **query: str) -> int:
    """Run a command until it is ready, and vanish. Returns its pid."""
    tty = query.get("tty") == "true"
    async with world.open(*argv, **query) as client:
        info = await output_until(client, b"ready", tty)
        client.transport.abort()
    return int(info.info["session_id"])


async def ended(world: World) -> None:
    await eventually(lambda: len(world.sessions) == 0)


@pytest.mark.parametrize("tty", ["false", "true"])
async def test_it_is_told_to_end(world: World, tmp_path: Path, tty: str) -> None:
    result = tmp_path / "result"
    await vanish(world, "sh", "-c", trapping(result), tty=tty, max_run_after_disconnect="10ms")
    await ended(world)
    assert result.read_text() == "term\n"


async def test_it_is_told_to_end_over_http(world: World, tmp_path: Path) -> None:
    result = tmp_path / "result"
    wire = await world.posted("sh", "-c", trapping(result), max_run_after_disconnect="10ms")
    assert await wire.frame() == b"\1ready\n"
    wire.writer.transport.abort()
    await ended(world)
    assert result.read_text() == "term\n"


async def test_an_end_of_what_the_client_sends_is_its_end(world: World, tmp_path: Path) -> None:
    result = tmp_path / "result"
    wire = await world.posted("sh", "-c", trapping(result), max_run_after_disconnect="10ms")
    assert await wire.frame() == b"\1ready\n"
    wire.writer.write_eof()
    await ended(world)
    wire.close()


async def test_it_is_killed_if_it_does_not_listen(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_KILL_AFTER_SECONDS", 3.0)
    result = tmp_path / "result"
    pid = await vanish(world, "sh", "-c", trapping(result, ":"), max_run_after_disconnect="10ms")
    await ended(world)
    assert result.read_text() == "term\n"
    assert not alive(pid)


async def test_its_children_are_told_as_well(world: World, tmp_path: Path) -> None:
    saved = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {saved}; echo ready; wait"
    await vanish(world, "sh", "-c", script, max_run_after_disconnect="10ms")
    await ended(world)
    await eventually(lambda: not alive(int(saved.read_text())))


@pytest.mark.parametrize("query", [{"max_run_after_disconnect": "0"}, {"tty": "true"}, {}])
async def test_it_goes_on_meanwhile(world: World, tmp_path: Path, query: dict[str, str]) -> None:
    """For ever with 0 or a terminal, for ten seconds else; its output is dropped and holds nothing up."""
    gate, result = world.gate(), tmp_path / "result"
    script = f"trap '' HUP; echo ready; read x < {gate.path}; head -c 5000000 /dev/zero; echo $? > {result}"
    await vanish(world, "sh", "-c", script, **query)
    await vanish(world, "sh", "-c", "echo ready; exec sleep 600", max_run_after_disconnect="50ms")
    await eventually(lambda: len(world.sessions) == 1)
    listing = (await world.ask("GET /exec")).json["sessions"]
    assert [session["is_active"] for session in listing] == [False]
    gate.open()
    await ended(world)
    assert result.read_text() == "0\n"


async def test_in_the_middle_of_output_it_did_not_read(world: World, tmp_path: Path) -> None:
    result = tmp_path / "result"
    script = f"head -c 20000000 /dev/zero; echo $? > {result}"
    wire = await world.posted("sh", "-c", script)
    await wire.frame()
    wire.writer.transport.abort()
    await ended(world)
    assert result.read_text() == "0\n"


async def test_while_its_input_is_held_back_http(world: World) -> None:
    """Where nothing is read from a client, its end is noticed all the same."""
    sock = world.connected()
    query = {"stdin": "true", "max_run_after_disconnect": "10ms"}
    sock.sendall(post_head(["sleep", "600"], query, "Content-Length: 100000000"))
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await loop.sock_sendall(sock, bytes(65536))
    assert len(world.sessions) == 1
    sock.close()
    await ended(world)


async def test_while_its_input_is_held_back_websocket(world: World) -> None:
    async with world.open("sh", "-c", "echo ready; sleep 600", stdin="true", max_run_after_disconnect="10ms") as client:
        await output_until(client, b"ready\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await client.send(b"\0" + bytes(65536))
        client.transport.abort()
    await ended(world)


async def test_before_it_has_started(world: World) -> None:
    for _ in range(20):
        sock = world.connected()
        sock.sendall(post_head(["sleep", "600"], {"max_run_after_disconnect": "1ms"}))
        sock.close()
    await eventually(lambda: world.started == 20)
    await ended(world)


async def test_half_a_request(world: World) -> None:
    for part in (b"", b"P", b"POST /exec?cmd=true HTTP/1.1\r\nHost:"):
        wire = (await world.wire()).send(part)
        wire.writer.write_eof()
        assert await wire.rest() == b""
        wire.close()
    assert len(world.sessions) == 0


async def test_while_the_exit_is_told(world: World) -> None:
    for number in range(50):
        with suppress(ConnectionClosed):
            async with world.open("sh", "-c", "head -c 300000 /dev/zero; exit 3") as client:
                for _ in range(number % 8):
                    await client.recv()
                client.transport.abort()
    await ended(world)


async def test_signals_to_the_dead_change_nothing(world: World) -> None:
    wire = await world.posted("sh", "-c", "echo ready; exec sleep 600")
    await wire.frame()
    session = world.sessions.get(str(world.saved[0]["pid"]))
    assert session is not None
    assert session.signal(signal.SIGKILL)
    assert (await wire.frames()).terminal == [128 + signal.SIGKILL]
    wire.close()
    assert not session.signal(signal.SIGKILL)
