"""What two parsers could read differently ends here: nothing of it reaches the node or a server."""

from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.edge.test_known import LONG, serve
from tests.edge.test_urls import HOST as SPRITE
from tests.edge.test_urls import ask
from tests.edge.wires import Wire, get, parse, post
from tests.edge.world import World

HOST = b"Host: edge\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: edge\r\nX-Ballpoint-Caller: {}\r\n\r\n"


def request(*lines: bytes, first: bytes = b"POST / HTTP/1.1", host: bytes = HOST) -> bytes:
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


LENGTH = b"Content-Length: %d" % len(HIDDEN)
CHUNKED = b"Transfer-Encoding: chunked"

AMBIGUOUS = {
    "length beside chunked": request(LENGTH, CHUNKED),
    "chunked beside length": request(CHUNKED, LENGTH),
    "two lengths": request(LENGTH, b"Content-Length: 0"),
    "two equal lengths": request(LENGTH, LENGTH),
    "a list of lengths": request(b"Content-Length: 5, 5"),
    "a length with a sign": request(b"Content-Length: +5"),
    "a negative length": request(b"Content-Length: -5"),
    "a hexadecimal length": request(b"Content-Length: 0x5"),
    "a length with an underscore": request(b"Content-Length: 1_0"),
    "a length with a space": request(b"Content-Length: 1 0"),
    "a length with other digits": request("Content-Length: \u0665".encode()),
    "an empty length": request(b"Content-Length:"),
    "a length beyond 64 bits": request(b"Content-Length: 18446744073709551621"),
    "two hosts": request(b"Host: other", first=b"GET / HTTP/1.1"),
    "two equal hosts": request(b"Host: edge", first=b"GET / HTTP/1.1"),
    "no host": request(first=b"GET / HTTP/1.1", host=b""),
    "a host with a path": request(first=b"GET / HTTP/1.1", host=b"Host: edge/x\r\n"),
    "a host with a user": request(first=b"GET / HTTP/1.1", host=b"Host: a@edge\r\n"),
    "a host with a space": request(first=b"GET / HTTP/1.1", host=b"Host: a b\r\n"),
    "a list of hosts": request(first=b"GET / HTTP/1.1", host=b"Host: a, b\r\n"),
    "another coding": request(b"Transfer-Encoding: gzip"),
    "a coding before chunked": request(b"Transfer-Encoding: gzip, chunked"),
    "identity": request(b"Transfer-Encoding: identity"),
    "chunked twice": request(CHUNKED, CHUNKED),
    "chunked in a list": request(b"Transfer-Encoding: chunked, chunked"),
    "chunked with a parameter": request(b"Transfer-Encoding: chunked;q=1"),
    "chunked behind a vertical tab": request(b"Transfer-Encoding: \x0bchunked"),
    "quoted chunked": request(b'Transfer-Encoding: "chunked"'),
    "an empty coding": request(b"Transfer-Encoding:"),
    "chunked in HTTP/1.0": request(CHUNKED, first=b"POST / HTTP/1.0"),
    "a folded line": request(b"X-A: 1", b" folded"),
    "a line folded with a tab": request(b"X-A: 1", b"\tContent-Length: 5"),
    "a first line that is folded": b"GET / HTTP/1.1\r\n Host: edge\r\n\r\n",
    "a space before the colon": request(b"Content-Length : 5"),
    "a tab before the colon": request(b"Transfer-Encoding\t: chunked"),
    "a space in a name": request(b"X A: 1"),
    "a name that is empty": request(b": 1"),
    "a line without a colon": request(b"nonsense"),
    "a bare line feed in a line": request(b"X-A: 1\nContent-Length: 5"),
    "a bare line feed at the end": b"GET / HTTP/1.1\nHost: edge\r\n\r\n",
    "bare line feeds only": b"GET / HTTP/1.1\nHost: edge\n\n",
    "a bare carriage return": request(b"X-A: 1\rContent-Length: 5"),
    "carriage returns before a line's end": request(b"X-A: 1\r"),
    "NUL in a value": request(b"X-A: a\0b"),
    "NUL in a name": request(b"X-\0A: b"),
    "a control character in a value": request(b"X-A: a\x07b"),
    "DEL in a value": request(b"X-A: a\x7fb"),
    "a name beyond ASCII": request(b"X-\xc3\xa4: b"),
    "a length named by Connection": request(LENGTH, b"Connection: Content-Length"),
    "a length named in a list": request(b"Connection: close, content-length", LENGTH),
    "a host named by Connection": request(b"Connection: host", first=b"GET / HTTP/1.1"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "another protocol": request(first=b"GET / HTTQ/1.1"),
    "a version in lower case": request(first=b"GET / http/1.1"),
    "two spaces in the request line": request(first=b"GET  / HTTP/1.1"),
    "a tab in the request line": request(first=b"GET\t/ HTTP/1.1"),
    "a space at the line's end": request(first=b"GET / HTTP/1.1 "),
    "a space in the target": request(first=b"GET /a b HTTP/1.1"),
    "a control character in the target": request(first=b"GET /a\x01 HTTP/1.1"),
    "DEL in the target": request(first=b"GET /a\x7f HTTP/1.1"),
    "a target beyond ASCII": request(first=b"GET /\xff HTTP/1.1"),
    "a fragment in the target": request(first=b"GET /a#b HTTP/1.1"),
    "an empty target": request(first=b"GET  HTTP/1.1"),
    "a relative target": request(first=b"GET a HTTP/1.1"),
    "another host in the target": request(first=b"GET http://other/ HTTP/1.1"),
    "a user in the target": request(first=b"GET http://a@edge/ HTTP/1.1"),
    "another port in the target": request(first=b"GET http://edge:1/ HTTP/1.1"),
    "another scheme in the target": request(first=b"GET ftp://edge/ HTTP/1.1"),
    "a tunnel": request(first=b"CONNECT edge:443 HTTP/1.1"),
    "a target that is a star": request(first=b"OPTIONS * HTTP/1.1"),
    "a method with a bracket": request(first=b"GE(T / HTTP/1.1"),
    "a method that is empty": request(first=b" / HTTP/1.1"),
    "binary garbage": bytes(range(256)) * 4,
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_request_is_refused_and_its_connection_ends(world: World, data: bytes) -> None:
    with world.connect() as client:
        client.send(get("/before"))
        assert client.response().status == 200
        # What follows would be a request of its own to a parser that reads it so.
        client.send(data + HIDDEN)
        answer = client.response()
        assert (answer.status, answer.get("connection")) == (400, "close")
        assert json.loads(answer.body)["error"] == "bad_request"
        assert client.rest() == b""
    assert [question["target"] for question in world.questions] == ["/before"]
    assert world.api.seen.qsize() == 1


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.10", b"HTTP/9.9"])
def test_another_version_of_http_is_refused(world: World, version: bytes) -> None:
    with world.connect() as client:
        answer = client.send(request(first=b"GET / " + version)).response()
        assert (answer.status, client.rest()) == (505, b"")
    assert world.questions == []


@pytest.mark.parametrize(
    "raw",
    [
        b"5;extension\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"g\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"0\r\nX-Ballpoint-Caller: {}\r\n\r\n",
        b"0\r\n\n",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        b"5" * 100,
    ],
)
@pytest.mark.parametrize("target", ["/", "/agent/exec", "/sprite/x"])
def test_a_malformed_chunk_is_refused(world: World, target: str, raw: bytes) -> None:
    with world.connect() as client:
        client.send(get(target, "Transfer-Encoding: chunked", method="POST") + raw)
        client.finish()
        answer = client.response()
        assert (answer.status, answer.get("connection"), client.rest()) == (400, "close", b"")
    assert world.api.seen.qsize() == world.agent.seen.qsize() == 0


def test_a_header_that_is_cut_is_refused(world: World) -> None:
    with world.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: ed")
        client.finish()
        assert client.response().status == 400
        assert client.rest() == b""
    assert world.questions == []


def test_what_follows_a_body_is_a_request_and_what_is_in_it_is_not(world: World) -> None:
    length = f"Content-Length: {len(HIDDEN)}"
    with world.connect() as client:
        client.send(get("/first", length, method="POST") + HIDDEN + get("/second"))
        assert client.response().body.endswith(HIDDEN)
        assert client.response().status == 200
    assert [question["target"] for question in world.questions] == ["/first", "/second"]
    assert world.api.seen.qsize() == 2


@pytest.mark.parametrize("framing", [[f"Content-Length: {len(HIDDEN)}"], ["Transfer-Encoding: chunked"]])
def test_an_upgrade_beside_a_body_is_no_upgrade(world: World, framing: list[str]) -> None:
    """Some clients offer HTTP/2 that way with every request."""
    body = HIDDEN if "Length" in framing[0] else b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    with world.connect() as client:
        client.send(get("/agent/exec", *framing, "Connection: Upgrade", "Upgrade: h2c", method="POST") + body)
        answer = client.response()
        assert answer.body.endswith(body)
        assert parse(answer.body[: -len(body)]).get("upgrade") is None
        assert client.send(get("/")).response().status == 200
    assert [question["target"] for question in world.questions] == ["/agent/exec", "/"]


# ---- two kept connections to a sprite's URL, whose requests are served by callbacks (edge/quick.py) ----


def to_sprite(data: bytes) -> bytes:
    return data.replace(b"edge", SPRITE.encode())


def kept(world: World, stack: ExitStack) -> Wire:
    """A connection whose next request is like those before, of which the node's answer is known."""
    world.lasts = LONG
    client = stack.enter_context(world.connect())
    for _ in range(2):
        serve(client, ask("/kept"))
    return client


def heard(world: World) -> list[bytes]:
    """The first lines of what the server in the sprite has got, but for what `kept` asks."""
    found = []
    while not world.web.seen.empty():
        found.append(world.web.seen.get().partition(b"\r\n")[0])
    return [line for line in found if line != b"GET /kept HTTP/1.1"]


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_request_behind_ones_that_are_known_is_refused(world: World, data: bytes) -> None:
    with ExitStack() as stack:
        client, other = kept(world, stack), kept(world, stack)
        answer = client.send(to_sprite(data + HIDDEN)).response()
        assert (answer.status, answer.get("connection"), client.rest()) == (400, "close", b"")
        assert other.send(ask("/own")).response().body.startswith(b"GET /own HTTP/1.1\r\n")
    assert heard(world) == [b"GET /own HTTP/1.1"]
    assert world.web.accepted == 1


@pytest.mark.parametrize(
    "raw", [b"5;extension\r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello!\r\n0\r\n\r\n", b"0\r\n\n"]
)
def test_a_malformed_chunk_behind_requests_that_are_known_is_refused(world: World, raw: bytes) -> None:
    with ExitStack() as stack:
        client, other = kept(world, stack), kept(world, stack)
        client.send(ask("/chunks", "Transfer-Encoding: chunked") + raw + to_sprite(HIDDEN))
        answer = client.response()
        assert (answer.status, answer.get("connection"), client.rest()) == (400, "close", b"")
        assert other.send(ask("/own")).response().body.startswith(b"GET /own HTTP/1.1\r\n")
    assert heard(world) == [b"GET /own HTTP/1.1"]


def test_an_enormous_header_behind_requests_that_are_known_is_refused(world: World) -> None:
    with ExitStack() as stack:
        client = kept(world, stack)
        answer = client.send(ask("/large", "X: " + "y" * 70_000)[:66_000]).response()
        assert (answer.status, answer.get("connection")) == (431, "close")
    assert heard(world) == []


def test_what_follows_an_upgrade_is_of_its_own_connection(world: World) -> None:
    """Also where the server agrees: no other client's request goes that way, and nothing of it comes back to one."""

    def serve_all(connection: Wire) -> None:
        while True:
            message = world.web.request(connection)
            if message.get("upgrade"):
                connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
                connection.send(connection.until(b"\r\n\r\n"))
                return
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(message.raw), message.raw))

    world.web.handler = serve_all
    garbage = to_sprite(HIDDEN)
    with ExitStack() as stack:
        client, other = kept(world, stack), kept(world, stack)
        client.send(ask("/up", "Connection: Upgrade", "Upgrade: x") + garbage)
        assert client.response().status == 101
        assert other.send(ask("/own")).response().body.startswith(b"GET /own HTTP/1.1\r\n")
        assert client.until(b"\r\n\r\n") == garbage
        assert client.rest() == b""
    assert heard(world) == [b"GET /up HTTP/1.1", b"GET /own HTTP/1.1"]


