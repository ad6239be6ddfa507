"""Ends nobody agreed on: a client, a server or the node that is gone."""

from __future__ import annotations

import json
import select
import socket
import threading
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from ballpoint.core import peer
from tests.edge.wires import EndedError, Wire, get, post
from tests.edge.world import World
from tests.support.waiting import eventually

TARGETS = ["/", "/agent/exec", "/sprite/x"]
TCP_REPAIR = 19  # include/uapi/linux/tcp.h


class Watched:
    """A handler that says what became of its connection.

    Args:
        answer: sent once the request's head, and `body` bytes of its body, have come.
    """

    def __init__(self, answer: bytes = b"", body: int = 0) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self._answer = answer
        self._body = body

    def __call__(self, connection: Wire) -> None:
        connection.head()
        connection.exactly(self._body)
        if self._answer:
            connection.send(self._answer)
        self.began.set()
        connection.rest()
        self.ended.set()


def server(world: World, target: str, handler: Watched) -> Watched:
    world.server_of(target).handler = handler
    return handler


@pytest.mark.parametrize("target", TARGETS)
def test_a_client_whose_host_is_gone_is_noticed(world: World, target: str) -> None:
    options = {int(socket.TCP_KEEPIDLE): 1, int(socket.TCP_KEEPINTVL): 1, int(socket.TCP_KEEPCNT): 2}
    edge = world.start_edge({"server._KEEPALIVE": options})
    watched = server(world, target, Watched())
    client = edge.connect().send(get(target))
    assert watched.began.wait(30)
    client.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # what is closed now is closed without a word
    client.close()
    assert watched.ended.wait(30)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_a_client_that_goes_while_it_waits_takes_its_request_along(world: World, target: str, reset: bool) -> None:
    watched = server(world, target, Watched())
    client = world.connect().send(get(target))
    assert watched.began.wait(30)
    if reset:
        client.reset()
    else:
        client.close()
    assert watched.ended.wait(30)


@pytest.mark.parametrize("target", TARGETS)
def test_the_log_tells_who_went_before_an_answer_from_who_went_within_one(world: World, target: str) -> None:
    edge = world.start_edge()
    for answer in (b"", b"HTTP/1.1 203 Half\r\nContent-Length: 10\r\n\r\nhalf"):
        watched = server(world, target, Watched(answer))
        with edge.connect() as client:
            client.send(get(target))
            if answer:
                client.head()
            assert watched.began.wait(30)
    eventually(lambda: edge.noted(target) == [499, 203])


