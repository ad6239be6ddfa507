"""Exit codes are always true: one terminal frame, all output before it, and children that go on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.agent.world import Heard, World, alive, eventually, listen, output_until
from tests.support.seeds import fresh_seed


async def quick_commands(world: World, count: int) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    kinds = [chance.choice(["echo", "exit", "kill", "signal"]) for _ in range(count)]
    limit = asyncio.Semaphore(8)

    async def run(number: int) -> None:
        way = world.run if number % 3 else world.post
        text = f"line {number}"
        async with limit:
            if kinds[number] == "echo":
                heard, code = await way("echo", text), 0
            elif kinds[number] == "exit":
                heard, code = await way("sh", "-c", f"echo {text}; exit 3"), 3
            elif kinds[number] == "kill":
                heard, code = await way("sh", "-c", f"echo {text}; kill -9 $$"), 128 + signal.SIGKILL
            else:
                async with world.open("sh", "-c", f"echo {text}; exec sleep 600") as client:
                    heard, code = await output_until(client, b"\n"), 128 + signal.SIGTERM
                    await client.send(json.dumps({"type": "signal", "signal": "TERM"}))
                    await listen(client, heard=heard)
        assert heard.told == (f"{text}\n".encode(), b"", [code], b"")

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(run(number))


async def test_two_thousand_quick_commands(world: World) -> None:
    await quick_commands(world, 2_000)


@pytest.mark.slow
async def test_ten_thousand_quick_commands(world: World) -> None:
    await quick_commands(world, 10_000)


@pytest.mark.parametrize("tty", ["false", "true"])
@pytest.mark.parametrize("code", [0, 1, 3, 127, 128, 255])
async def test_codes(world: World, code: int, tty: str) -> None:
    heard = await world.run("sh", "-c", f"exit {code}", tty=tty)
    assert heard.told == (b"", b"", [code], b"")
    assert heard.close_code == (1000 if code == 0 or tty == "false" else 4000 + code)


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "SEGV", "TERM"])
async def test_death_by_a_signal(world: World, name: str) -> None:
    code = 128 + signal.Signals[f"SIG{name}"]
    assert (await world.run("sh", "-c", f"kill -{name} $$")).terminal == [code]
    assert (await world.run("sh", "-c", f"kill -{name} $$", tty="true")).terminal == [code]
    assert (await world.post("sh", "-c", f"kill -{name} $$")).terminal == [code]


async def test_all_output_comes_before_the_exit_to_a_slow_client(world: World) -> None:
    """The process has ended, and most of what it wrote is still in pipes and buffers, before anything is read."""
    wire = await world.posted("sh", "-c", "head -c 1000000 /dev/zero; echo end >&2; exit 3")
    await eventually(lambda: len(world.sessions) == 0)
    heard = await wire.frames()
    wire.close()
    assert (len(heard.stdout), heard.stderr, heard.terminal, heard.after) == (1000000, b"end\n", [3], b"")


async def test_background_children_do_not_hold_the_exit_back(world: World) -> None:
    gate = world.gate()
    script = f"(read x < {gate.path}) & echo started"
    assert (await world.run("sh", "-c", script)).told == (b"started\n", b"", [0], b"")
    assert (await world.post("sh", "-c", script)).told == (b"started\n", b"", [0], b"")


async def test_background_children_go_on_writing(world: World, tmp_path: Path) -> None:
    """Neither SIGPIPE nor a full pipe meets them after the end of their exec."""
    gate, result = world.gate(), tmp_path / "result"
    script = f"(read x < {gate.path}; head -c 5000000 /dev/zero; echo $? > {result}.new; mv {result}.new {result}) &"
    assert (await world.run("bash", "-c", f"set -o pipefail; {script}")).told == (b"", b"", [0], b"")
    gate.open()
    await eventually(result.exists)
    assert result.read_text() == "0\n"


@pytest.mark.parametrize("tty", ["false", "true"])
async def test_a_child_that_writes_for_ever_does_not_hold_the_exit_back(world: World, tmp_path: Path, tty: str) -> None:
    saved = tmp_path / "pid"
    heard = await world.run("sh", "-c", f"trap '' HUP; yes & echo $! > {saved}; exit 3", tty=tty)
    child = int(saved.read_text())
    try:
        assert (heard.terminal, heard.after) == ([3], b"")
        assert set(heard.stdout) <= set(b"y\r\n")

        def written() -> int:
            fields = dict(line.split(": ") for line in Path(f"/proc/{child}/io").read_text().splitlines())
            return int(fields["wchar"])

        before = written()
        await eventually(lambda: written() > before + 2_000_000)
    finally:
        os.kill(child, signal.SIGKILL)
    await eventually(lambda: not alive(child))


async def test_streams_closed_before_the_end(world: World) -> None:
    gate = world.gate()
    for tty in ("false", "true"):
        script = f"exec < /dev/null > /dev/null 2>&1; read x < {gate.path}; exit 6"
        async with world.open("sh", "-c", script, tty=tty) as client:
            await client.recv()
            gate.open()
            assert (await listen(client, tty=tty == "true")).told == (b"", b"", [6], b"")


async def test_commands_that_do_not_start(world: World, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for argv, code, words in (
        (("no-such-command",), 127, b"no-such-command: command not found"),
        (("/no/such/command",), 127, b"command not found"),
        ((str(plain),), 126, b"Permission denied"),
        ((str(tmp_path),), 126, b"Permission denied"),
        (("echo", "x" * 200_000), 126, b"Argument list too long"),
    ):
        heard = await world.run(*argv)
        assert (heard.stdout, heard.terminal, heard.close_code) == (b"", [code], 1000)
        assert words in heard.stderr
        heard = await world.post(*argv)
        assert (heard.stdout, heard.terminal) == (b"", [code])
        assert words in heard.stderr
    assert len(world.sessions) == 0


async def test_the_connection_ends_soon_after_the_exit(world: World) -> None:
    """Also where the client does its part of the closing handshake never."""
    wire = await world.wire()
    wire.send(
        b"GET /exec?cmd=true HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    status, fields = await wire.head()
    assert (status, fields["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")  # RFC 6455 1.3
    assert (await wire.rest()).endswith(b"\x82\x02\x03\x00\x88\x02\x03\xe8")
    wire.close()


_TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()  # PTRACE_SEIZE
os.kill(int(sys.argv[1]), 9)
print("killed", flush=True)
sys.stdin.read()
"""


async def test_a_tracer_that_keeps_the_end_for_itself_holds_up_nobody(world: World) -> None:
    """The kernel tells a tracer first, and the parent when the tracer has heard of it, or gone."""
    async with world.open("sleep", "600") as client:
        heard = Heard()
        heard.take(await client.recv())
        pid = heard.info["session_id"]
        tracer = await asyncio.create_subprocess_exec(sys.executable, "-c", _TRACER, pid, stdin=PIPE, stdout=PIPE)
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        assert await tracer.stdout.readline() == b"killed\n"
        assert (await listen(client, heard=heard)).terminal == [137]
        assert (await world.run("echo", "on")).stdout == b"on\n"
        assert Path(f"/proc/{pid}").exists()
        tracer.stdin.close()
        await tracer.wait()
        await world.run("true")
        assert not Path(f"/proc/{pid}").exists()
        assert world.spawner.unreaped == set()