# What one client sends. Each `@` is the number of a request that is meant.
SPRITE_HIDDEN = to_sprite(HIDDEN)
CHUNKED_HIDDEN = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SPRITE_HIDDEN), SPRITE_HIDDEN)
BODY_FIELD = f"Content-Length: {len(SPRITE_HIDDEN)}"
FORMS = [
    ask("/@"),
    ask("/@", "X: other"),
    ask("/@", BODY_FIELD) + SPRITE_HIDDEN,
    ask("/@", "Transfer-Encoding: chunked") + CHUNKED_HIDDEN,
    ask("/@", "Content-Length: 0"),
    ask("/@", "Connection: keep-alive"),
    ask("/@", "Connection: keep-alive", version="1.0"),
    ask("/@", BODY_FIELD, "Connection: Upgrade", "Upgrade: h2c") + SPRITE_HIDDEN,
    post("/@", SPRITE_HIDDEN, host=SPRITE),
    post("/@", b"", host=SPRITE),
]
GOOD = st.lists(st.sampled_from(FORMS), min_size=1, max_size=3).map(b"".join)
BAD = st.sampled_from(sorted(AMBIGUOUS.values()))
PIECES = st.sampled_from(["whole", "behind its head"]) | st.floats(0, 1)
STEPS = st.lists(st.tuples(st.integers(0, 1), st.one_of(GOOD, GOOD, GOOD, BAD), PIECES), min_size=1, max_size=8)