@pytest.mark.parametrize("target", TARGETS)
def test_a_client_that_goes_within_its_body_takes_its_request_along(world: World, target: str) -> None:
    watched = server(world, target, Watched(body=4))
    client = world.connect().send(get(target, "Content-Length: 10", method="POST") + b"half")
    assert watched.began.wait(30)
    client.close()
    assert watched.ended.wait(30)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_a_client_that_goes_while_its_body_is_not_taken_takes_its_request_along(
    world: World, target: str, reset: bool
) -> None:
    """Nothing more is read from it, so its end is not read either."""
    ended = threading.Event()

    def hold(connection: Wire) -> None:
        with select.epoll() as epoll:  # sees the end, and takes nothing
            epoll.register(connection.sock, 0)
            if epoll.poll(30):
                ended.set()

    world.server_of(target).handler = hold
    client = world.connect().send(get(target, "Content-Length: 1000000000", method="POST"))
    if reset:
        client.sock.settimeout(0.5)
        with suppress(TimeoutError):
            while True:
                client.sock.send(bytes(65_536))
        client.reset()
    else:
        client.send(bytes(800_000))  # so much that it is held back, and so little that its end comes behind it
        client.close()
    assert ended.wait(30)


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_client_that_goes_while_bodies_pass_both_ways_takes_its_request_along(
    world: World, target: str, framing: str
) -> None:
    watched = server(world, target, Watched(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", body=4))
    client = world.connect().send(get(target, framing, method="POST") + b"4\r\nhalf\r\n")
    assert client.head().status == 200
    client.close()
    assert watched.ended.wait(30)


@pytest.mark.parametrize("target", TARGETS)
def test_a_client_that_goes_within_the_response_takes_its_request_along(world: World, target: str) -> None:
    watched = server(world, target, Watched(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"))
    client = world.connect().send(get(target))
    assert client.head().status == 200
    client.close()
    assert watched.ended.wait(30)


def test_a_client_that_breaks_its_body_while_the_response_comes_takes_its_request_along(world: World) -> None:
    watched = server(world, "/agent/exec", Watched(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"))
    with world.connect() as client:
        client.send(get("/agent/exec", "Transfer-Encoding: chunked", method="POST"))
        assert client.head().status == 200
        client.send(b"nonsense\r\n")
        assert watched.ended.wait(30)
        assert client.rest() == b"1\r\na\r\n"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b""])
def test_a_client_that_asks_ahead_and_goes_is_noticed(world: World, answer: bytes) -> None:
    watched = server(world, "/", Watched(answer))
    client = world.connect().send(get("/") + get("/next"))
    assert watched.began.wait(30)
    client.close()
    assert watched.ended.wait(30)
    assert [question["target"] for question in world.questions] == ["/"]


# ---- servers ----


def test_a_server_that_is_not_there_is_unavailable(world: World) -> None:
    def nowhere(question: dict[str, str]) -> dict[str, object]:
        missing = str(world.run / "missing.sock")
        return {"ok": {"to": "agent", "socket": missing, "target": question["target"], "preamble": {}}}

    world.route = nowhere
    with world.connect() as client:
        answer = client.send(get("/")).response()
    body = json.loads(answer.body)
    assert (answer.status, body["error"]) == (503, "unavailable")
    assert body["retry_after_seconds"] == int(answer.get("retry-after") or "") > 0
    assert answer.get("x-request-id")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("body", [b"", b"hello"])
def test_a_server_that_goes_without_an_answer_is_unavailable(world: World, target: str, body: bytes) -> None:
    world.server_of(target).answer(b"", close=True)
    with world.connect() as client:
        answer = client.send(post(target, body)).response()
        assert (answer.status, json.loads(answer.body)["error"]) == (503, "unavailable")
        assert client.rest() == b""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
def test_a_response_that_is_cut_never_looks_whole(world: World, target: str, answer: bytes) -> None:
    world.server_of(target).answer(answer, close=True)
    with world.connect() as client:
        client.send(get(target))
        head = client.head()
        assert head.status == 200
        with pytest.raises((EndedError, ConnectionResetError)):
            if head.get("content-length"):
                client.exactly(10)
            else:
                client.until(b"0\r\n\r\n")


def test_connections_to_the_api_are_kept_and_dead_ones_are_not_used(world: World) -> None:
    with world.connect() as client:
        for _ in range(5):
            assert client.send(get("/")).response().status == 200
        assert world.api.accepted <= 2  # one may be left from another test
        before = world.api.accepted
        for _ in range(5):
            world.api.drop()
            assert client.send(get("/")).response().status == 200
        assert world.api.accepted == before + 5


def test_a_connection_to_the_api_that_was_idle_for_long_is_not_used(world: World) -> None:
    """Its server may be ending it just now."""
    edge = world.start_edge({"server._IDLE_API_SECONDS": 0})
    with edge.connect() as client:
        for _ in range(3):
            assert client.send(get("/")).response().status == 200
    assert world.api.accepted == 3


@pytest.mark.parametrize("end", [b"Connection: close\r\nContent-Length: 0\r\n\r\n", b"\r\n"])
def test_a_connection_the_api_ends_is_not_kept(world: World, end: bytes) -> None:
    world.api.answer(b"HTTP/1.1 200 OK\r\n" + end, close=True)
    for _ in range(3):
        with world.connect() as client:
            assert client.send(get("/")).response().status == 200
    assert world.api.accepted == 3


# ---- the node ----


def test_requests_wait_while_the_node_is_started_again(world: World) -> None:
    with world.connect() as client:
        assert client.send(get("/")).response().status == 200
        world.stop_node()
        clients = [world.connect().send(get("/")) for _ in range(20)]
        client.send(get("/"))
        world.start_node()
        assert {each.response().status for each in [client, *clients]} == {200}
        for each in clients:
            each.close()
    assert world.node is not None
    assert world.node.accepted == 1


def test_a_request_whose_node_dies_is_asked_again(world: World) -> None:
    asked = threading.Event()
    dead = threading.Event()

    def route(question: dict[str, str]) -> dict[str, object]:
        asked.set()
        dead.wait(30)
        return world.default_route(question)

    world.route = route
    with world.connect() as client:
        client.send(get("/"))
        assert asked.wait(30)
        stopping = threading.Thread(target=world.stop_node)
        stopping.start()
        world.route = world.default_route
        dead.set()
        stopping.join()
        world.start_node()
        assert client.response().status == 200


def test_without_a_node_nothing_is_said_to_be_absent(world: World) -> None:
    edge = world.start_edge({"routes._CONNECT_SECONDS": 0.1})
    world.stop_node()
    with edge.connect() as client:
        answer = client.send(get("/v1/sprites/x")).response()
        assert (answer.status, json.loads(answer.body)["error"]) == (503, "unavailable")
        assert int(answer.get("retry-after") or "") > 0


def test_a_node_that_does_not_answer_is_not_waited_for_forever(world: World) -> None:
    edge = world.start_edge({"routes._ANSWER_SECONDS": 0.1})
    go_on = threading.Event()

    def route(question: dict[str, str]) -> dict[str, object]:
        go_on.wait(30)
        return world.default_route(question)

    world.route = route
    with edge.connect() as client:
        assert client.send(get("/")).response().status == 503
    go_on.set()


def test_what_is_granted_too_late_is_given_back(world: World) -> None:
    edge = world.start_edge({"routes._ANSWER_SECONDS": 0.1, "holds._LINGER_SECONDS": 0.1})
    go_on = threading.Event()

    def route(question: dict[str, str]) -> dict[str, Any]:
        go_on.wait(30)
        return {"ok": world.default_route(question)["ok"] | {"lease": 777}}

    world.route = route
    with edge.connect() as client:
        assert client.send(get("/sprite/")).response().status == 503
    assert world.node is not None
    told = world.node.notices
    assert all(notice["notice"] == "held" for notice in told)
    go_on.set()
    eventually(lambda: {"notice": "released", "socket": str(world.sprite.path), "lease": 777} in told)


def test_a_failure_of_the_node_is_told(world: World) -> None:
    world.route = lambda question: {"error": "KeyError: 'x'"}
    with world.connect() as client:
        answer = client.send(get("/")).response()
        body = json.loads(answer.body)
        assert (answer.status, body["error"]) == (500, "internal")
        assert body["request_id"] == answer.get("x-request-id")


def test_ended_connections_leave_no_descriptor(world: World) -> None:
    with world.connect() as client:
        client.send(get("/")).response()
    world.agent.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", close=True)
    before = world.edge.connections()
    for data in (get("/agent/exec"), b"nonsense\r\n\r\n", get("/refuse", "Connection: close"), get("/")[:-2]):
        for reads in (True, False):
            with world.connect() as client:
                client.send(data)
                if reads:
                    client.finish()
                    client.rest()
    eventually(lambda: world.edge.connections() <= before)


def test_a_node_that_is_stopped_does_not_stop_the_edge(world: World) -> None:
    """A connection that is not accepted, because the backlog is full, must not be waited for with everything else."""
    world.stop_node()
    path = world.run / "route.sock"
    with ExitStack() as stack:
        stopped = stack.enter_context(peer.listen(path, mode=0o600))
        stopped.listen(0)
        with suppress(BlockingIOError):
            while True:
                stack.enter_context(peer.connect(path))
        edge = world.start_edge()
        with edge.connect() as waiting, edge.connect() as other:
            waiting.send(get("/"))
            assert other.send(b"nonsense\r\n\r\n").response().status == 400
            stopped.close()
            world.start_node()
            assert waiting.response().status == 200
