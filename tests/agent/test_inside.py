"""The socket inside a sprite: what is passed on, and what whoever is inside cannot do to his agent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from ballpoint.agent import inside
from ballpoint.agent.inside import CONNECTIONS_MAX, REQUEST_MAX, Answer, InsideServer
from ballpoint.agent.server import Connection, Request, Routes
from ballpoint.core.errors import InternalError, UnavailableError
from tests.agent.world import DEADLINE, Wire, eventually

GET = b"GET /v1/info?x=1 HTTP/1.1\r\nHost: sprite\r\n\r\n"


class NodeDouble:
    """A node that answers what a test lets it.

    Attributes:
        asked: requests, in order.
        parts: of each answer's body; where the path is a number, it is that many bytes.
        failure: raised in place of an answer's end.
        begins: whether it sends a head.
        let: what an answer waits for before its last part.
        cancelled: set when an answer was given up.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.parts = [b"{}"]
        self.status = 200
        self.failure: Exception | None = None
        self.begins = True
        self.let = asyncio.Event()
        self.let.set()
        self.taken: list[bool] = []
        self.cancelled = asyncio.Event()

    async def ask(self, method: str, target: str, body: bytes, answer: Answer) -> None:
        self.asked.append((method, target, body))
        parts = [bytes(int(target[1:]))] if target[1:].isdigit() else self.parts
        try:
            if self.begins:
                answer.begin(self.status, {"content-type": "application/json"})
            for number, part in enumerate(parts):
                if number == len(parts) - 1:
                    await self.let.wait()
                self.taken.append(await answer.write(part))
            if self.failure is not None:
                raise self.failure
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Socket:
    """A server on a socket of the test's own, and clients for it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.node = NodeDouble()
        self.server = InsideServer(self.node)
        self._wires: list[Wire] = []

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(128)
        await self.server.start(listener)

    async def wire(self, data: bytes = b"") -> Wire:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 20)
        self._wires.append(Wire(reader, writer).send(data))
        return self._wires[-1]

    async def close(self) -> None:
        await self.server.close()
        for wire in self._wires:
            wire.close()
            with suppress(ConnectionError):
                await wire.writer.wait_closed()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Socket]:
    made = Socket(str(tmp_path / "api.sock"))
    await made.start()
    yield made
    await made.close()


async def body_of(wire: Wire) -> bytes:
    parts = []
    while (part := await wire.frame()) is not None:
        parts.append(part)
    return b"".join(parts)


async def ended(wire: Wire) -> bytes:
    """What is still to be read of a connection that ends, in whatever way."""
    try:
        return await wire.rest()
    except ConnectionResetError:
        return b""


async def test_a_request_is_passed_on_and_its_answer_back(api: Socket) -> None:
    body = bytes(range(256))
    wire = await api.wire(b"POST /v1/a%2Fb?c=%C3 HTTP/1.1\r\nHost: sprite\r\nContent-Length: 256\r\n\r\n" + body)
    api.node.parts = [b'{"a":', b"1}\n"]
    status, fields = await wire.head()
    assert (status, fields["content-type"], fields["transfer-encoding"]) == (200, "application/json", "chunked")
    assert await body_of(wire) == b'{"a":1}\n'
    assert await wire.rest() == b""
    assert api.node.asked == [("POST", "/v1/a%2Fb?c=%C3", body)]


async def test_lines_come_as_they_are_made(api: Socket) -> None:
    api.node.parts = [b"first\n", b"last\n"]
    api.node.let.clear()
    wire = await api.wire(GET)
    await wire.head()
    assert await wire.frame() == b"first\n"
    api.node.let.set()
    assert await wire.frame() == b"last\n"
    assert await wire.frame() is None


async def test_an_answer_without_a_body_has_none(api: Socket) -> None:
    api.node.status, api.node.parts = 204, []
    wire = await api.wire(b"DELETE /v1/checkpoints/v0 HTTP/1.1\r\nHost: sprite\r\n\r\n")
    status, fields = await wire.head()
    assert (status, "transfer-encoding" in fields, await wire.rest()) == (204, False, b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /v1/info HTTP/1.1\r\nHost: sprite\r\n\r\n", 405),
        (b"BREW /v1/info HTTP/1.1\r\nHost: sprite\r\n\r\n", 400),
        (b"PATCH /v1/info HTTP/1.1\r\nHost: sprite\r\n\r\n", 405),
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET /v1/info HTTP/1.1\r\nHost: sprite\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"POST /v1/sync HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % REQUEST_MAX + b"x" * REQUEST_MAX, 413),
        (b"GET /" + b"x" * REQUEST_MAX, 413),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * REQUEST_MAX, 413),
    ],
)
async def test_what_is_no_request_is_refused_here(api: Socket, request_: bytes, status: int) -> None:
    wire = await api.wire(request_)
    assert (await wire.head())[0] == status
    body = await ended(wire)
    assert (not body) if request_.startswith(b"HEAD") else json.loads(body)["message"]
    assert api.node.asked == []


async def test_a_node_that_fails_is_not_taken_for_an_answer(api: Socket) -> None:
    api.node.failure, api.node.begins, api.node.parts = UnavailableError("gone"), False, []
    answer = await (await api.wire(GET)).answer()
    assert (answer.status, answer.json["error"]) == (503, "unavailable")
    api.node.failure = None
    assert (await (await api.wire(GET)).answer()).status == 503


async def test_an_answer_that_fails_half_way_is_cut(api: Socket) -> None:
    api.node.failure, api.node.parts = InternalError("broke"), [b"one\n"]
    wire = await api.wire(GET)
    await wire.head()
    with pytest.raises(asyncio.IncompleteReadError):
        await body_of(wire)


async def test_a_client_that_leaves_is_not_answered_to_the_end(api: Socket) -> None:
    api.node.let.clear()
    wire = await api.wire(GET)
    await wire.head()
    wire.close()
    async with asyncio.timeout(DEADLINE):
        await api.node.cancelled.wait()


async def test_a_request_that_does_not_come_ends(api: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_REQUEST_SECONDS", 0.1)
    for begun in (b"", GET[:-2], b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234"):
        wire = await api.wire(begun)
        assert await ended(wire) == b""
    assert api.node.asked == []


async def test_one_that_came_may_take_as_long_as_it_takes(api: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_REQUEST_SECONDS", 0.1)
    api.node.let.clear()
    slow = await api.wire(GET)
    await slow.head()
    assert await ended(await api.wire()) == b""  # so that time has passed
    api.node.let.set()
    assert await body_of(slow) == b"{}"


async def test_a_client_that_does_not_read_is_cut_off(api: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_READ_SECONDS", 0.1)
    api.node.parts = [bytes(1 << 16)] * 1000
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(api.path)
    sock.sendall(GET)
    await eventually(lambda: False in api.node.taken)
    sock.close()


async def test_an_answer_that_nobody_fetches_does_not_keep_its_connection(
    api: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_READ_SECONDS", 0.1)
    # Of some sizes the kernel takes it all, of some it leaves a rest, and of some so much that the agent holds it back.
    socks = []
    for number in range(CONNECTIONS_MAX):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(api.path)
        sock.sendall(b"GET /%d HTTP/1.1\r\nHost: sprite\r\n\r\n" % (number * 50_000))
        socks.append(sock)
    await eventually(lambda: len(api.node.asked) == CONNECTIONS_MAX)
    await eventually(lambda: api.server.connections == 0)
    for sock in socks:
        sock.close()


async def test_one_who_opens_all_there_are_does_not_stop_the_agent(api: Socket) -> None:
    wires = [await api.wire() for _ in range(CONNECTIONS_MAX)]
    refused = await api.wire()  # its answer does not wait for a request
    assert (await refused.answer()).status == 503
    wires.pop().close()

    async def served() -> bool:
        wire = await api.wire()
        try:
            return (await wire.send(GET).head())[0] == 200
        except ConnectionError:  # it was refused before it asked
            return False

    async with asyncio.timeout(DEADLINE):
        while not await served():
            await asyncio.sleep(0.05)
    for wire in wires:
        wire.close()


async def test_what_follows_a_request_is_no_second_one(api: Socket) -> None:
    api.node.let.clear()
    wire = await api.wire(GET + GET)
    await wire.head()
    api.node.let.set()
    assert await body_of(wire) == b"{}"
    assert len(api.node.asked) == 1


async def test_a_flood_behind_a_request_ends_it(api: Socket) -> None:
    api.node.let.clear()
    wire = await api.wire(GET)
    await wire.head()
    wire.send(bytes(REQUEST_MAX))
    async with asyncio.timeout(DEADLINE):
        await api.node.cancelled.wait()


async def test_what_is_about_services_is_answered_by_the_agent_itself(api: Socket) -> None:
    asked: list[tuple[str, str]] = []

    def own(connection: Connection, request: Request) -> None:
        asked.append((request.method, request.target))
        connection.respond(200, [])

    api.server._own = own
    for path in ("/v1/services", "/v1/services/a%2fb/logs?lines=1"):
        wire = await api.wire(f"GET {path} HTTP/1.1\r\nHost: sprite\r\n\r\n".encode())
        assert (await wire.answer()).json == []
    assert asked == [("GET", "/services"), ("GET", "/services/a%2fb/logs?lines=1")]
    assert api.node.asked == []
    for path in ("/v1/servicesx", "/services", "/v1//services", "/v1/exec"):
        wire = await api.wire(f"GET {path} HTTP/1.1\r\nHost: sprite\r\n\r\n".encode())
        await wire.head()
    assert len(api.node.asked) == 4
    wire = await api.wire(b"PATCH /v1/services HTTP/1.1\r\nHost: sprite\r\n\r\n")
    assert (await wire.answer()).status == 405
    assert len(asked) == 2


async def test_a_request_about_services_is_as_small_and_as_quick_as_any(
    api: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = Routes()
    handlers: list[Collecting] = []

    def put(connection: Connection, request: Request) -> Collecting:
        handlers.append(Collecting(connection))
        return handlers[-1]

    routes.add("PUT", "/services/*", put)
    api.server._own = routes
    head = b"PUT /v1/services/a HTTP/1.1\r\nHost: sprite\r\nContent-Length: %d\r\n\r\n"
    wire = await api.wire(head % 99999 + bytes(20000))
    assert (await wire.answer()).status == 413
    monkeypatch.setattr(inside, "_REQUEST_SECONDS", 0.2)
    wire = await api.wire(head % 5 + b"ab")
    assert await ended(wire) == b""
    wire = await api.wire(head % 2 + b"ab")
    await eventually(lambda: handlers[-1].body == b"ab" and handlers[-1].ended)
    await asyncio.sleep(0.4)  # longer than a request may take: its answer has time
    assert api.server.connections == 1
    handlers[-1].connection.respond(200, {})
    assert (await wire.answer()).status == 200


class Collecting:
    """A handler that answers when it is told to."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.body = b""
        self.ended = False

    def data(self, data: bytes) -> None:
        self.body += data

    def end(self) -> None:
        self.ended = True

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        pass
