"""Limits: of size, of time, and of connections."""

from __future__ import annotations

import json
import resource
import threading

import pytest

from ballpoint.edge.admission import Admission, Limits
from tests.edge.wires import Wire, get, parse
from tests.edge.world import Edge, World
from tests.support.waiting import eventually

HEAD_MAX = 64 * 1024


def padded(size: int) -> bytes:
    """A request head of `size` bytes."""
    head = get("/", "X-Pad: ")
    return head.replace(b"X-Pad: ", b"X-Pad: " + b"a" * (size - len(head)))


def test_a_header_may_be_64_kib(world: World) -> None:
    with world.connect() as client:
        assert client.send(padded(HEAD_MAX)).response().status == 200


@pytest.mark.parametrize("data", [padded(HEAD_MAX + 1), b"a" * (HEAD_MAX + 1), padded(3_000_000)])
def test_a_header_beyond_it_is_refused(world: World, data: bytes) -> None:
    with world.connect() as client:
        answer = client.send(data).response()
        assert (answer.status, answer.get("connection")) == (431, "close")
        assert json.loads(answer.body)["error"]
        assert client.rest() == b""
    assert world.questions == []


def test_a_target_too_long_is_refused(world: World) -> None:
    with world.connect() as client:
        assert client.send(get("/" + "a" * 50_000)).response().status == 414
    assert world.questions == []


@pytest.mark.parametrize("token", ["a" * 60_000, "\xff" * 60_000, '"' * 60_000, "\xff", "a" * 1025])
def test_what_can_be_no_token_is_none(world: World, token: str) -> None:
    with world.connect() as client:
        assert client.send(get("/", f"Authorization: Bearer {token}")).response().status == 200
    assert [question["token"] for question in world.questions] == [""]


def test_the_largest_question_reaches_the_node(world: World) -> None:
    """JSON doubles a quotation mark."""
    target, token = "/" + '"' * 48_000, '"' * 1024
    with world.connect() as client:
        assert client.send(get(target, f"Authorization: Bearer {token}")).response().status == 200
    assert [(question["target"], question["token"]) for question in world.questions] == [(target, token)]


def test_a_host_too_long_is_refused(world: World) -> None:
    with world.connect() as client:
        assert client.send(b"GET / HTTP/1.1\r\nHost: " + b"a" * 256 + b"\r\n\r\n").response().status == 400


def test_a_header_that_does_not_come_in_time_is_refused(world: World) -> None:
    edge = world.start_edge({"server._HEAD_SECONDS": 0.2})
    with edge.connect() as client:
        answer = client.send(b"GET / HTTP/1.1\r\nHost:").response()
        assert (answer.status, answer.get("connection"), client.rest()) == (408, "close", b"")
    assert world.questions == []


def test_bytes_that_trickle_win_no_time(world: World) -> None:
    edge = world.start_edge({"server._HEAD_SECONDS": 0.5})
    with edge.connect() as client:
        stop = threading.Event()

        def trickle() -> None:
            try:
                while not stop.wait(0.05):
                    client.send(b"a")
            except OSError:
                pass

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            assert client.response().status == 408
        finally:
            stop.set()
            trickling.join()


def test_an_idle_connection_ends_silently(world: World) -> None:
    edge = world.start_edge({"server._IDLE_SECONDS": 0.2})
    with edge.connect() as fresh, edge.connect() as used:
        assert used.send(get("/")).response().status == 200
        assert fresh.rest() == used.rest() == b""


def test_only_a_header_has_to_hurry(world: World) -> None:
    """Deadlines of a header and of idleness do not run while a request is served or its body comes."""
    edge = world.start_edge({"server._HEAD_SECONDS": 0.3, "server._IDLE_SECONDS": 0.3, "exchange.RESPONSE_SECONDS": 20})
    pause = threading.Event()

    def late(connection: Wire) -> None:
        _, raw = connection.request()
        pause.wait(1)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla")
        pause.wait(1)
        connection.send(b"te")

    world.agent.handler = late
    with edge.connect() as client:
        client.send(get("/agent/exec", "Content-Length: 4", method="POST"))
        pause.wait(1)
        assert client.send(b"body").response().body == b"late"


def test_an_answer_that_does_not_come_is_not_waited_for_forever(world: World) -> None:
    edge = world.start_edge({"exchange.RESPONSE_SECONDS": 0.2})
    world.api.answer(b"")
    with edge.connect() as client:
        answer = client.send(get("/")).response()
        assert (answer.status, json.loads(answer.body)["error"]) == (503, "unavailable")


def test_a_long_upload_does_not_count_as_waiting_for_the_answer(world: World) -> None:
    edge = world.start_edge({"exchange.RESPONSE_SECONDS": 4})
    pause = threading.Event()
    with edge.connect() as client:
        client.send(get("/", "Content-Length: 6", method="POST"))
        for piece in (b"ab", b"cd", b"ef"):
            pause.wait(2)
            client.send(piece)
        assert client.response().body.endswith(b"abcdef")


