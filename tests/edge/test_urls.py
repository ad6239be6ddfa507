"""Requests to a sprite's URL: the exact bytes that its server gets, and what comes back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.edge.visitor import OWN_COOKIES, without_own_cookies
from tests.edge.test_upgrades import idle_connections
from tests.edge.wires import Wire, get, parse, post
from tests.edge.world import TOKEN, World
from tests.support.waiting import eventually

HOST = "web-acme.sprites.localhost"
_ID = re.compile(rb"X-Request-Id: [0-9a-f]{8}\r\n")


def ask(target: str, *fields: str, **more: Any) -> bytes:
    return get(target, *fields, **{"host": HOST, **more})


def passed(world: World, request: bytes) -> bytes:
    """The exact bytes that the server in the sprite gets of a request, but for the request's id."""
    with world.connect() as client:
        answer = client.send(request).response()
    assert answer.status == 200, answer.body
    found, ids = _ID.subn(b"", world.web.seen.get(timeout=30))
    assert ids == 1
    return found


def forwarded(client: str = "127.0.0.1", scheme: str = "http", host: str = HOST) -> bytes:
    return f"X-Forwarded-For: {client}\r\nX-Forwarded-Proto: {scheme}\r\nX-Forwarded-Host: {host}\r\n".encode()


# ---- what the server sees ----


def test_a_plain_request_comes_as_it_was_sent(world: World) -> None:
    fields = ["Accept: */*", "x-LOWER: 1", "X-Twice: a", "X-Twice: b", "X-Bytes: tab\tand \xff", "Empty:"]
    lines = ("\r\n".join(fields)).encode("latin-1").replace(b"Empty:", b"Empty: ")
    assert passed(world, ask("/a//b/../%2e?q=%00&r=1", *fields)) == (
        b"GET /a//b/../%2e?q=%00&r=1 HTTP/1.1\r\nHost: "
        + HOST.encode()
        + b"\r\n"
        + lines
        + b"\r\n"
        + forwarded()
        + b"\r\n"
    )


@pytest.mark.parametrize(
    "host",
    [
        "web-acme.sprites.localhost:7070", "WEB-acme.Sprites.LOCALHOST", "web-acme.sprites.localhost.",
        "web-acme.sprites.localhost.:80",
    ],
)  # fmt: skip
def test_the_host_comes_as_it_was_sent(world: World, host: str) -> None:
    assert passed(world, ask("/", host=host)) == (
        f"GET / HTTP/1.1\r\nHost: {host}\r\n".encode() + forwarded(host=host) + b"\r\n"
    )


@pytest.mark.parametrize("host", ["me@web-acme.sprites.localhost", "web-acme.sprites.localhost:80:80", "a b", "[::1"])
def test_a_host_that_is_none_is_refused(world: World, host: str) -> None:
    with world.connect() as client:
        assert client.send(ask("/", host=host)).response().status == 400
    assert world.questions == []


@pytest.mark.parametrize("host", ["127.0.0.1:7070", "[::1]:7070", "[::1]", "localhost", "sprites.localhost", "other"])
def test_other_hosts_lead_to_the_control_api(world: World, host: str) -> None:
    with world.connect() as client:
        assert client.send(ask("/", host=host)).response().status == 200
    assert world.api.seen.qsize() == 1
    assert world.web.accepted == 0
    assert set(world.questions[0]) == {"method", "target", "host", "token", "peer"}


def test_a_token_that_is_ours_is_stripped_and_no_other(world: World) -> None:
    field = f"Authorization: Bearer {TOKEN}"
    assert field.encode() in passed(world, ask("/", field))
    world.token_is_ours = True
    assert b"uthorization" not in passed(world, ask("/", field, "X_Authorization: 1").replace(b"X_Auth", b"x_Auth"))[
        : -len(b"x_Authorization: 1")
    ].replace(b"x_Authorization", b"")
    assert [question["token"] for question in world.questions] == [TOKEN, TOKEN]


def test_an_applications_own_authorization_passes(world: World) -> None:
    for value in ("Basic eDp5", "Bearer of-the-application", "Digest username=x, realm=y"):
        assert f"\r\nAuthorization: {value}\r\n".encode() in passed(world, ask("/", f"Authorization: {value}"))


