"""Commands one after the other on a control socket, as each of the official clients sends them (contract 3.7)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests.agent.world import DEADLINE, World, eventually, output_until

GO = "sprites-go-sdk/1.0"


class Operation:
    """What a client hears of one operation.

    Attributes:
        told: the messages in their order: "info", "out", "err", "exit", "text exit", "complete", "error".
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.info: dict[str, Any] = {}
        self.stdout = self.stderr = b""
        self.codes: list[int] = []
        self.error = ""


async def start(client: ClientConnection, cmd: list[str], **arguments: Any) -> None:
    message = {"type": "op.start", "op": "exec", "args": {"cmd": cmd, **arguments}}
    await client.send("control:" + json.dumps(message))


async def hear(client: ClientConnection, tty: bool = False) -> Operation:
    """All of an operation, up to its end."""
    heard = Operation()
    async with asyncio.timeout(DEADLINE):
        while heard.told[-1:] not in (["complete"], ["error"]):
            message = await client.recv()
            if isinstance(message, str):
                _text(heard, message)
            elif tty:
                heard.told.append("out")
                heard.stdout += message
            elif message[0] == 1:
                heard.told.append("out")
                heard.stdout += message[1:]
            elif message[0] == 2:
                heard.told.append("err")
                heard.stderr += message[1:]
            else:
                assert message[0] == 3
                heard.told.append("exit")
                heard.codes.append(message[1])
    return heard


def _text(heard: Operation, message: str) -> None:
    if not message.startswith("control:"):
        content = json.loads(message)
        if content["type"] == "session_info":
            heard.told.append("info")
            heard.info = content
        else:
            assert content["type"] == "exit"
            heard.told.append("text exit")
            heard.codes.append(content["exit_code"])
        return
    content = json.loads(message.removeprefix("control:"))
    heard.told.append(content["type"].removeprefix("op."))
    if content["type"] == "op.complete":
        heard.codes.append(content["args"]["exitCode"])
    else:
        heard.error = content["args"]["error"]


async def test_one_after_the_other(world: World) -> None:
    async with world.control() as client:
        for code in range(5):
            await start(client, ["sh", "-c", f"echo {code}; echo e >&2; exit {code}"], stdin="false")
            await client.send(b"\4")
            heard = await hear(client)
            assert (heard.stdout, heard.stderr, heard.codes) == (b"%d\n" % code, b"e\n", [code, code])
            assert heard.told[0] == "info"
            assert heard.told[-2:] == ["exit", "complete"]
            assert heard.info["session_id"] != "0"


async def test_input_and_environment(world: World) -> None:
    async with world.control() as client:
        await start(client, ["sh", "-c", "cat; echo $A; pwd"], stdin="true", env=["A=x y"], dir="/usr/lib")
        for part in (b"\0one ", b"\0two\n", b"\4"):
            await client.send(part)
        assert (await hear(client)).stdout == b"one two\nx y\n/usr/lib\n"


async def test_input_of_the_client_that_gives_none_a_first_byte(world: World) -> None:
    """Known by what it calls itself, or by an argument that only it sends; `\\4` alone is the end of its input."""
    for agent, path in ((GO, {}), (None, {"path": "cat"})):
        async with world.control(agent) as client:
            await start(client, ["cat"], stdin="true", **path)
            for part in (b"\0one ", b"\4two", b'{"type": "resize"}', b"\4"):
                await client.send(part)
            heard = await hear(client)
            assert heard.stdout == b'\0one \4two{"type": "resize"}'
            await client.send('{"type": "release"}')
            await start(client, ["echo", "again"], **({"path": "echo"} if path else {}))
            assert (await hear(client)).stdout == b"again\n"


async def test_a_terminal(world: World) -> None:
    async with world.control() as client:
        for resize in ('{"type": "resize", "rows": 33, "cols": 44}', b'{"type": "resize", "rows": 33, "cols": 44}'):
            await start(client, ["sh", "-c", "stty size; read x; stty size; exit 5"], tty="true", rows="20", cols="70")
            await client.send(resize)
            await client.send(b"\r")
            heard = await hear(client, tty=True)
            assert heard.stdout.endswith(b"33 44\r\n")
            assert heard.told[-2:] == ["text exit", "complete"]
            assert heard.codes == [5, 5]
            assert heard.info["tty"] is True


