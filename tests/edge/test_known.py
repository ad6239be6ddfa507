"""Answers of the node that an edge uses again: when it does, and what it takes for it to ask anew."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.edge.test_urls import HOST, ask
from tests.edge.wires import Wire, get, post
from tests.edge.world import TOKEN, World
from tests.support.waiting import eventually

# Longer than any test takes.
LONG = 1000.0


def serve(client: Wire, request: bytes) -> None:
    assert client.send(request).response(request.split(b" ")[0].decode()).status == 200


@pytest.fixture
def client(world: World) -> Any:
    """A connection whose request has been answered, so that the node's answer is known."""
    world.lasts = LONG
    with world.connect() as client:
        serve(client, ask("/"))
        assert len(world.questions) == 1
        yield client


def test_a_request_that_is_like_the_one_before_asks_nothing(world: World, client: Wire) -> None:
    for target in ("/", "/other", "/?q=1", "/.ballpoin", "/a/.ballpoint"):
        serve(client, ask(target))
    assert len(world.questions) == 1
    assert world.web.accepted == 1


def test_another_connection_profits(world: World, client: Wire) -> None:
    with world.connect() as other:
        serve(other, ask("/"))
        serve(other, ask("/", "Accept: */*"))
    assert len(world.questions) == 1


@pytest.mark.parametrize(
    "request_",
    [
        ask("/", f"Authorization: Bearer {TOKEN}"),
        ask("/", "Cookie: ballpoint=another"),
        ask("/", "Origin: http://elsewhere"),
        ask("/", "Sec-Fetch-Site: cross-site"),
        ask("/", "Accept: text/html"),
        ask("/", "Connection: Upgrade", "Upgrade: x"),
        ask("/.ballpoint"),
        ask("/.ballpoint/log-out"),
        ask("/.ballpoint?x"),
        get("/", host="web2-acme.sprites.localhost"),
        get("/", host=HOST.upper()),
        post("/", b"x", host=HOST),
        ask("/", method="DELETE"),
        get("/"),
    ],
)
def test_a_request_of_which_the_node_may_think_otherwise_asks(world: World, client: Wire, request_: bytes) -> None:
    serve(client, request_)
    assert len(world.questions) == 2


def changed_in_another_process(world: World) -> None:
    path = world.run / "registry.db-changes"
    program = (
        "import pathlib, sys; from ballpoint.host.changes import Changes; "
        "Changes(pathlib.Path(sys.argv[1]), counts=True).change()"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


def change_under_way(world: World) -> None:
    world.registry_changes.begin()


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.registry_changes.change(),
        lambda world: world.instance_changes.change(),
        changed_in_another_process,
        change_under_way,
    ],
)
def test_after_any_change_the_node_is_asked(world: World, client: Wire, change: Callable[[World], None]) -> None:
    try:
        for number in (2, 3):
            change(world)
            serve(client, ask("/"))
            assert len(world.questions) == number
    finally:
        world.registry_changes.change()


def test_what_is_refused_meanwhile_is_refused_at_once(world: World, client: Wire) -> None:
    serve(client, ask("/"))
    world.route = lambda _: {"ok": {"refuse": {"status": 401, "error": "unauthorized", "message": "no"}}}
    world.registry_changes.change()
    assert client.send(ask("/")).response().status == 401
    assert client.send(ask("/")).response().status == 401
    assert world.web.seen.qsize() == 2


def test_nothing_is_remembered_while_a_change_is_under_way(world: World, client: Wire) -> None:
    number = world.registry_changes.begin()
    serve(client, ask("/"))
    world.registry_changes.end(number)
    serve(client, ask("/"))
    assert len(world.questions) == 3
    serve(client, ask("/"))
    assert len(world.questions) == 3


def test_an_answer_that_a_change_overtook_is_not_remembered(world: World) -> None:
    world.lasts = LONG

    def route(question: dict[str, Any]) -> dict[str, Any]:
        world.registry_changes.change()
        return world.default_route(question)

    world.route = route
    with world.connect() as client:
        for number in (1, 2, 3):
            serve(client, ask("/"))
            assert len(world.questions) == number


def test_an_answer_that_is_not_said_to_last_is_asked_for_again(world: World) -> None:
    with world.connect() as client:
        for number in (1, 2):
            serve(client, ask("/"))
            assert len(world.questions) == number


def test_an_answer_lasts_no_longer_than_the_node_says(world: World) -> None:
    world.lasts = 1e-9
    with world.connect() as client:
        for _ in range(2):
            serve(client, ask("/"))
            threading.Event().wait(0.01)  # an edge's clock may go by milliseconds
        assert len(world.questions) == 2


def test_what_is_held_no_more_is_asked_for(world: World) -> None:
    edge = world.start_edge({"holds._LINGER_SECONDS": 0.5})
    world.lasts = LONG
    world.route = lambda question: {"ok": world.default_route(question)["ok"] | {"lease": 777}}
    with edge.connect() as client:
        for _ in range(3):
            serve(client, ask("/"))
        assert world.node is not None
        told = world.node.notices
        eventually(lambda: {"notice": "released", "socket": str(world.sprite.path), "lease": 777} in told)
        serve(client, ask("/"))
    assert len(world.questions) == 2


def test_the_node_that_answered_must_be_there(world: World, client: Wire) -> None:
    world.stop_node()
    world.start_node()
    assert world.node is not None
    told = world.node.notices
    eventually(lambda: any(notice["notice"] == "held" for notice in told))
    world.instance_changes.change()  # as a node does before it listens
    serve(client, ask("/"))
    assert len(world.questions) == 2


def test_a_request_that_its_kept_connection_did_not_serve_asks_anew(world: World, client: Wire) -> None:
    def once(connection: Wire) -> None:
        world.web.request(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.until(b"\r\n\r\n")

    world.web.drop()
    world.web.handler = once
    serve(client, ask("/"))  # over a new connection
    known = len(world.questions)
    serve(client, ask("/"))  # the server ends it with the request read and unanswered
    assert len(world.questions) == known + 1
