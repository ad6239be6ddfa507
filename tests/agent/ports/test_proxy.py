"""A WebSocket joined to a TCP connection: every byte both ways, each side held back by the other, and every end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ballpoint.agent.ports import connect, proxy
from ballpoint.core.errors import InvalidError
from tests.agent.ports.servers import echo, full_queue, serving, stall
from tests.agent.world import DEADLINE, World, eventually, stalled
from tests.support.ports import free_port


async def ask(client: ClientConnection, port: int, **more: Any) -> dict[str, Any]:
    """Ask for `port`, and what is answered first."""
    await client.send(json.dumps({"host": "localhost", "port": port, **more}))
    async with asyncio.timeout(DEADLINE):
        answer: dict[str, Any] = json.loads(await client.recv())
    return answer


async def read_all(client: ClientConnection) -> tuple[bytes, int | None]:
    """What comes to the end, and the code of the end."""
    said = bytearray()
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                message = await client.recv()
                assert isinstance(message, bytes)
                said += message
        except ConnectionClosed as closed:
            return bytes(said), closed.rcvd.code if closed.rcvd is not None else None


async def read_some(client: ClientConnection, size: int) -> bytes:
    said = bytearray()
    async with asyncio.timeout(DEADLINE):
        while len(said) < size:
            message = await client.recv()
            assert isinstance(message, bytes)
            said += message
    return bytes(said)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["localhost", "", None, "LOCALHOST", "the address"])
async def test_bytes_go_both_ways(world: World, address: str, host: str | None) -> None:
    host = address if host == "the address" else host
    async with serving(echo, address) as port, world.websocket("/proxy") as client:
        assert await ask(client, port, host=host) == {"status": "connected", "target": f"{host or 'localhost'}:{port}"}
        for size in (1, 125, 126, 65535, 65536, 300_000):
            data = os.urandom(size)
            await client.send(data)
            assert await read_some(client, size) == data


async def test_a_message_in_fragments_is_bytes_like_any(world: World) -> None:
    async with serving(echo) as port, world.websocket("/proxy") as client:
        await ask(client, port)
        await client.send([b"in", b"", b" three", b" pieces"])
        assert await read_some(client, 15) == b"in three pieces"


async def test_much_comes_whole_both_ways_at_once(world: World) -> None:
    data = os.urandom(24 << 20)
    async with serving(echo) as port, world.websocket("/proxy") as client:
        await ask(client, port)
        sending = asyncio.ensure_future(client.send([data[at : at + 99_999] for at in range(0, len(data), 99_999)]))
        assert await read_some(client, len(data)) == data
        await sending


async def test_what_a_server_says_before_its_end_is_all_there(world: World) -> None:
    data = os.urandom(9 << 20)

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    async with serving(speak) as port, world.websocket("/proxy") as client:
        await ask(client, port)
        assert await read_all(client) == (data, proxy.CLOSE_OK)


async def test_a_server_that_resets_is_told_from_one_that_ends(world: World) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serving(reset) as port, world.websocket("/proxy") as client:
        await ask(client, port)
        await client.send(b"x")
        assert await read_all(client) == (b"", proxy.CLOSE_REFUSED)


@pytest.mark.parametrize("way", ["close", "vanish"])
async def test_all_that_a_client_said_before_its_end_is_delivered(world: World, way: str) -> None:
    """Also to a server that is slow, and whose own words nobody reads any more."""
    data = os.urandom(6 << 20)
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    go = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"never read")
        await go.wait()
        got.set_result(await reader.read(-1))

    async with serving(listen) as port:
        client = await world.websocket("/proxy")
        await ask(client, port)
        async with asyncio.timeout(DEADLINE):
            sending = asyncio.ensure_future(client.send(data))
            await asyncio.sleep(0.2)  # until it is held back
            go.set()
            await sending
            if way == "close":
                await client.close()
            else:
                client.transport.close()
            assert await got == data


@pytest.mark.parametrize("text", ['{"type": "eof"}', '{"type": "eof", "more": 1}'])
async def test_a_client_that_stops_speaking_still_hears(world: World, text: str) -> None:
    data = os.urandom(3 << 20)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(-1))
        await writer.drain()

    async with serving(answer) as port, world.websocket("/proxy") as client:
        await ask(client, port)
        for other in ("", "nonsense", '{"type": "more"}', "[]", '"eof"', "x" * 10_000):
            await client.send(other)
        await client.send(data)
        await client.send(text)
        await client.send(b"too late")
        assert await read_all(client) == (data, proxy.CLOSE_OK)


async def test_a_client_that_vanishes_ends_the_connection(world: World) -> None:
    ended = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with serving(watch) as port:
        client = await world.websocket("/proxy")
        await ask(client, port)
        client.transport.abort()
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


async def test_a_server_that_never_stops_is_left_when_its_client_goes(world: World) -> None:
    ended = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        finally:
            ended.set()

    async with serving(flood) as port:
        client = await world.websocket("/proxy")
        await ask(client, port)
        await read_some(client, 1 << 20)
        client.transport.abort()
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


async def test_a_server_that_reads_nothing_holds_its_client_back(world: World) -> None:
    async with serving(stall) as port:
        client = await world.websocket("/proxy")
        await ask(client, port)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await client.send(bytes(1 << 16))
                sent += 1 << 16

        sending = asyncio.ensure_future(send())
        most = 32 << 20
        assert await stalled(lambda: sent, most) < most
        # That it has gone is noticed all the same, while nothing of it is read (the world looks for what is left).
        client.transport.abort()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_client_that_reads_nothing_holds_its_server_back(world: World) -> None:
    written = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            written += 1 << 16

    async with serving(flood) as port:
        reader, writer = await asyncio.open_unix_connection(sock=world.connected(), limit=1 << 10)
        writer.write(HANDSHAKE + masked(0x81, json.dumps({"port": port}).encode()))
        most = 32 << 20
        assert await stalled(lambda: written, most) < most
        assert written
        writer.close()


HANDSHAKE = (
    b"GET /proxy HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def masked(first: int, data: bytes) -> bytes:
    assert len(data) < 126
    return bytes((first, 0x80 | len(data))) + bytes(4) + data


async def test_what_is_sent_along_with_the_first_message_is_delivered(world: World) -> None:
    async with serving(echo) as port:
        wire = await world.wire()
        first = json.dumps({"host": "localhost", "port": port}).encode()
        wire.send(HANDSHAKE + masked(0x81, first) + masked(0x82, b"early") + masked(0x89, b"?"))
        await wire.head()
        async with asyncio.timeout(DEADLINE):
            assert await wire.reader.readexactly(3) == b"\x8a\x01?"
            connected = await wire.reader.readexactly((await wire.reader.readexactly(2))[1])
            assert json.loads(connected)["status"] == "connected"
            assert await wire.reader.readexactly(7) == b"\x82\x05early"
        wire.close()


async def test_what_is_sent_along_with_the_end_is_delivered(world: World) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        got.set_result(await reader.read(-1))

    async with serving(listen) as port:
        wire = await world.wire()
        wire.send(HANDSHAKE + masked(0x81, json.dumps({"port": port}).encode()))
        await wire.head()
        async with asyncio.timeout(DEADLINE):
            await wire.reader.readuntil(b"}")
            wire.send(masked(0x82, b"the last") + masked(0x88, b"") + masked(0x82, b"too late"))
            assert await got == b"the last"
        assert await wire.rest() == b"\x88\x02\x03\xe8"
        wire.close()


async def test_a_server_that_does_not_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 0.3)
    with full_queue() as port:
        async with world.websocket("/proxy") as client:
            assert (await ask(client, port))["error"] == "timeout"
            assert await read_all(client) == (b"", proxy.CLOSE_TIMEOUT)


async def test_who_goes_waits_for_no_answer_of_a_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 600.0)

    def dialling() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "a proxied connection"]

    with full_queue() as port:
        client = await world.websocket("/proxy")
        await client.send(json.dumps({"port": port}))
        await eventually(dialling)
        client.transport.abort()
        await eventually(lambda: not dialling())


async def test_who_goes_at_once_is_connected_to_nothing_for_long(world: World) -> None:
    """In every moment between the first message and what follows from it."""
    open_ = 0

    async def count(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal open_
        open_ += 1
        try:
            await reader.read()
        finally:
            open_ -= 1

    async with serving(count) as port:
        for turns in range(12):
            wire = await world.wire()
            wire.send(HANDSHAKE + masked(0x81, json.dumps({"port": port}).encode()))
            await wire.writer.drain()
            for _ in range(turns):
                await asyncio.sleep(0)
            wire.writer.transport.abort()
        await eventually(lambda: open_ == 0)


async def test_nobody_listens(world: World) -> None:
    port = free_port()
    async with world.websocket("/proxy") as client:
        told = await ask(client, port)
        assert (told["status"], told["error"]) == ("error", "refused")
        assert str(port) in told["message"]
        assert await read_all(client) == (b"", proxy.CLOSE_REFUSED)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "[]",
        "nonsense",
        "[" * 4000,
        '{"port": 0}',
        '{"port": "80"}',
        '{"host": 1, "port": 80}',
        '{"host": "example.com", "port": 80}',
        '{"host": "fe80::1%lo", "port": 80}',
        '{"host": "\\ud800", "port": 80}',
        "x" * 5000,
        b'{"port": 80}',
    ],
)
async def test_a_first_message_that_is_none_is_refused(world: World, first: str | bytes) -> None:
    async with world.websocket("/proxy") as client:
        await client.send(first)
        async with asyncio.timeout(DEADLINE):
            told = json.loads(await client.recv())
        assert (told["status"], told["error"]) == ("error", "invalid")
        assert await read_all(client) == (b"", proxy.CLOSE_INVALID)


async def test_a_broken_frame_ends_it(world: World) -> None:
    async with serving(echo) as port:
        wire = await world.wire()
        wire.send(HANDSHAKE + masked(0x81, json.dumps({"port": port}).encode()))
        await wire.head()
        async with asyncio.timeout(DEADLINE):
            await wire.reader.readuntil(b"}")
        wire.send(b"\x82\x01x")  # without a mask
        rest = await wire.rest()
        assert (rest[0], int.from_bytes(rest[2:4], "big")) == (0x88, proxy.CLOSE_BROKEN)
        wire.close()


async def test_a_request_without_an_upgrade_is_told_what_this_is(world: World) -> None:
    answer = await world.ask("GET /proxy")
    assert (answer.status, answer.json["error"]) == (400, "invalid")
    assert (await world.ask("POST /proxy")).status == 405


async def test_a_client_that_pings_and_never_reads_is_cut_off(world: World) -> None:
    async with serving(stall) as port:
        wire = await world.wire()
        wire.send(HANDSHAKE + masked(0x81, json.dumps({"port": port}).encode()))
        await wire.head()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        flood = masked(0x89, bytes(125)) * 1000
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                while True:
                    wire.send(flood)
                    await wire.writer.drain()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["host", "port"]) | st.text(), inner),
)


@given(
    st.binary()
    | (JSON | st.fixed_dictionaries({"host": JSON, "port": JSON})).map(lambda each: json.dumps(each).encode())
)
def test_whatever_comes_first_is_a_host_and_a_port_or_refused(data: bytes) -> None:
    try:
        host, port = proxy.parse_first(data)
    except InvalidError:
        return
    assert host and isinstance(host, str) and 1 <= port <= 65535


@given(
    st.binary()
    | (JSON | st.fixed_dictionaries({"type": JSON | st.just("eof")})).map(lambda each: json.dumps(each).encode())
)
def test_whatever_text_comes_later_is_an_end_or_nothing(data: bytes) -> None:
    if proxy.is_eof(data):
        assert json.loads(data)["type"] == "eof"
