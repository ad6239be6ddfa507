"""Control connections: many commands on one WebSocket, by the parts that the SDK shows."""

from __future__ import annotations

import asyncio

from sprites import control
from sprites.control import ControlConnection, ControlPool

from tests.sdk.table import Kit, row

_CONNECTION = ("connect", "start_op", "is_closed", "close")
_OPERATION = ("write", "send_eof", "wait", "is_closed", "get_exit_code", "get_stdout", "get_stderr")
_HEARD = ("handle_data", "handle_text", "complete")


@row(
    "Sprite.get_control_connection", "Sprite.has_control_connection", "Sprite.close_control_connection",
    "Sprite.use_control_mode", "control.get_control_connection", "control.has_control_connection",
    "control.close_control_connection", "control.release_control_connection", "control.StreamID", commands=True,
)  # fmt: skip
async def connections_of_a_sprite(kit: Kit) -> None:
    sprite = kit.sprite
    assert await kit.do(sprite.use_control_mode) == kit.control
    assert not await kit.do(sprite.has_control_connection)
    first = await kit.do(sprite.get_control_connection)
    second = await kit.do(control.get_control_connection, sprite)
    assert first is not second and await kit.do(control.has_control_connection, sprite)

    async def release() -> None:  # within the loop that the connection is of
        control.release_control_connection(sprite, first)

    await kit.do(release)
    assert await kit.do(sprite.get_control_connection) is first
    operation = await kit.do(first.start_op, "exec", cmd=["sh", "-c", "exit 3"])
    assert await kit.do(operation.wait) == control.StreamID.EXIT
    await kit.do(sprite.close_control_connection)
    assert not await kit.do(sprite.has_control_connection)
    await kit.do(control.close_control_connection, sprite)  # there is none


@row(
    "control.ControlConnection", *(f"control.ControlConnection.{name}" for name in _CONNECTION),
    "control.OpConn", *(f"control.OpConn.{name}" for name in _OPERATION + _HEARD), kinds=("async",),
)  # fmt: skip
async def one_after_the_other_on_one_connection(kit: Kit) -> None:
    connection = ControlConnection(kit.sprite)
    await connection.connect()
    for code in (0, 7):
        operation = await connection.start_op(
            "exec", cmd=["sh", "-c", f'cat; echo "$A" >&2; pwd; exit {code}'], env={"A": "b"}, dir="/usr"
        )
        heard: list[str] = []
        operation.on_message = lambda message, heard=heard: heard.append(message["type"])
        await operation.write(b"one ")
        await operation.write(b"two\n")
        assert not operation.is_closed()
        await operation.send_eof()
        assert await operation.wait() == code == operation.get_exit_code()
        assert (operation.get_stdout(), operation.get_stderr()) == (b"one two\n/usr\n", b"b\n")
        assert operation.is_closed() and heard == ["session_info"]
    assert not connection.is_closed()
    await connection.close()
    assert connection.is_closed()


@row("control.OpConn.resize", "control.OpConn.signal", "control.OpConn.close", kinds=("async",))
async def a_terminal_on_a_connection(kit: Kit) -> None:
    connection = ControlConnection(kit.sprite)
    await connection.connect()
    ready, resized = asyncio.Event(), asyncio.Event()

    def hear(_: bytes) -> None:
        (ready if b"ready" in operation.get_stdout() else resized).set()
        if b"33 77\r\n" in operation.get_stdout():
            resized.set()

    script = "trap 'stty size' WINCH; trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done"
    operation = await connection.start_op("exec", cmd=["sh", "-c", script], tty=True, rows=24, cols=80)
    operation.on_stdout = hear
    await ready.wait()
    await operation.resize(cols=77, rows=33)
    await resized.wait()
    await operation.signal("USR1")
    assert await operation.wait() == 6
    left = await connection.start_op("exec", cmd=["sleep", "600"])
    left.close()
    assert left.is_closed() and left.get_exit_code() == -1
    await connection.close()


@row("control.OpConn.complete", "control.OpConn.get_stderr", kinds=("async",))
async def what_cannot_be_begun(kit: Kit) -> None:
    connection = ControlConnection(kit.sprite)
    await connection.connect()
    refused = await connection.start_op("no-such-operation")
    assert await refused.wait() == -1
    assert refused.get_stderr().startswith(b"Error: ")
    missing = await connection.start_op("exec", cmd=["no-such-program"])
    assert await missing.wait() == 127
    await connection.close()


@row("control.ControlPool", *(f"control.ControlPool.{name}" for name in ("acquire", "release", "size", "close",
     "has_connections")), kinds=("async",))  # fmt: skip
async def a_pool(kit: Kit) -> None:
    pool = ControlPool(kit.sprite, max_size=2)
    assert (pool.size(), pool.has_connections()) == (0, False)
    first, second = await pool.acquire(), await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire())
    operations = [await each.start_op("exec", cmd=["sh", "-c", "exit 4"]) for each in (first, second)]
    assert [await each.wait() for each in operations] == [4, 4]
    pool.release(second)
    assert await waiting is second
    assert (pool.size(), pool.has_connections()) == (2, True)
    await pool.close()
    assert pool.size() == 0 and first.is_closed() and second.is_closed()


@row("Sprite.run")
async def commands_at_once(kit: Kit) -> None:
    """Each on a connection of its own. Not in control mode: the SDK's pool gives a connection to the next command as
    soon as the last one is told to have ended, and whoever ran that then lets go of it, so that the next never ends.
    """
    codes = range(25)
    done = await asyncio.gather(*(kit.do(kit.sprite.run, "sh", "-c", f"exit {code}") for code in codes))
    assert [each.returncode for each in done] == list(codes)
