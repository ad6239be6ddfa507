"""Commands and sessions, each over a connection of its own and in control mode."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sprites import session as sessions
from sprites import websocket
from sprites.exceptions import ExecError, TimeoutError

from tests.sdk.table import Kit, row
from tests.support.raw import Cursors, watch

_BOTH_STREAMS = ("sh", "-c", "echo out; echo err >&2; exit 7")


async def assert_way(kit: Kit, sprite: object) -> None:
    """Assert that commands went the way the client is set to: nothing fell back from control mode."""
    assert await kit.do(sprite.use_control_mode) == kit.control  # type: ignore[attr-defined]
    assert await kit.do(sprite.has_control_connection) == kit.control  # type: ignore[attr-defined]


@row("Sprite.run", "run", "exec.CompletedProcess", "websocket.run_ws_command", commands=True)
async def run(kit: Kit) -> None:
    sprite = kit.sprite
    done = await kit.do(sprite.run, *_BOTH_STREAMS, capture_output=True)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (list(_BOTH_STREAMS), 7, b"out\n", b"err\n")
    plain = await kit.do(sprite.run, "true")
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, None, None)
    await assert_way(kit, sprite)


@row("Sprite.run", "run", commands=True)
async def where_a_command_runs(kit: Kit) -> None:
    sprite = kit.sprite
    script = 'echo "$GREETING|$HOME"; pwd; id -un'
    done = await kit.do(
        sprite.run, "sh", "-c", script, capture_output=True, env={"GREETING": "grüß = dich"}, cwd="/usr/lib"
    )
    assert done.stdout.decode() == "grüß = dich|/home/sprite\n/usr/lib\nsprite\n"
    assert (await kit.do(sprite.run, "pwd", capture_output=True)).stdout == b"/home/sprite\n"
    await assert_way(kit, sprite)


@row("Sprite.run", "run", commands=True)
async def what_cannot_be_run(kit: Kit) -> None:
    sprite = kit.sprite
    missing = await kit.do(sprite.run, "no-such-program", capture_output=True)
    assert missing.returncode == 127 and b"no-such-program" in missing.stderr
    assert (await kit.do(sprite.run, "/etc/passwd", capture_output=True)).returncode == 126
    assert (await kit.do(sprite.run, "sh", "-c", "kill -KILL $$")).returncode == 128 + 9
    await assert_way(kit, sprite)


@row("Sprite.run", "run", commands=True)
async def much_output(kit: Kit) -> None:
    sprite = kit.sprite
    done = await kit.do(sprite.run, "head", "-c", str(12 << 20), "/dev/zero", capture_output=True)
    assert (done.returncode, done.stdout) == (0, bytes(12 << 20))
    await assert_way(kit, sprite)


@row("Sprite.run", "run", commands=True)
async def a_terminal(kit: Kit) -> None:
    sprite = kit.sprite
    done = await kit.do(sprite.run, "stty", "size", capture_output=True, tty=True, tty_rows=30, tty_cols=101)
    assert (done.returncode, done.stdout) == (0, b"30 101\r\n")
    done = await kit.do(
        sprite.run, "sh", "-c", "test -t 0 && test -t 1; echo $?; exit 5", capture_output=True, tty=True
    )
    assert (done.returncode, done.stdout) == (5, b"0\r\n")
    await assert_way(kit, sprite)


@row("Sprite.run", "run", "exceptions.ExecError", "exceptions.ExecError.exit_code", commands=True)
async def a_failure_that_is_checked(kit: Kit) -> None:
    with pytest.raises(ExecError) as failed:
        await kit.do(kit.sprite.run, *_BOTH_STREAMS, capture_output=True, check=True)
    assert (failed.value.exit_code(), failed.value.stdout, failed.value.stderr) == (7, b"out\n", b"err\n")
    assert (await kit.do(kit.sprite.run, "true", check=True)).returncode == 0


@row("Sprite.run", "run", "exceptions.TimeoutError", commands=True)
async def a_command_that_takes_too_long(kit: Kit) -> None:
    with pytest.raises(TimeoutError):
        await kit.do(kit.sprite.run, "sleep", "600", timeout=0.5)


@row("Sprite.command", "Cmd", "Cmd.run", "Cmd.exit_code", commands=True)
async def a_command(kit: Kit) -> None:
    sprite = kit.sprite
    out, err = io.BytesIO(), io.BytesIO()
    script = "cat; echo err >&2; exit 3"
    command = sprite.command("sh", "-c", script, stdin=io.BytesIO(b"x" * 9000 + b"\n"), stdout=out, stderr=err)
    assert command.exit_code == -1
    with pytest.raises(ExecError) as failed:
        await kit.do(command.run)
    assert (failed.value.exit_code(), command.exit_code) == (3, 3)
    # In control mode the SDK writes to no sink: what came is in the exception only.
    written = (out.getvalue(), err.getvalue())
    assert written == ((b"", b"") if kit.control else (b"x" * 9000 + b"\n", b"err\n"))
    assert failed.value.stderr == b"err\n"
    with pytest.raises(RuntimeError, match="already started"):
        await kit.do(command.run)
    await assert_way(kit, sprite)


@row("Cmd.output", "Cmd.combined_output", "Cmd.set_tty", "Cmd.set_tty_size", commands=True)
async def outputs(kit: Kit) -> None:
    sprite = kit.sprite
    assert await kit.do(sprite.command("sh", "-c", "cat; echo err >&2", stdin=io.BytesIO(b"in")).output) == b"in"
    assert await kit.do(sprite.command("sh", "-c", "echo err >&2; echo out").combined_output) == b"out\nerr\n"
    with pytest.raises(ExecError) as failed:
        await kit.do(sprite.command(*_BOTH_STREAMS).combined_output)
    assert (failed.value.exit_code(), failed.value.stdout) == (7, b"out\nerr\n")
    command = sprite.command("stty", "size")
    command.set_tty(True)
    command.set_tty_size(40, 99)
    assert await kit.do(command.output) == b"40 99\r\n"
    # A terminal has no end of input but what is typed.
    typed = sprite.command("sh", "-c", "stty -echo; cat", tty=True, stdin=io.BytesIO(b"typed\n\x04"))
    assert b"typed\r\n" in await kit.do(typed.output)
    await assert_way(kit, sprite)


@asynccontextmanager
async def a_session(kit: Kit, *argv: str, **query: str) -> AsyncIterator[str]:
    """The id of a session that `argv` runs in, while another client watches it, too."""
    cursors = Cursors()
    with await asyncio.to_thread(watch, kit.node, kit.name, None, cursors, cmd=list(argv), **query) as connection:
        cursors.take(await asyncio.to_thread(connection.recv, 60))
        yield cursors.info["session_id"]


@row("Sprite.attach_session", "Cmd", "Cmd.output")
async def attach(kit: Kit) -> None:
    async with a_session(kit, "sh", "-c", "echo before; cat; exit 3", stdin="true") as session:
        command = kit.sprite.attach_session(session, timeout=60)
        command.stdin = io.BytesIO(b"more\n")
        with pytest.raises(ExecError) as failed:
            await kit.do(command.output)
        assert (failed.value.exit_code(), failed.value.stdout) == (3, b"before\nmore\n")
    async with a_session(kit, "sh", "-c", "echo before; read -r line; exit 4", tty="true") as session:
        command = kit.sprite.attach_session(session)
        command.stdin = io.BytesIO(b"\n")
        with pytest.raises(ExecError) as failed:
            await kit.do(command.output)
        assert failed.value.exit_code() == 4 and b"before\r\n" in failed.value.stdout
        assert command.tty  # it took that over


@row("Sprite.list_sessions", "types.Session")
async def list_sessions(kit: Kit) -> None:
    async with a_session(kit, "sleep", "601", dir="/usr", max_run_after_disconnect="1ms") as session:
        found = {each.id: each for each in await kit.do(kit.sprite.list_sessions)}[session]
        assert (found.command.split("/")[-1], found.workdir) == ("sleep 601", "/usr")
        assert (found.is_active, found.tty, found.bytes_per_second) == (True, False, 0)
        assert found.created.tzinfo is not None


@row(
    "session.list_sessions", "session.kill_session", "session.KillStream", "session.KillStream.process_all",
    "session.KillStream.close", "types.StreamMessage", kinds=("sync",),
)  # fmt: skip
async def kill_session(kit: Kit) -> None:
    sprite = kit.sprite
    async with a_session(kit, "sleep", "602") as session:
        assert session in [each.id for each in await kit.do(sessions.list_sessions, sprite)]
        with await kit.do(sessions.kill_session, sprite, session, signal="SIGTERM", timeout=20) as stream:
            heard: list[str] = []
            stream.process_all(lambda message: heard.append(message.type))
            assert heard == ["signal", "exited", "complete"] == [message.type for message in stream]
        assert session not in [each.id for each in await kit.do(sessions.list_sessions, sprite)]


@row(
    "websocket.WSCommand", "websocket.WSCommand.start", "websocket.WSCommand.resize", "websocket.WSCommand.wait",
    "websocket.WSCommand.close", "websocket.WSCommand.get_stdout", "websocket.WSCommand.get_stderr",
    "websocket.StreamID", kinds=("async",),
)  # fmt: skip
async def a_websocket_of_its_own(kit: Kit) -> None:
    script = "trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.05; done"
    command = websocket.WSCommand(kit.sprite.command("sh", "-c", script, tty=True))
    await command.start()
    while b"ready" not in command.get_stdout():
        await asyncio.sleep(0.01)
    await command.resize(cols=77, rows=33)
    assert await command.wait() == 6
    assert b"33 77\r\n" in command.get_stdout() and command.get_stderr() == b""
    await command.close()


@row("websocket.run_ws_command", "websocket.run_ws_command_via_control", kinds=("async",))
async def functions_below_a_command(kit: Kit) -> None:
    sprite = kit.sprite
    assert await websocket.run_ws_command(sprite.command("sh", "-c", "exit 8")) == 8
    assert not sprite.has_control_connection()
    assert await websocket.run_ws_command_via_control(sprite.command("sh", "-c", "exit 9")) == 9
    assert sprite.has_control_connection()