def test_two_authorizations_are_refused(world: World) -> None:
    with world.connect() as client:
        answer = client.send(ask("/", "Authorization: Basic eDp5", f"Authorization: Bearer {TOKEN}")).response()
    assert answer.status == 400
    assert world.questions == []


def test_what_is_between_client_and_edge_does_not_pass(world: World) -> None:
    gone = [
        "X-Request-Id: forged", "X-Ballpoint-Caller: {}", "x-ballpoint-anything: 1", "X_Ballpoint_Caller: {}",
        "Connection: keep-alive, X-Private", "X-Private: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive",
        "TE: trailers", "Trailer: X-Sum", "Transfer_Encoding: chunked", "Content_Length: 5", "Upgrade: h2c",
        "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Port: 1", "X-Forwarded-User: root",
        "X_Forwarded_For: 6.6.6.6", "X-Forwarded_Proto: https", "X_Real_IP: 6.6.6.6", "Cookie_: ", "_Cookie: 1",
    ]  # fmt: skip
    kept = b"Cookie_: \r\n_Cookie: 1\r\n"
    assert passed(world, ask("/", *gone)) == (
        b"GET / HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n" + kept + forwarded() + b"\r\n"
    )


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("a=1; ballpoint=s; b=2", "a=1; b=2"),
        ("ballpoint=s; b=2", "b=2"),
        ("__Host-ballpoint=s;b=2", "b=2"),
        ("a=1;ballpoint=s", "a=1"),
        ("a=1;  b=\"x y\" ;ballpoint=s;;c", "a=1;  b=\"x y\" ;;c"),
        ("a=1; ballpoint=s; ballpoint=t; __Host-ballpoint=u; b=2", "a=1; b=2"),
        ("ballpoint2=1; xballpoint=2; Ballpoint=3", "ballpoint2=1; xballpoint=2; Ballpoint=3"),
        ("__host-ballpoint=4; ball-point=5", "__host-ballpoint=4; ball-point=5"),
        ("ballpoint; a=ballpoint=s", "ballpoint; a=ballpoint=s"),
        ("a=\xff\xfe", "a=\xff\xfe"),
        ("", ""),
        ("ballpoint=s", None),
        ("ballpoint=", None),
    ],
)  # fmt: skip
def test_our_cookie_is_stripped_and_the_others_stay_byte_for_byte(world: World, sent: str, seen: str | None) -> None:
    lines = b"" if seen is None else b"Cookie: " + seen.encode("latin-1") + b"\r\n"
    assert passed(world, ask("/", f"Cookie: {sent}")) == (
        b"GET / HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n" + lines + forwarded() + b"\r\n"
    )


_PAIR = st.one_of(
    st.builds(lambda name, value: name + b"=" + value, st.sampled_from(OWN_COOKIES), st.binary(max_size=8)),
    st.builds(lambda value: b" \t" + OWN_COOKIES[1] + b"\t=" + value, st.binary(max_size=8)),
    st.binary(max_size=12),
)


@given(st.lists(_PAIR.map(lambda pair: pair.replace(b";", b"")), max_size=8))
def test_whatever_cookies_come_no_value_of_ours_stays_and_nothing_else_goes(pairs: list[bytes]) -> None:
    def own(pair: bytes) -> bool:
        return b"=" in pair and pair.partition(b"=")[0].strip(b" \t") in OWN_COOKIES

    left = without_own_cookies(b";".join(pairs)).split(b";")
    others = [pair for pair in pairs if not own(pair)]
    assert not any(own(pair) for pair in left)
    assert [pair.strip(b" \t") for pair in left] == [pair.strip(b" \t") for pair in others] or (left, others) == (
        [b""],
        [],
    )
    assert left[1:] == others[1:]


def test_a_client_is_who_the_proxy_that_is_trusted_says(world: World) -> None:
    fields = ["X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.9", "X-Forwarded-For: ::1", "X-Forwarded-Proto: HTTPS"]
    fields += ["X-Forwarded-Host: evil"]
    assert forwarded("203.0.113.7", "https") in passed(world, ask("/", *fields))


