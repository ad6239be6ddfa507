"""Whoever does not read holds back who writes, and the agent's memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.agent.world import DEADLINE, World, listen, output_until, post_head, stalled

BLOCK = 1_000_000
BLOCKS = 48
# All buffers on the way together, with room for what a client reads ahead.
HELD = 6 * BLOCK
WRITER = f"for i in $(seq {BLOCKS}); do head -c {BLOCK} /dev/zero; echo >> %s; done; exit 3"


def lines(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def test_a_client_that_does_not_read_http(world: World, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    wire = await world.posted("sh", "-c", WRITER % progress)
    assert await stalled(lambda: lines(progress) * BLOCK, HELD) <= HELD
    heard = await wire.frames()
    wire.close()
    assert (len(heard.stdout), heard.terminal) == (BLOCKS * BLOCK, [3])


async def test_a_client_that_does_not_read_a_websocket(world: World, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    async with world.open("sh", "-c", WRITER % progress) as client:
        assert await stalled(lambda: lines(progress) * BLOCK, HELD) <= HELD
        heard = await listen(client)
    assert (len(heard.stdout), heard.terminal) == (BLOCKS * BLOCK, [3])


async def test_a_terminal_nobody_reads(world: World, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    script = "stty -opost; " + WRITER.replace(f"{BLOCKS}", "8") % progress
    async with world.open("sh", "-c", script, tty="true") as client:
        assert await stalled(lambda: lines(progress) * BLOCK, HELD) <= HELD
        heard = await listen(client, tty=True)
    assert (len(heard.stdout), heard.terminal) == (8 * BLOCK, [3])


# Fills what is on the way to the brim, which takes small pieces, says how much that was, and ends.
_FILLER = """
import os, sys, time, tty
tty.setraw(1)
os.set_blocking(1, False)
written = 0
stuck = 0
while stuck < 100:
    try:
        written += os.write(1, bytes(100))
        stuck = 0
    except BlockingIOError:
        stuck += 1
        time.sleep(0.01)
with open(sys.argv[1], "w") as file:
    file.write(f"{written}\\n")
sys.exit(3)
"""


async def test_all_that_a_terminal_holds_is_told_when_its_process_ends(world: World, tmp_path: Path) -> None:
    """It takes 20 KB in small pieces, and gives 4 KiB a read."""
    progress = tmp_path / "progress"
    async with world.open(sys.executable, "-c", _FILLER, str(progress), tty="true") as client:
        async with asyncio.timeout(DEADLINE):
            while not (progress.exists() and progress.read_text().endswith("\n")):
                await asyncio.sleep(0.1)
        heard = await listen(client, tty=True)
    assert (len(heard.stdout), heard.terminal) == (int(progress.read_text()), [3])


async def test_others_are_served_meanwhile(world: World) -> None:
    wire = await world.posted("sh", "-c", "yes & yes >&2 & wait")
    assert (await world.run("echo", "served")).told == (b"served\n", b"", [0], b"")
    wire.writer.transport.abort()
    (state,) = world.saved
    session = world.sessions.get(str(state["pid"]))
    assert session is not None
    session.signal(9)


async def test_a_process_that_does_not_read_http(world: World) -> None:
    gate = world.gate()
    size = BLOCKS * BLOCK
    sent = 0
    loop = asyncio.get_running_loop()
    sock = world.connected()
    sock.setblocking(False)
    head = post_head(["sh", "-c", f"read x < {gate.path}; wc -c"], {"stdin": "true"}, f"Content-Length: {size}")
    await loop.sock_sendall(sock, head)

    async def send() -> None:
        nonlocal sent
        while sent < size:
            part = bytes(min(65536, size - sent))
            await loop.sock_sendall(sock, part)
            sent += len(part)

    sending = asyncio.create_task(send())
    assert await stalled(lambda: sent, HELD) <= HELD
    gate.open()
    async with asyncio.timeout(DEADLINE):
        await sending
        answer = b""
        while part := await loop.sock_recv(sock, 65536):
            answer += part
    sock.close()
    assert f"\1{size}\n".encode() in answer
    assert answer.endswith(b"2\r\n\3\0\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [4096, 100_000, 1_000_000])
async def test_a_process_that_does_not_read_a_websocket(world: World, size: int) -> None:
    gate = world.gate()
    count = BLOCKS * BLOCK // size
    sent = 0
    async with world.open("sh", "-c", f"echo ready; read x < {gate.path}; wc -c", stdin="true") as client:
        await output_until(client, b"ready\n")

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                await client.send(b"\0" + bytes(size))
                sent += size
            await client.send(b"\4")

        sending = asyncio.create_task(send())
        assert await stalled(lambda: sent, HELD) <= HELD
        gate.open()
        async with asyncio.timeout(DEADLINE):
            await sending
        assert (await listen(client)).told == (f"{count * size}\n".encode(), b"", [0], b"")


async def test_input_held_back_is_taken_again_when_the_process_ends(world: World) -> None:
    """The closing handshake is not stuck behind input nobody will ever read."""
    gate = world.gate()
    async with world.open("sh", "-c", f"echo ready; read x < {gate.path}; exit 3", stdin="true") as client:
        await output_until(client, b"ready\n")

        async def send() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await client.send(b"\0" + bytes(100_000))

        sending = asyncio.create_task(send())
        gate.open()
        assert (await listen(client)).told == (b"", b"", [3], b"")
        await sending


async def test_a_client_that_pings_and_never_reads(world: World) -> None:
    """Answers to pings are the one thing a client can order without end."""
    sock = world.connected()
    sock.sendall(
        b"GET /exec?cmd=cat&stdin=true HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    sock.setblocking(False)
    pings = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 500
    loop = asyncio.get_running_loop()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        async with asyncio.timeout(DEADLINE):
            for _ in range(64_000_000 // len(pings)):
                await loop.sock_sendall(sock, pings)
    sock.close()


async def test_a_message_without_bound(world: World) -> None:
    async with world.open("cat", stdin="true") as client:
        with suppress(ConnectionClosed):
            await client.send(b"\0" + bytes(17 << 20))
        assert (await listen(client)).close_code == 1009


async def test_a_frame_that_never_ends(world: World) -> None:
    """Its announced length alone is enough to refuse it."""
    async with world.open("cat", stdin="true") as client:
        client.transport.write(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + os.urandom(4))
        assert (await listen(client)).close_code == 1009