def crowd(edge: Edge, most: int) -> None:
    """`most` connections are served, the next one is not, and its place is free again once one has ended."""
    clients = [edge.connect() for _ in range(most)]
    for client in clients:
        assert client.send(get("/")).response().status == 200
    with edge.connect() as one_too_many:
        answer = one_too_many.response()
        body = json.loads(answer.body)
        assert (answer.status, answer.get("connection"), body["error"]) == (503, "close", "too_many_connections")
        assert int(answer.get("retry-after") or "") == body["retry_after_seconds"]
        assert one_too_many.rest() == b""
    clients.pop().close()

    def served() -> bool:
        with edge.connect() as again:
            return again.send(get("/")).response().status == 200

    eventually(served)
    for client in clients:
        assert client.send(get("/")).response().status == 200
        client.close()


def test_one_address_has_so_many_connections_and_no_more(world: World) -> None:
    world.configure(connections_per_address=3)
    crowd(world.start_edge({"admission._LOOPBACK": "10."}), 3)


def test_loopback_has_as_many_as_there_are(world: World) -> None:
    world.configure(connections_per_address=1)
    edge = world.start_edge()
    clients = [edge.connect() for _ in range(50)]
    for client in clients:
        assert client.send(get("/")).response().status == 200
        client.close()


def test_an_edge_takes_no_more_connections_than_it_has_descriptors_for(world: World) -> None:
    """And it raises its limit of them as far as it may be."""
    edge = world.start_edge(descriptors=(20, 148))
    crowd(edge, 5)
    assert resource.prlimit(edge.process.pid, resource.RLIMIT_NOFILE) == (148, 148)


def test_who_counts_as_one_address() -> None:
    admission = Admission(Limits(total=100, per_address=1))
    for alone in (
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1",
        "2001:db8:0:1::1",
        "fe80::1%2",
        "127.0.0.1",
        "::1",
        "127.1.1.1",
    ):
        assert admission.enter(alone) is None
    for again in ("192.0.2.1", "::ffff:192.0.2.2", "2001:db8::2:1", "fe80::2%2"):
        assert admission.enter(again)
    for loopback in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert admission.enter(loopback) is None
    admission.leave("2001:db8::9")
    admission.leave("2001:db8::9")
    assert admission.enter("2001:db8::3") is None


def test_everybody_together_has_so_many_connections_and_no_more() -> None:
    admission = Admission(Limits(total=2, per_address=10))
    assert [admission.enter(address) is None for address in ("192.0.2.1", "127.0.0.1", "127.0.0.1")] == [
        True,
        True,
        False,
    ]


def test_a_body_has_no_limit_but_is_never_held(world: World) -> None:
    """More passes than the edge could hold: a server that reads nothing stops its client."""
    size = 64 << 20
    blocked = threading.Event()
    counted: list[int] = []

    def count(connection: Wire) -> None:
        message = connection.head()
        blocked.wait(60)
        left = int(message.get("content-length") or 0) - len(connection.buffer)
        while left > 0 and (data := connection.sock.recv(1 << 20)):
            left -= len(data)
        counted.append(size - left)
        connection.send(b"HTTP/1.1 204 None\r\n\r\n")

    world.api.handler = count
    with world.connect() as client:
        client.send(get("/", f"Content-Length: {size}", method="POST"))
        client.sock.settimeout(1)
        piece, left = bytes(65_536), size
        while left:
            try:
                left -= client.sock.send(piece[:left])
            except TimeoutError:
                blocked.set()
        client.sock.settimeout(60)
        assert client.response().status == 204
    assert counted == [size]
    assert blocked.is_set()


def test_a_response_is_never_held(world: World) -> None:
    size = 64 << 20
    blocked = threading.Event()

    def pour(connection: Wire) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sock.settimeout(1)
        piece, left = bytes(65_536), size
        while left:
            try:
                left -= connection.sock.send(piece[:left])
            except TimeoutError:
                blocked.set()

    world.agent.handler = pour
    with world.connect() as client:
        client.send(get("/agent/exec"))
        head = client.head()
        assert blocked.wait(60)
        assert len(client.exactly(int(head.get("content-length") or 0))) == size


def test_a_client_that_sends_ahead_is_stopped(world: World) -> None:
    """Requests behind the one that is served are not read without end."""
    go_on = threading.Event()

    def wait(connection: Wire) -> None:
        message, _ = connection.request()
        go_on.wait(60)
        connection.send(b"HTTP/1.1 204 None\r\nX-Line: %s\r\n\r\n" % message.line.encode())
        world.api.handler = world.api.echo
        world.api.echo(connection)

    world.api.handler = wait
    ahead = get("/ahead", "X-Pad: " + "a" * 1000)
    # An edge of its own: it may go on with what it has read when the client is gone, and ask the node of the next test.
    with world.start_edge().connect() as client:
        client.send(get("/first"))
        client.sock.settimeout(1)
        data, left = ahead * 20_000, 20_000 * len(ahead)
        with pytest.raises(TimeoutError):
            while left:
                left -= client.sock.send(data[:65_536])
        client.sock.settimeout(60)
        go_on.set()
        assert client.response().get("x-line") == "GET /first HTTP/1.1"
        assert parse(client.response().body).line == "GET /ahead HTTP/1.1"
