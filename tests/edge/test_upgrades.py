"""Upgrades: after a 101 both sides own the connection, and the edge looks at nothing."""

from __future__ import annotations

import hashlib
import select
import threading
from contextlib import suppress

import pytest

from tests.edge.wires import Wire, get, parse
from tests.edge.world import Edge, Handler, World
from tests.support.waiting import eventually

UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: abc")
SWITCH = b"HTTP/1.1 101 Whatever\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: def\r\n\r\n"
TARGETS = ["/", "/agent/exec", "/sprite/x"]
STREAMS = TARGETS[1:]
# A TCP connection is reset where its server closes with input unread, and what was not sent by then is lost; its end
# comes behind all that it has sent.
UNIX = TARGETS[1:2]


def serve(world: World, target: str, handler: Handler) -> None:
    world.server_of(target).handler = handler


def pattern(size: int) -> bytes:
    """Bytes in which nothing can be lost or swapped unnoticed."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(size // 32))


def echo(connection: Wire) -> None:
    connection.head()
    connection.send(SWITCH)
    while data := connection.buffer or connection.sock.recv(65_536):
        connection.buffer = b""
        connection.send(data)


@pytest.mark.parametrize("target", TARGETS)
def test_after_the_switch_bytes_pass_both_ways(world: World, target: str) -> None:
    serve(world, target, echo)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        answer = client.head()
        assert answer.line.startswith("HTTP/1.1 101 ")
        assert (answer.get("upgrade"), answer.get("sec-websocket-accept")) == ("websocket", "def")
        assert (answer.get("connection") or "").lower() == "upgrade"
        assert answer.get("sprite-version")
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0\xff\r\n\r\n", pattern(1 << 20)):
            sending = threading.Thread(target=client.send, args=[data])
            sending.start()
            assert client.exactly(len(data)) == data
            sending.join()
        client.finish()
        assert client.rest() == b""
    assert len(world.questions) == 1


@pytest.mark.parametrize("target", STREAMS)
def test_the_server_is_asked_for_the_upgrade_and_nothing_else_of_the_connection(world: World, target: str) -> None:
    with world.connect() as client:
        answer = client.send(get(target, *UPGRADE)).response()
    request = parse(answer.body)
    assert (request.get("connection"), request.get("upgrade")) == ("Upgrade", "websocket")
    assert request.get("sec-websocket-key") == "abc"


@pytest.mark.parametrize("target", TARGETS)
def test_an_upgrade_that_is_declined_is_an_ordinary_response(world: World, target: str) -> None:
    with world.connect() as client:
        for _ in range(2):
            assert client.send(get(target, *UPGRADE)).response().status == 200
        assert client.send(get("/")).response().status == 200


@pytest.mark.parametrize("size", [64, 60_000, 100_000, 4 << 20])
@pytest.mark.parametrize("pieces", [1, 50])
@pytest.mark.parametrize("target", STREAMS)
def test_nothing_is_lost_that_comes_with_the_switch_or_right_behind_it(
    world: World, target: str, size: int, pieces: int
) -> None:
    data = pattern(size)

    def burst(connection: Wire) -> None:
        connection.head()
        step = max(1, len(data) // pieces)
        connection.send(SWITCH + data[:step])
        for at in range(step, len(data), step):
            connection.send(data[at : at + step])

    serve(world, target, burst)
    for _ in range(10):
        with world.connect() as client:
            client.send(get(target, *UPGRADE))
            assert client.head().status == 101
            assert client.rest() == data


@pytest.mark.parametrize("size", [64, 60_000, 100_000, 4 << 20])
@pytest.mark.parametrize("target", STREAMS)
def test_nothing_is_lost_that_a_client_sends_ahead_of_the_switch(world: World, target: str, size: int) -> None:
    data = pattern(size)
    sent = threading.Event()
    got: list[bytes] = []

    def late(connection: Wire) -> None:
        connection.head()
        if size <= 100_000:  # more may wait in the client's own buffers only
            sent.wait(30)
        connection.send(SWITCH)
        got.append(connection.exactly(len(data)))
        connection.send(b"thanks")

    serve(world, target, late)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))

        def send() -> None:
            client.send(data)
            sent.set()

        sending = threading.Thread(target=send)
        sending.start()
        assert client.head().status == 101
        assert client.rest() == b"thanks"
        sending.join()
    assert got == [data]


@pytest.mark.parametrize("target", STREAMS)
def test_a_half_closed_connection_still_carries_the_other_half(world: World, target: str) -> None:
    data = pattern(1 << 20)

    def sort(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        connection.send(hashlib.sha256(connection.rest()).digest())

    serve(world, target, sort)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        client.send(data)
        client.finish()
        assert client.rest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("target", STREAMS)
def test_a_server_may_finish_first(world: World, target: str) -> None:
    got: list[bytes] = []
    done = threading.Event()

    def finish(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH + b"all there is")
        connection.finish()
        got.append(connection.rest())
        done.set()

    serve(world, target, finish)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        assert client.rest() == b"all there is"
        client.send(b"an afterthought")
        client.finish()
        assert done.wait(30)
    assert got == [b"an afterthought"]


@pytest.mark.parametrize("first", ["client", "server", "reset"])
@pytest.mark.parametrize("target", STREAMS)
def test_both_connections_end_with_either(world: World, target: str, first: str) -> None:
    ended = threading.Event()

    def wait(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        if first == "server":
            connection.until(b"go")
        else:
            connection.rest()
        ended.set()

    serve(world, target, wait)
    before = world.edge.connections()
    for _ in range(5):
        ended.clear()
        with world.connect() as client:
            client.send(get(target, *UPGRADE))
            assert client.head().status == 101
            if first == "server":
                assert client.send(b"go").rest() == b""
            elif first == "reset":
                client.reset()
            else:
                client.close()
            assert ended.wait(30)
    eventually(lambda: world.edge.connections() <= before)


@pytest.mark.parametrize("target", STREAMS)
def test_a_client_that_reads_nothing_holds_its_server_back(world: World, target: str) -> None:
    """And loses nothing by it."""
    data = pattern(32 << 20)
    blocked = threading.Event()

    def pour(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        connection.sock.settimeout(1)
        left = memoryview(data)
        while left:
            try:
                left = left[connection.sock.send(left[:65_536]) :]
            except TimeoutError:
                blocked.set()

    serve(world, target, pour)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        assert blocked.wait(60)
        assert client.exactly(len(data)) == data


@pytest.mark.parametrize("target", STREAMS)
def test_a_server_that_reads_nothing_holds_its_client_back(world: World, target: str) -> None:
    data = pattern(32 << 20)
    blocked = threading.Event()
    got: list[bytes] = []

    def wait(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        blocked.wait(60)
        got.append(connection.exactly(len(data)))

    serve(world, target, wait)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        client.sock.settimeout(1)
        left = memoryview(data)
        while left:
            try:
                left = left[client.sock.send(left[:65_536]) :]
            except TimeoutError:
                blocked.set()
        client.sock.settimeout(30)
        assert client.rest() == b""
    assert blocked.is_set()
    assert got == [data]


@pytest.mark.parametrize("size", [10, 150_000, 4 << 20])
@pytest.mark.parametrize("target", UNIX)
def test_the_last_of_the_output_reaches_a_client_that_still_sends(world: World, target: str, size: int) -> None:
    """As with a command that ends before it has read all its input."""
    data = pattern(size) + b"the end"

    def end(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        connection.exactly(100_000)
        connection.send(data)

    serve(world, target, end)
    for _ in range(20):
        with world.connect() as client:
            client.send(get(target, *UPGRADE))
            assert client.head().status == 101
            done = threading.Event()

            def flood(client: Wire = client, done: threading.Event = done) -> None:
                with suppress(OSError):
                    while not done.is_set():
                        client.send(bytes(100_000))

            flooding = threading.Thread(target=flood)
            flooding.start()
            try:
                assert client.rest() == data
            finally:
                done.set()
                flooding.join()


def idle_connections(edge: Edge) -> int:
    """How many an edge holds that has been asked, and has nothing to do."""
    with edge.connect() as client:
        client.send(get("/agent/exec")).response()
        during = edge.connections()
    eventually(lambda: edge.connections() < during)
    return edge.connections()


def silenced(client: Wire) -> None:
    """Send until nobody takes any more."""
    client.sock.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            client.sock.send(bytes(65_536))


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("target", STREAMS)
def test_a_client_that_vanishes_takes_along_a_server_that_reads_nothing(
    world: World, target: str, finishes: bool
) -> None:
    """What the server has not taken is for nobody, and must not be waited for."""
    ended = threading.Event()

    def hold(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        with select.epoll() as epoll:  # sees the end, and takes nothing
            epoll.register(connection.sock, 0)
            if epoll.poll(30):
                ended.set()

    before = idle_connections(world.edge)
    serve(world, target, hold)
    client = world.connect().send(get(target, *UPGRADE))
    assert client.head().status == 101
    if finishes:
        client.send(b"input")
        client.finish()
    else:
        silenced(client)
    client.reset()
    assert ended.wait(30)
    eventually(lambda: world.edge.connections() <= before)


@pytest.mark.parametrize("target", UNIX)
def test_a_server_that_vanishes_leaves_its_client_all_it_said(world: World, target: str) -> None:
    """It ends with input unread, as one that is killed does, while its client reads nothing yet."""
    data = pattern(3 << 20)

    def die(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        connection.exactly(1)
        connection.send(data)

    serve(world, target, die)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        client.send(bytes(1_000_000))
        assert client.rest() == data


@pytest.mark.parametrize("target", UNIX)
def test_a_client_that_takes_nothing_after_its_servers_end_is_not_kept_for_ever(world: World, target: str) -> None:
    edge = world.start_edge({"splice._LINGER_SECONDS": 0.1})
    before = idle_connections(edge)

    def pour(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        silenced(connection)

    serve(world, target, pour)
    with edge.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        eventually(lambda: edge.connections() <= before)


@pytest.mark.parametrize("target", STREAMS)
def test_what_a_client_says_after_its_servers_last_word_arrives(world: World, target: str) -> None:
    data = pattern(4 << 20)
    got: list[bytes] = []
    done = threading.Event()

    def listen(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        connection.finish()
        go_on.wait(30)
        got.append(connection.rest())
        done.set()

    go_on = threading.Event()
    serve(world, target, listen)
    with world.connect() as client:
        client.send(get(target, *UPGRADE))
        assert client.head().status == 101
        assert client.rest() == b""
        sending = threading.Thread(target=lambda: client.send(data).finish())
        sending.start()
        go_on.set()
        sending.join()
        assert done.wait(30)
    assert got == [data]