@pytest.mark.parametrize("said", ["", "unknown", "6.6.6.6, nonsense", "6.6.6.6 7.7.7.7", "6.6.6.6:80"])
def test_what_a_trusted_proxy_says_is_an_address_or_nothing(world: World, said: str) -> None:
    assert forwarded() in passed(world, ask("/", f"X-Forwarded-For: {said}", "X-Forwarded-Proto: ftp"))


def test_what_anybody_else_says_of_himself_is_nothing(world: World) -> None:
    world.configure(trusted_proxies=("203.0.113.0/24",))
    with world.start_edge().connect() as client:
        client.send(ask("/", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https")).response()
    assert forwarded() in world.web.seen.get(timeout=30)


def test_the_node_is_told_what_its_rules_need(world: World) -> None:
    fields = [
        "Cookie: ballpoint=one; a=b; __Host-ballpoint=two; ballpoint=no,good; ballpoint=" + "x" * 65, "Origin: null",
        "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Accept: image/*, TEXT/html;q=0.9",
    ]  # fmt: skip
    with world.connect() as client:
        client.send(ask("/x?y", *fields)).response()
    assert world.questions == [
        {
            "method": "GET", "target": "/x?y", "host": HOST, "token": "", "peer": "127.0.0.1",
            "log_ins": ["one", "two"], "origin": "null", "site": "cross-site", "mode": "navigate", "html": True,
        }
    ]  # fmt: skip
    world.questions.clear()
    with world.connect() as client:
        client.send(ask("/", "Connection: upgrade", "Upgrade: websocket", "Origin: " + "x" * 60_000)).response()
    [question] = world.questions
    assert question["upgrade"] is True
    assert len(question["origin"]) < 300
    assert "html" not in question


def test_of_many_cookies_of_our_name_a_few_are_told(world: World) -> None:
    with world.connect() as client:
        client.send(ask("/", "Cookie: " + "; ".join(f"ballpoint={n}" for n in range(100)))).response()
    assert world.questions[0]["log_ins"] == [str(n) for n in range(8)]


# ---- bodies ----


def test_bodies_come_as_they_are_framed(world: World) -> None:
    head = b"POST /p HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n"
    assert passed(world, post("/p", b"hello", host=HOST)) == (
        head + b"Content-Length: 5\r\n" + forwarded() + b"Connection: close\r\n\r\nhello"
    )
    chunks = b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n"
    assert passed(world, ask("/p", "Transfer-Encoding: chunked", method="POST") + chunks) == (
        head + forwarded() + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks
    )


def test_a_request_with_trailers_is_refused(world: World) -> None:
    with world.connect() as client:
        client.send(ask("/", "Transfer-Encoding: chunked", method="POST") + b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert client.response().status == 400


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_trailers_of_an_answer_are_left_out(world: World, size: int) -> None:
    chunks = b"5\r\nhello\r\n0\r\n"
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"X-Sum: 1\r\nX-More: 2\r\n\r\n"

    def slowly(connection: Wire) -> None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            world.web.request(connection)
            for at in range(0, len(whole), size):
                connection.send(whole[at : at + size])

    world.web.handler = slowly
    with world.connect() as client:
        for _ in range(2):
            client.send(ask("/")).head()
            assert client.exactly(len(chunks) + 2) == chunks + b"\r\n"
    assert world.web.accepted == 1


@pytest.mark.parametrize("trailer", [b"X-Sum 1\r\n\r\n", b"X-Sum: 1\n\r\n", b"X: " + b"x" * 70_000, b"a: \0\r\n\r\n"])
def test_trailers_that_are_none_end_the_connection(world: World, trailer: bytes) -> None:
    world.web.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + trailer, close=True)
    with world.connect() as client:
        client.send(ask("/")).head()
        assert b"\r\n\r\n" not in client.rest()


def test_large_bodies_both_ways_at_the_pace_of_the_slower(world: World) -> None:
    size = 48 << 20
    block = os.urandom(1 << 20)

    def digest(connection: Wire) -> None:
        message = connection.head()
        want = hashlib.sha256()
        for _ in range(int(message.get("content-length") or 0) >> 20):
            want.update(connection.exactly(1 << 20))
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Sum: %s\r\n\r\n" % (size, want.hexdigest().encode())
        )
        for _ in range(size >> 20):
            connection.send(block)

    world.web.handler = digest
    want = hashlib.sha256(block * (size >> 20)).hexdigest()
    with world.connect() as client:
        client.send(ask("/", f"Content-Length: {size}", method="POST"))
        for _ in range(size >> 20):
            client.send(block)
        answer = client.head()
        assert answer.get("x-sum") == want
        got = hashlib.sha256()
        for _ in range(size >> 20):
            got.update(client.exactly(1 << 20))
    assert got.hexdigest() == want


@pytest.mark.parametrize(
    ("answer", "request_"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ask("/", method="HEAD")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ask("/")),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", ask("/")),
    ],
    ids=["HEAD", "204", "304"],
)
def test_answers_without_a_body(world: World, answer: bytes, request_: bytes) -> None:
    world.web.answer(answer)
    with world.connect() as client:
        for _ in range(2):
            assert client.send(request_).response("HEAD").status == parse(answer).status
            assert client.buffer == b""
    # Some servers send a body all the same, which would be the next answer's beginning.
    assert world.web.accepted == 2


