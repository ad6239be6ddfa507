"""Requests that need no task (edge/quick.py) get what others get: each is tried both ways, and compared."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.test_known import LONG, serve
from tests.edge.test_urls import ask
from tests.edge.wires import EndedError, Wire, post
from tests.edge.world import World
from tests.support.waiting import eventually

_IDS = re.compile(rb"X-Request-Id: [0-9a-f]{8}")
_BODY = bytes(range(256)) * 4096

ANSWERS = {
    "plain": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "not found": b"HTTP/1.1 404 No, Such\r\nContent-Length: 2\r\n\r\nno",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nno",
    "large": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "closing": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "named fields": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\nok",
    "ours": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Ballpoint-X: 1\r\nX-Request-Id: 00000000\r\n\r\nok",
    "id in a field": b"HTTP/1.1 200 OK\r\nX-0: 00000000\r\nContent-Length: 8\r\n\r\n00000000",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
    "no header": b"nonsense\r\n\r\n",
    "bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
}
# How the server goes on behind these.
ENDINGS = {
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
}


def both(world: World, talk: Callable[[Wire], bytes]) -> list[bytes]:
    """What `talk` hears of a connection with two requests behind it, where the answer is known and where it is not."""
    heard = []
    for lasts in (0.0, LONG):
        world.lasts = lasts
        world.instance_changes.change()
        world.web.drop()
        seen(world)
        with world.connect() as client:
            for _ in range(2):
                serve(client, ask("/"))
            heard.append(_IDS.sub(b"", talk(client)))
    return heard


def seen(world: World) -> list[bytes]:
    found = []
    while not world.web.seen.empty():
        found.append(_IDS.sub(b"", world.web.seen.get()))
    return found


def exchange(client: Wire, request: bytes) -> tuple[bytes, bool]:
    """What is answered, and whether the connection goes on."""
    answer = client.send(request).response(request.split(b" ")[0].decode())
    over = answer.get("connection") == "close"
    return answer.raw + b"|".join(answer.chunks or [answer.body]) + (client.rest() if over else b""), not over


@pytest.mark.parametrize("size", [7, 1 << 22])
@pytest.mark.parametrize("name", [*ANSWERS, *ENDINGS])
def test_an_answer_is_the_same(world: World, name: str, size: int) -> None:
    data = (ANSWERS | ENDINGS)[name]
    step = 9_999 if len(data) > 1000 and size < 1000 else size

    def reply(connection: Wire) -> None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            message = world.web.request(connection)
            if "/x" not in message.line:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            for at in range(0, len(data), step):
                connection.send(data[at : at + step])
            if name in ENDINGS:
                return

    def talk(client: Wire) -> bytes:
        heard = b""
        for target in ("/x/1", "/x/2", "/"):
            if name == "cut":
                client.send(ask(target))
                return client.rest()
            answer, goes_on = exchange(client, ask(target))
            heard += answer
            if not goes_on:
                break
        return heard

    world.web.handler = reply
    general, quick = both(world, talk)
    assert quick == general


FIELDS = [
    b"Content-Length: 2", b"Content-Length: 0", b"Content-Length: 40", b"content-length:2", b"Content-Length: 2, 2",
    b"Content-Length: +2", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Connection: close",
    b"Connection: keep-alive, X-A", b"Connection: Content-Length", b"Upgrade: x", b"X-A: b", b"X-Request-Id: 00000000",
    b"Trailer: X-A", b"Set-Cookie: a=1", b" folded", b"X-A : b", b"X-A", b": x", b"X: \xff\x80", b"X: \x00",
]  # fmt: skip
answers = st.builds(
    lambda line, fields, end, body: b"\r\n".join([line, *fields]) + end + body,
    st.sampled_from([
        b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 404", b"HTTP/1.1 204 None", b"HTTP/1.1 304 Same",
        b"HTTP/1.1 103 Early", b"HTTP/1.1 101 Switching", b"HTTP/1.1 999 X", b"HTTP/1.1 99 X", b"HTTP/2 200",
        b"ICY 200 OK",
    ]),
    st.lists(st.sampled_from(FIELDS), max_size=4),
    st.sampled_from([b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n", b""]),
    st.sampled_from([b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"o", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])
    | st.binary(max_size=40),
)  # fmt: skip


@given(st.one_of(answers, answers, st.binary(max_size=60)), st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_answered_is_the_same(world: World, data: bytes, cut: int) -> None:
    """Also what no server means to say; the connection of a client that is answered goes on, or ends."""
    said = threading.Event()

    def reply(connection: Wire) -> None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            if "/x" in world.web.request(connection).line:
                connection.send(data[:cut]).send(data[cut:]).finish()
                said.set()
                connection.rest()
                return
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def talk(client: Wire) -> bytes:
        said.clear()
        client.send(ask("/x"))
        heard = b""
        try:
            while True:
                answer = client.response()
                heard += answer.raw + b"|".join(answer.chunks or [answer.body])
                if answer.status >= 200:
                    break
        except EndedError as ended:
            return heard + b"".join(ended.args)
        if answer.get("connection") != "close":
            assert said.wait(60)  # what a server says after its answer would be that to the next request
            serve(client, ask("/"))
        return heard

    world.web.handler = reply
    general, quick = both(world, talk)
    assert quick == general


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\nHost: web-acme.sprites.localhost\r\n\r\n",
        ask("/a b"), ask("/\x7f"), ask("/#f"), ask("*"), ask("http://web-acme.sprites.localhost/x"),
        ask("http://elsewhere/x"), ask("/", version="1.0"), ask("/", version="2.0"), ask("/").replace(b"GET", b"get"),
        b"\r\n" + ask("/"), ask("/")[:-2] + b" folded: 1\r\n\r\n", ask("/", "Content-Length: 3") + b"abc",
        ask("/", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        ask("/", "Content-Length: 1", "Content-Length: 1") + b"a",
        ask("/", "Content-Length: 1", "Transfer-Encoding: chunked") + b"a", ask("/", "X: a\0b"), ask("/", "X : b"),
        ask("/", "Host: other"), ask("/", "Connection: Host"), ask("/", "Connection: close"),
        ask("/", "Expect: 100-continue"),
        ask("/") + ask("/second"), ask("/x" * 3000), ask("/", "X: " + "y" * 9000),
        ask("/", "X-Forwarded-For: 1.2.3.4"), ask("/", "Authorization: Basic x", "Authorization: Basic y"),
        ask("/", "Cookie: a=1; ballpoint=x; b=2"), ask("/", method="HEAD"), ask("/", method="OPTIONS"),
        post("/", b"body"),
    ],
)  # fmt: skip
def test_a_request_is_the_same(world: World, request_: bytes) -> None:
    requests: list[list[bytes]] = []

    def talk(client: Wire) -> bytes:
        heard, goes_on = exchange(client, request_)
        if goes_on:
            heard += client.send(ask("/end", "Connection: close")).rest()
        requests.append(seen(world))
        return heard

    general, quick = both(world, talk)
    assert quick == general
    assert requests[0] == requests[1]


def test_each_request_and_its_answer_have_an_id_of_their_own(world: World) -> None:
    world.lasts = LONG
    told, ids = [], []
    with world.connect() as client:
        for number in range(5):
            told.append(client.send(ask(f"/{number}")).response().get("x-request-id"))
            ids.append(re.findall(rb"X-Request-Id: ([0-9a-f]{8})\r\n", world.web.seen.get(timeout=30))[0].decode())
    assert told == ids
    assert len(set(ids)) == 5


def test_a_client_that_leaves_takes_its_request_along(world: World) -> None:
    world.lasts = LONG
    left = threading.Event()

    def never(connection: Wire) -> None:
        while True:
            raw = connection.until(b"\r\n\r\n")
            if b"/never" in raw:
                break
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert connection.rest() == b""
        left.set()

    world.web.handler = never
    with world.connect() as client:
        for _ in range(2):
            serve(client, ask("/"))
        client.send(ask("/never"))
    assert left.wait(30)
    eventually(lambda: world.edge.noted("/never") == [499])
    before = world.edge.connections()
    with world.connect() as client:
        serve(client, ask("/"))
    eventually(lambda: world.edge.connections() <= before)


def test_an_answer_that_does_not_come_is_not_waited_for_forever(world: World) -> None:
    edge = world.start_edge({"exchange.RESPONSE_SECONDS": 3})
    world.lasts = LONG

    def once(connection: Wire) -> None:
        for _ in range(2):
            world.web.request(connection)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.rest()

    world.web.handler = once
    with edge.connect() as client:
        for _ in range(2):
            serve(client, ask("/"))
        assert client.send(ask("/")).response().status == 503


def test_an_idle_connection_ends_silently(world: World) -> None:
    edge = world.start_edge({"server._IDLE_SECONDS": 3})
    world.lasts = LONG
    with edge.connect() as client:
        for _ in range(3):
            serve(client, ask("/"))
        assert client.rest() == b""


def test_a_request_under_way_is_finished_when_the_edge_is_told_to_end(world: World) -> None:
    edge = world.start_edge({"__main__._STOP_SECONDS": 1000})
    world.lasts = LONG
    began, go_on = threading.Event(), threading.Event()

    def wait(connection: Wire) -> None:
        for number in range(3):
            world.web.request(connection)
            if number == 2:
                began.set()
                go_on.wait(30)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    world.web.handler = wait
    with edge.connect() as client:
        for _ in range(2):
            serve(client, ask("/"))
        client.send(ask("/"))
        assert began.wait(30)
        stopping = threading.Thread(target=edge.terminate)
        stopping.start()
        go_on.set()
        assert client.response().body == b"ok"
        assert client.rest() == b""
        stopping.join()
    assert edge.process.returncode == 0
