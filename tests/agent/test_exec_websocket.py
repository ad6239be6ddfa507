"""Exec over WebSocket: frames, streams, terminal, environment, keep-alive."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
from websockets.asyncio.client import ClientConnection

from ballpoint.agent import websocket
from ballpoint.agent.sessions.frames import PAYLOAD_MAX
from tests.agent.world import World, listen, output_until


async def test_a_command(world: World) -> None:
    heard = await world.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert heard.told == (b"out\n", b"err\n", [3], b"")
    assert heard.close_code == 1000
    assert isinstance(heard.info["session_id"], str)
    assert heard.info["command"] == "sh -c echo out; echo err >&2; exit 3"
    assert (heard.info["is_owner"], heard.info["tty"]) == (True, False)
    assert isinstance(heard.info["created"], int)


async def test_capabilities_are_told(world: World) -> None:
    async with world.open("true") as client:
        assert client.response is not None
        assert client.response.headers["X-Sprite-Capabilities"] == "signal"


async def test_large_streams_are_apart_and_whole(world: World) -> None:
    heard = await world.run("sh", "-c", "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; exit 5")
    assert (len(heard.stdout), len(heard.stderr), heard.terminal) == (3000000, 2000000, [5])
    assert max(len(data) for _, data in heard.frames) <= PAYLOAD_MAX


async def test_binary_output_is_exact(world: World) -> None:
    data = bytes(range(256)) * 500
    heard = await world.run("cat", stdin="true", send=[b"\0" + data, b"\4"])
    assert heard.told == (data, b"", [0], b"")


async def test_input_ends_only_by_its_end(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        for line in (b"one\n", b"two\n", b"", b"three\n"):
            await client.send(b"\0" + line)
            if line:
                await output_until(client, line)
        await client.send(b"\4")
        assert (await listen(client)).told == (b"", b"", [0], b"")


async def test_without_input_a_reader_ends_at_once(world: World) -> None:
    assert (await world.run("cat")).told == (b"", b"", [0], b"")
    # Two clients send an end of input nobody asked for, one of them data.
    assert (await world.run("cat", stdin="false", send=[b"\0lost", b"\4", b"\4"])).told == (b"", b"", [0], b"")


async def test_input_for_who_reads_none(world: World) -> None:
    gate = world.gate()
    script = f"exec 0<&-; echo ready; read x < {gate.path}; echo done"
    async with world.open("sh", "-c", script, stdin="true") as client:
        await output_until(client, b"ready\n")
        for _ in range(10):
            await client.send(b"\0" + bytes(100_000))
        gate.open()
        assert (await listen(client)).told == (b"done\n", b"", [0], b"")


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "term", "15", 15])
async def test_signals(world: World, name: object) -> None:
    async with world.open(
        "sh", "-c", "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    ) as client:
        await output_until(client, b"ready\n")
        await client.send(json.dumps({"type": "signal", "signal": name}))
        heard = await listen(client)
        assert (heard.stdout, heard.terminal) == (b"got it\n", [7])


async def test_a_signal_reaches_the_whole_group(world: World) -> None:
    async with world.open("sh", "-c", "sleep 600 & echo ready; wait") as client:
        await output_until(client, b"ready\n")
        await client.send(json.dumps({"type": "signal", "signal": "KILL"}))
        assert (await listen(client)).terminal == [128 + signal.SIGKILL]


async def test_a_signal_that_comes_before_the_group_is_there(world: World) -> None:
    world.spawner.late = world.gate()
    async with world.open("sleep", "600") as client:
        await client.recv()
        await client.send(json.dumps({"type": "signal", "signal": "TERM"}))
        assert (await listen(client)).terminal == [128 + signal.SIGTERM]


async def test_terminal(world: World) -> None:
    heard = await world.run("sh", "-c", "stty size; tty; exit 5", tty="true", rows="30", cols="99")
    rows, cols, device = heard.stdout.split()
    assert (rows, cols) == (b"30", b"99")
    assert device.startswith(b"/dev/pts/")
    assert (heard.terminal, heard.close_code, heard.after) == ([5], 4005, b"")
    assert (heard.info["tty"], heard.info["rows"], heard.info["cols"]) == (True, 30, 99)
    good = await world.run("true", tty="true")
    assert (good.terminal, good.close_code) == ([0], 1000)
    assert (good.info["rows"], good.info["cols"]) == (24, 80)


async def test_terminal_output_is_whole(world: World) -> None:
    heard = await world.run("sh", "-c", "stty -opost; head -c 1000000 /dev/zero", tty="true")
    assert (len(heard.stdout), heard.terminal) == (1000000, [0])


async def test_typing(world: World) -> None:
    async with world.open("cat", tty="true") as client:
        await client.send(b"hello\n")
        await output_until(client, b"hello\r\nhello\r\n", tty=True)
        await client.send(b"\4")  # what a user's Ctrl-D is
        assert (await listen(client, tty=True)).terminal == [0]


async def test_interrupt_key(world: World) -> None:
    async with world.open("sh", "-c", "echo ready; exec sleep 600", tty="true") as client:
        await output_until(client, b"ready\r\n", tty=True)
        await client.send(b"\3")
        assert (await listen(client, tty=True)).terminal == [128 + signal.SIGINT]


async def test_resize(world: World) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    async with world.open("sh", "-c", script, tty="true") as client:
        await output_until(client, b"ready\r\n", tty=True)
        await client.send(json.dumps({"type": "resize", "rows": 50, "cols": 132}))
        heard = await listen(client, tty=True)
        assert (heard.stdout, heard.terminal) == (b"50 132\r\n", [0])


async def test_resize_without_a_terminal_is_nothing(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        await client.send(json.dumps({"type": "resize", "rows": 50, "cols": 132}))
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


async def test_environment_is_merged(world: World) -> None:
    heard = await world.run("sh", "-c", "echo $COLOR/$HOME/$A/$B", env=["A=1", "B=x=y z", "COLOR=red"])
    assert heard.stdout == b"red//root/1/x=y z\n"
    assert (await world.run("sh", "-c", "echo $COLOR:$TERM")).stdout == b"blue:\n"
    assert (await world.run("sh", "-c", "echo $TERM", tty="true")).stdout == b"xterm-256color\r\n"
    assert (await world.run("sh", "-c", "echo $TERM", tty="true", env="TERM=dumb")).stdout == b"dumb\r\n"


async def test_bytes_that_are_no_text(world: World) -> None:
    heard = await world.run("printf", "%s", "\udcff\udc80ü", env="X=\udcfe")
    assert heard.stdout == b"\xff\x80" + "ü".encode()


async def test_directory(world: World) -> None:
    assert (await world.run("pwd", dir="/usr/lib")).stdout == b"/usr/lib\n"
    heard = await world.run("pwd", dir="/nowhere")
    assert (heard.stdout, heard.terminal) == (b"", [126])
    assert b"No such file or directory" in heard.stderr


async def test_path_is_run_under_the_name_of_the_first_argument(world: World) -> None:
    heard = await world.run("another", "-c", "echo $0", path="sh")
    assert (heard.stdout, heard.terminal) == (b"another\n", [0])


async def test_no_command_is_a_shell(world: World) -> None:
    heard = await world.run(stdin="true", send=[b"\0echo $((6 * 7)); exit 4\n"])
    assert heard.told == (b"42\n", b"", [4], b"")
    assert heard.info["command"] == "bash"


async def test_old_parameters_are_ignored(world: World) -> None:
    assert (await world.run("true", detachable="true", cc="true", id="12", other="x")).terminal == [0]


async def test_pings_are_answered(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        async with asyncio.timeout(30):
            await (await client.ping(b"there?"))
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


async def idle_frame(client: ClientConnection) -> None:
    async with asyncio.timeout(30):
        while await client.recv() != b"":
            pass


async def test_an_idle_socket_is_kept_alive_by_data(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client counts neither pings nor what it sends itself."""
    monkeypatch.setattr(websocket, "_KEEPALIVE_SECONDS", 0.3)
    async with world.open("sh", "-c", "cat > /dev/null", stdin="true") as client:

        async def talk() -> None:
            while True:
                await client.send(b"\0more")
                await client.ping()
                await asyncio.sleep(0.02)

        talking = asyncio.create_task(talk())
        await idle_frame(client)
        await idle_frame(client)
        talking.cancel()
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]


async def test_messages_in_many_frames(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        await client.send([b"\0", b"one ", b"", b"two"])
        await client.send([b"\4"])
        assert (await listen(client)).told == (b"one two", b"", [0], b"")