def test_an_answer_that_lasts_until_its_end(world: World) -> None:
    world.web.answer(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello", close=True)
    with world.connect() as client:
        answer = client.send(ask("/")).response()
    assert (answer.body, answer.get("connection"), answer.get("server")) == (b"hello", "close", "old")


def test_a_client_that_waits_for_100_gets_it(world: World) -> None:
    with world.connect() as client:
        client.send(ask("/", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        assert client.head().status == 100
        assert client.send(b"hello").response().status == 200
    assert b"xpect" not in world.web.seen.get(timeout=30)


def test_events_arrive_one_by_one(world: World) -> None:
    def events(connection: Wire) -> None:
        world.web.request(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            told.append(connection.sock.recv(1) if told else b"")
            connection.send(b"9\r\ndata: a\n\n\r\n")

    told: list[bytes] = []
    world.web.handler = events
    with world.connect() as client:
        assert client.send(ask("/", "Accept: text/event-stream")).head().get("content-type") == "text/event-stream"
        assert client.until(b"\n\n\r\n") == b"9\r\ndata: a\n\n\r\n"  # and the server has sent no more than that


def test_a_web_socket(world: World) -> None:
    def echo(connection: Wire) -> None:
        request = world.web.request(connection)
        assert (request.get("connection"), request.get("upgrade")) == ("Upgrade", "websocket")
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        while data := connection.buffer or connection.sock.recv(65536):
            connection.buffer = b""
            connection.send(data)
        connection.send(b"last")

    world.web.handler = echo
    fields = ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Origin: http://a"]
    with world.connect() as client:
        client.send(ask("/ws", *fields, "Cookie: ballpoint=s; a=1") + b"early")
        answer = client.head()
        assert (answer.status, answer.get("upgrade")) == (101, "websocket")
        assert client.exactly(10) == b"firstearly"
        block = os.urandom(1 << 20)
        assert client.send(block).exactly(len(block)) == block
        client.finish()
        assert client.rest() == b"last"
    seen = world.web.seen.get(timeout=30)
    assert b"\r\nCookie: a=1\r\n" in seen
    assert b"\r\nOrigin: http://a\r\n" in seen


def test_fields_of_ours_do_not_come_from_a_server(world: World) -> None:
    world.web.answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-Id: forged\r\nX-Ballpoint-Not-Started: 1\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nAccess-Control-Allow-Origin: *\r\nKeep-Alive: timeout=5\r\n\r\n"
    )
    with world.connect() as client:
        answer = client.send(ask("/")).response()
    assert answer.status == 200
    assert answer.get("x-request-id") != "forged"
    assert answer.get("x-ballpoint-not-started") is None
    assert answer.get("keep-alive") is None
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer.get("access-control-allow-origin") == "*"


def test_no_answer_says_that_other_origins_may_read_it(world: World) -> None:
    with world.connect() as client:
        answer = client.send(ask("/", "Origin: http://evil", method="OPTIONS")).response()
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]


# ---- connections ----


def test_requests_that_change_nothing_share_a_connection(world: World) -> None:
    for _ in range(3):
        with world.connect() as client:
            client.send(ask("/")).response()
            client.send(ask("/", method="OPTIONS")).response()
    assert world.web.accepted == world.sprite.accepted == 1


@pytest.mark.parametrize(
    "request_", [post("/", b"x", host=HOST), ask("/", method="POST"), ask("/", "Content-Length: 1") + b"x"]
)
def test_what_may_change_something_has_a_connection_of_its_own(world: World, request_: bytes) -> None:
    with world.connect() as client:
        for data in (ask("/"), request_, ask("/"), request_):
            client.send(data).response()
    assert world.web.accepted == 3
    requests = [world.web.seen.get(timeout=30) for _ in range(4)]
    assert [b"\r\nConnection: close\r\n" in each for each in requests] == [False, True, False, True]


def test_a_server_that_says_more_than_it_was_asked_does_not_answer_the_next(world: World) -> None:
    world.web.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    for _ in range(3):
        with world.connect() as client:
            assert client.send(ask("/")).response().body == b"ok"
    assert world.web.accepted == 3


def test_a_server_that_closes_its_idle_connections_is_asked_anew(world: World) -> None:
    def once(connection: Wire) -> None:
        world.web.request(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if world.web.accepted == 1:
            world.web.request(connection)  # reads the next one, and ends without a word

    world.web.handler = once
    with world.connect() as client:
        assert [client.send(ask(f"/{n}")).response().status for n in range(2)] == [200, 200]
    lines = [parse(world.web.seen.get(timeout=30)).line for _ in range(3)]
    assert lines == ["GET /0 HTTP/1.1", "GET /1 HTTP/1.1", "GET /1 HTTP/1.1"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_on_a_new_connection_is_sent_once(world: World, method: str) -> None:
    def read(connection: Wire) -> None:
        world.web.request(connection)

    world.web.handler = read
    with world.connect() as client:
        answer = client.send(ask("/", method=method)).response()
    assert (answer.status, answer.get("retry-after")) == (503, "2")
    assert world.web.accepted == world.web.seen.qsize() == 1


def test_an_idle_connection_ends_by_itself(world: World) -> None:
    ended: list[bytes] = []

    def serve(connection: Wire) -> None:
        world.web.request(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        ended.append(connection.sock.recv(1))

    world.web.handler = serve
    edge = world.start_edge({"server._IDLE_SPRITE_SECONDS": 0.1})
    with edge.connect() as client:
        client.send(ask("/")).response()
        for thread in list(world.web._serving):
            thread.join(30)
    assert ended == [b""]


def test_another_instance_gets_connections_of_its_own(world: World) -> None:
    with world.connect() as client:
        client.send(ask("/")).response()
        link = world.run / "another.sock"
        link.symlink_to(world.sprite.path)
        old = world.sprite.path
        world.sprite.path = link
        try:
            client.send(ask("/")).response()
        finally:
            world.sprite.path = old
            link.unlink()
    assert world.web.accepted == 2


def test_every_request_is_routed_for_itself_whatever_its_host(world: World) -> None:
    plan = [(HOST, "sprite"), ("edge", "api"), (HOST, "sprite"), ("EDGE:1", "api"), (HOST + ".", "sprite")]
    first, second = world.connect(), world.connect()
    with first, second:
        for client in (first, second):
            client.send(b"".join(ask("/v1/sprites", host=host) for host, _ in plan))
        for client in (first, second):
            for host, kind in plan:
                request = parse(client.response().body)
                assert request.line == "GET /v1/sprites HTTP/1.1"
                assert request.get("host") == host
                assert (request.get("x-ballpoint-caller") is None) == (kind == "sprite")
    assert [question["host"] for question in world.questions if question["host"] == HOST] == [HOST] * 4


def test_what_is_hidden_in_a_body_is_a_body(world: World) -> None:
    hidden = get("/v1/sprites", f"Authorization: Bearer {TOKEN}")
    with world.connect() as client:
        client.send(post("/", hidden, host=HOST) + ask("/last"))
        assert client.response().status == 200
        assert parse(client.response().body).line == "GET /last HTTP/1.1"
    assert [question["target"] for question in world.questions] == ["/", "/last"]
    assert world.api.accepted == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_an_ambiguous_answer_is_not_passed_on(world: World, answer: bytes) -> None:
    world.web.answer(answer, close=True)
    with world.connect() as client:
        assert client.send(ask("/")).response().status == 502


def test_a_server_that_answers_and_takes_no_more_holds_nothing(world: World) -> None:
    full, over = threading.Event(), threading.Event()

    def early(connection: Wire) -> None:
        connection.head()
        full.wait(60)
        connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        over.wait(60)

    edge = world.start_edge()
    before = idle_connections(edge)
    world.web.handler = early
    with edge.connect() as client:
        client.send(ask("/", f"Content-Length: {64 << 20}", method="POST"))
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.send(bytes(64 << 20))
        full.set()
        client.sock.settimeout(30)
        assert client.response().status == 413
    eventually(lambda: edge.connections() <= before)
    over.set()


# ---- there is no server ----


def error_of(world: World, *fields: str) -> tuple[int, str, str | None]:
    with world.connect() as client:
        answer = client.send(ask("/", *fields)).response()
    assert b"<its word>" not in answer.body
    return answer.status, json.loads(answer.body)["error"], answer.get("retry-after")


def test_nothing_listens(world: World) -> None:
    world.sprite.refuse("refused")
    assert error_of(world) == (502, "nothing_listens", "2")
    world.retry_seconds = 3.5
    assert error_of(world) == (503, "nothing_listens", "2")
    assert [each["connect"] for each in world.sprite.asked] == [
        {"port": world.port, "retry_seconds": 0.0},
        {"port": world.port, "retry_seconds": 3.5},
    ]


def test_a_person_gets_a_page_that_says_what_to_do(world: World) -> None:
    world.sprite.refuse("refused")
    with world.connect() as client:
        answer = client.send(ask("/", "Accept: text/html,*/*")).response()
    assert answer.status == 502
    assert answer.get("content-type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in (answer.get("content-security-policy") or "")
    text = answer.body.decode()
    assert f"Nothing listens on port {world.port}" in text
    assert f"python3 -m http.server {world.port}" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("reason", "error"),
    [("timeout", "port_timeout"), ("unavailable", "unavailable"), ("invalid", "unavailable"), ("x", "unavailable")],
)
def test_other_reasons_are_503(world: World, reason: str, error: str) -> None:
    world.sprite.refuse(reason)
    assert error_of(world) == (503, error, "2")


def test_a_sprite_that_stops_is_asked_for_again(world: World) -> None:
    def stopping(sock: socket.socket) -> None:
        if len(world.sprite.asked) == 1:
            sock.sendall(b'{"error": "not_running", "message": ""}\n')
        else:
            world.sprite.connect(sock)

    world.sprite.give = stopping
    with world.connect() as client:
        assert client.send(post("/", b"hello", host=HOST)).response().status == 200
    assert [question.get("refused") for question in world.questions] == [None, str(world.sprite.path)]


def test_an_agent_that_dies_is_asked_for_again(world: World) -> None:
    world.sprite.give = lambda sock: None if len(world.sprite.asked) == 1 else world.sprite.connect(sock)
    with world.connect() as client:
        assert client.send(post("/", b"hello", host=HOST)).response().status == 200
    assert len(world.questions) == 2


def test_refusals_of_the_node_are_pages_for_persons(world: World) -> None:
    with world.connect() as client:
        answer = client.send(ask("/refuse", "Accept: text/html")).response()
        assert (answer.status, answer.get("www-authenticate")) == (401, "Bearer")
        assert b"<h1>No.</h1>" in answer.body
        assert json.loads(client.send(ask("/refuse")).response().body)["error"] == "unauthorized"


def test_an_answer_of_the_node_goes_out_as_it_is(world: World) -> None:
    headers = {"Location": "http://auth.sprites.localhost/?to=x", "Set-Cookie": "a=b; HttpOnly"}
    world.route = lambda question: {"ok": {"answer": {"status": 303, "headers": headers}}}
    with world.connect() as client:
        answer = client.send(ask("/")).response()
        assert (answer.status, answer.body) == (303, b"")
        assert (answer.get("location"), answer.get("set-cookie")) == tuple(headers.values())
        world.route = lambda question: {"ok": {"answer": {"status": 204, "headers": {}}}}
        answer = client.send(ask("/", method="HEAD")).response("HEAD")
        assert (answer.status, answer.get("content-length")) == (204, None)


def test_a_header_that_is_too_large(world: World) -> None:
    with world.connect() as client:
        assert client.send(ask("/", "X: " + "x" * 70_000)).response().status == 431
    assert world.questions == []


# ---- an agent that was taken over ----


def hand(*fds: int, line: bytes = b'{"ok": true}\n') -> Callable[[socket.socket], None]:
    def give(sock: socket.socket) -> None:
        if fds:
            socket.send_fds(sock, [line], list(fds))
        else:
            sock.sendall(line)

    return give


def test_what_is_no_connection_is_not_used(world: World) -> None:
    pair = socket.socketpair()
    udp, unconnected = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    udp.connect(("127.0.0.1", 9))
    listening, pipe, file = socket.create_server(("127.0.0.1", 0)), os.pipe(), os.memfd_create("x")
    good = world.sprite.to_server()
    gifts = [
        hand(pair[0].fileno()), hand(udp.fileno()), hand(unconnected.fileno()), hand(listening.fileno()), hand(pipe[0]),
        hand(file), hand(good.fileno(), good.fileno()), hand(*[good.fileno()] * 20), hand(),
        hand(good.fileno(), line=b'{"ok": 1}\n'), hand(good.fileno(), line=b"[]\n"), hand(good.fileno(), line=b"x\n"),
        hand(good.fileno(), line=b"\xff\n"), hand(good.fileno(), line=b"[" * 4000 + b"\n"),
        lambda sock: sock.sendall(b"x" * 100_000), hand(good.fileno(), line=b'{"ok": true}'),
    ]  # fmt: skip
    world.sprite.give = world.sprite.connect
    with world.connect() as client:
        client.send(ask("/", "Connection: close")).response()
    for gift in gifts:
        before = world.edge.descriptors()
        world.sprite.give = gift
        world.port += 1  # of which no connection is kept
        assert error_of(world)[0] == 503
        with world.connect() as client:  # its connection has ended, so all that it held is closed
            client.send(get("/")).response()
            assert world.edge.descriptors() <= before + 2
    for each in (*pair, udp, unconnected, listening, good):
        each.close()
    for fd in (*pipe, file):
        os.close(fd)
    assert world.web.seen.qsize() == 1


@pytest.mark.parametrize("way", ["body", "upgrade"])
def test_a_socket_that_its_other_holder_lets_block_blocks_nobody(world: World, way: str) -> None:
    held: list[socket.socket] = []

    def keep(sock: socket.socket) -> None:
        made = world.sprite.to_server()
        held.append(made)
        socket.send_fds(sock, [b'{"ok": true}\n'], [made.fileno()])

    def stuck(connection: Wire) -> None:
        world.web.request(connection) if way == "upgrade" else connection.head()
        for made in held:
            os.set_blocking(made.fileno(), True)  # of the description, so the edge's too
        if way == "upgrade":
            connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        ready.sendall(b"x")
        connection.sock.settimeout(60)
        waiting.recv(1)

    ready, told = socket.socketpair()
    waiting, done = socket.socketpair()
    told.settimeout(30)
    world.sprite.give = keep
    world.web.handler = stuck
    with world.connect() as client:
        if way == "upgrade":
            client.send(ask("/", "Connection: Upgrade", "Upgrade: x")).head()
        else:
            client.send(ask("/", f"Content-Length: {64 << 20}", method="POST") + b"x")
        told.recv(1)
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # nobody takes it any more
            client.send(b"x" * (64 << 20))
        for _ in range(20):
            with world.connect() as other:
                assert other.send(get("/")).response().status == 200
    done.close()
    for each in (*held, ready, told, waiting):
        each.close()


def test_a_socket_whose_errors_its_other_holder_wants_is_given_up(world: World) -> None:
    # linux/net_tstamp.h: SOF_TIMESTAMPING_TX_ACK and _SOFTWARE put a message on the error queue for what is sent.
    so_timestamping, flags = 37, (1 << 9) | (1 << 4) | (1 << 7)

    def noisy(sock: socket.socket) -> None:
        with world.sprite.to_server() as made:
            made.setsockopt(socket.SOL_SOCKET, so_timestamping, flags)
            socket.send_fds(sock, [b'{"ok": true}\n'], [made.fileno()])

    world.sprite.give = noisy

    def silent(connection: Wire) -> None:
        connection.rest()

    world.web.handler = silent
    with world.connect() as client:
        assert client.send(ask("/")).response().status == 503