@given(STEPS)
@example([(0, FORMS[0] * 3, "whole"), (1, FORMS[2], "behind its head"), (1, FORMS[0], "whole")])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_clients_get_each_their_own_and_the_server_what_was_meant(
    world: World, steps: list[tuple[int, bytes, str | float]]
) -> None:
    """Whatever is sent in whatever pieces: each answer tells the request that it answers, by its number."""
    world.reset()
    number = 0
    meant: list[bytes] = []
    with ExitStack() as stack:
        clients = [kept(world, stack), kept(world, stack)]
        for who, form, piece in steps:
            client = clients[who]
            good = b" /@ " in form
            targets = []
            data = form if good else to_sprite(form + HIDDEN)
            while good and b" /@ " in data:
                number += 1
                targets.append(b"/%d" % number)
                data = data.replace(b" /@ ", b" /%d " % number, 1)
            cut = int(piece * len(data)) if isinstance(piece, float) else 0
            if piece == "behind its head":
                cut = data.find(b"\r\n\r\n") + 4
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.send(data[:cut]).send(data[cut:])
            for target in targets:
                answer = client.response()
                assert answer.status == 200
                line = answer.body.partition(b"\r\n")[0]
                assert line.split(b" ")[1] == target
                meant.append(line)
            if not good:
                answer = client.response()
                assert (answer.status, answer.get("connection"), client.rest()) == (400, "close", b"")
                clients[who] = kept(world, stack)
    assert heard(world) == meant
    assert all(re.fullmatch(rb"(GET|POST) /[0-9]+ HTTP/1.1", line) for line in meant)