async def test_a_signal_as_a_binary_message(world: World) -> None:
    async with world.control() as client:
        await start(client, ["sh", "-c", "exec sleep 600"])
        await client.send(json.dumps({"type": "signal", "signal": "TERM"}).encode())
        assert (await hear(client)).codes == [143, 143]


async def test_what_cannot_be_started_fails_as_a_command(world: World) -> None:
    async with world.control() as client:
        await start(client, ["no-such-program"])
        heard = await hear(client)
        assert heard.codes == [127, 127]
        assert b"command not found" in heard.stderr
        await start(client, ["true"])
        assert (await hear(client)).codes == [0, 0]


async def test_a_session_is_attached_to(world: World) -> None:
    async with world.open("sh", "-c", "echo one; cat; exit 3", stdin="true") as other, world.control(GO) as client:
        info = (await output_until(other, b"one\n")).info
        message = {"type": "op.start", "op": "exec", "args": {"id": info["session_id"], "since": "1"}}
        await client.send("control:" + json.dumps(message))
        await client.send(b"two\n")
        await output_until(other, b"two\n")
        await other.send(b"\4")
        heard = await hear(client)
        assert (heard.stdout, heard.codes) == (b"ne\ntwo\n", [3, 3])
        assert heard.info["is_owner"] is False
        message["args"] = {"id": "9999999"}
        await client.send("control:" + json.dumps(message))
        assert (await hear(client)).error == "there is no such session"


@pytest.mark.parametrize(
    "message",
    [
        "control:",
        "control:{",
        "control:[]",
        'control:{"type": "op.stop"}',
        'control:{"type": "op.start"}',
        'control:{"type": "op.start", "op": "fly"}',
        'control:{"type": "op.start", "op": "exec", "args": {"cmd": [""]}}',
        'control:{"type": "op.start", "op": "exec", "args": {"cmd": ["true"], "env": ["x"]}}',
        'control:{"type": "op.start", "op": "exec", "args": {"cmd": ["true"], "rows": "many", "tty": "true"}}',
    ],
)
async def test_nonsense_is_refused_and_starts_nothing(world: World, message: str) -> None:
    async with world.control() as client:
        await client.send(message)
        assert (await hear(client)).error
        assert world.started == 0
        await start(client, ["true"])
        assert (await hear(client)).codes == [0, 0]


async def test_one_at_a_time(world: World) -> None:
    async with world.control() as client:
        await start(client, ["cat"], stdin="true")
        await start(client, ["echo", "second"])
        refusal = await hear(client)
        assert refusal.told == ["info", "error"]
        assert world.started == 1
        await client.send(b"\4")
        assert (await hear(client)).codes == [0, 0]


async def test_what_crosses_the_end_of_a_command_does_not_reach_the_next(world: World) -> None:
    async with world.control() as client:
        await start(client, ["true"])
        await hear(client)
        for late in (b"\0late\n", b"\4", b"", '{"type": "signal", "signal": "KILL"}', "{", "[]"):
            await client.send(late)
        await start(client, ["cat"], stdin="true")
        for part in (b"\0mine\n", b"\4"):
            await client.send(part)
        heard = await hear(client)
        assert (heard.stdout, heard.codes) == (b"mine\n", [0, 0])


async def test_an_operation_in_the_query_begins_at_once(world: World) -> None:
    async with world.control(op="exec", cmd=["sh", "-c", "echo $0 $1", "a b", "c"]) as client:
        heard = await hear(client)
        assert (heard.stdout, heard.codes) == (b"a b c\n", [0, 0])


async def test_a_form_that_is_served_elsewhere_is_told_so(world: World) -> None:
    async with world.control(GO) as client:
        await client.send(json.dumps({"type": "op.start", "op": "fs.read", "args": "path=x"}))
        async with asyncio.timeout(DEADLINE):
            answer = json.loads(await client.recv())
        assert answer["type"] == "op.error"


async def test_a_client_that_leaves_in_the_middle(world: World) -> None:
    async with world.control() as client:
        await start(client, ["sleep", "600"], max_run_after_disconnect="10ms")
        await eventually(lambda: world.started == 1)
    await eventually(lambda: len(world.sessions) == 0)


async def test_no_control_socket_over_http(world: World) -> None:
    assert (await world.ask("GET /control")).status == 400


async def test_much_output_and_a_slow_client(world: World) -> None:
    size = 4 << 20
    async with world.control() as client:
        for _ in range(2):
            await start(client, ["head", "-c", str(size), "/dev/zero"])
            heard = await hear(client)
            assert (len(heard.stdout), heard.codes) == (size, [0, 0])