# ---- the same for what a server answers: an agent may be hostile ----

AMBIGUOUS_RESPONSES = {
    "no response": b"nonsense\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "length beside chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n",
    "a length named by Connection": b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nhi",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "a bare carriage return": b"HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX-A: \0\r\n\r\n",
    "an enormous header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nX-A",
    "an upgrade nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("data", AMBIGUOUS_RESPONSES.values(), ids=AMBIGUOUS_RESPONSES.keys())
@pytest.mark.parametrize("target", ["/", "/agent/exec", "/sprite/x"])
def test_an_ambiguous_response_does_not_pass(world: World, target: str, data: bytes) -> None:
    server = world.server_of(target)
    server.answer(data, close=True)
    with world.connect() as client:
        answer = client.send(get(target, method="POST")).response()
        assert (answer.status, answer.get("connection")) == (502, "close")
        assert json.loads(answer.body)["error"] == "bad_gateway"
        assert client.rest() == b""


def test_a_malformed_chunk_of_a_response_ends_it_without_a_word(world: World) -> None:
    def answer(connection: Wire) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        world.agent.seen.put(b"")
        connection.send(b"nonsense\r\n")
        connection.rest()

    world.agent.handler = answer
    with world.connect() as client:
        client.send(get("/agent/exec"))
        assert client.head().status == 200
        assert client.rest() in (b"", b"3\r\nabc\r\n")


def test_what_a_server_says_after_its_response_is_nobodys(world: World) -> None:
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    answers = {"/": world.api, "/agent/exec": world.agent}
    for target, server in answers.items():
        server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue" + extra)
        with world.connect() as client:
            for _ in range(3):
                assert client.send(get(target)).response().body == b"true"
        assert server.accepted == 3


def test_what_a_server_in_a_sprite_says_after_its_response_is_nobodys(world: World) -> None:
    """Neither its own client's, whose request was known, nor that of the next one on a kept connection."""
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

    def serve_all(connection: Wire) -> None:
        while True:
            message = world.web.request(connection)
            more = extra if "/more" in message.line else b""
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(message.raw), message.raw) + more)

    world.web.handler = serve_all
    with ExitStack() as stack:
        clients = [kept(world, stack), kept(world, stack)]
        for count in range(6):
            for client in clients:
                assert client.send(ask(f"/more/{count}")).response().body.startswith(b"GET /more/%d " % count)
                assert client.send(ask(f"/own/{count}")).response().body.startswith(b"GET /own/%d " % count)
