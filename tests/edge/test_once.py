"""What a request starts, it starts once: the edge tries again only what certainly did not begin."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core.wire import NOT_STARTED
from tests.edge.wires import EndedError, Wire, get, post
from tests.edge.world import World

REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\n%s: 1\r\nRetry-After: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    % NOT_STARTED.encode()
)
BODYLESS = [
    get("/agent/exec?cmd=a", method="POST"),
    get("/agent/exec?cmd=a", "Content-Length: 0", method="POST"),
    get("/agent/exec?cmd=a", "Connection: Upgrade", "Upgrade: websocket"),
    get("/agent/exec"),
]


def asked(world: World) -> int:
    """How often the node was asked. A request of a former test may still be under way, and is none of these."""
    return sum(question["target"].startswith("/agent/exec") for question in world.questions)


def then_echo(world: World, first: Any) -> None:
    """The first connection is `first`'s, and those after it are answered."""

    def handle(connection: Wire) -> None:
        world.agent.handler = world.agent.echo
        first(connection)

    world.agent.handler = handle


@pytest.mark.parametrize("request_", BODYLESS)
def test_a_request_that_was_read_is_never_sent_again(world: World, request_: bytes) -> None:
    """It may have run, so that its agent is gone says nothing."""
    then_echo(world, world.agent.request)
    with world.connect() as client:
        answer = client.send(request_).response()
    assert (answer.status, json.loads(answer.body)["error"]) == (503, "unavailable")
    assert (asked(world), world.agent.seen.qsize()) == (1, 1)


@pytest.mark.parametrize("request_", BODYLESS)
@pytest.mark.parametrize("all_but", [None, 1, 20])
def test_a_request_that_was_not_read_to_its_end_is_looked_up_again(
    world: World, request_: bytes, all_but: int | None
) -> None:
    serve = world.agent.serve

    def leave(sock: socket.socket) -> None:
        world.agent.serve = serve  # type: ignore[method-assign]
        while not (whole := sock.recv(1 << 16, socket.MSG_PEEK)).endswith(b"\r\n\r\n"):
            assert whole
        if all_but is not None:
            sock.recv(len(whole) - all_but)

    world.agent.serve = leave  # type: ignore[method-assign]
    with world.connect() as client:
        assert client.send(request_).response().status == 200
    assert (asked(world), world.agent.seen.qsize()) == (2, 1)


@pytest.mark.parametrize("request_", BODYLESS)
def test_an_agent_that_says_it_does_not_serve_is_looked_up_again(world: World, request_: bytes) -> None:
    def refuse(connection: Wire) -> None:
        connection.request()
        connection.send(REFUSED)

    then_echo(world, refuse)
    with world.connect() as client:
        assert client.send(request_).response().status == 200
        assert client.send(get("/")).response().status == 200
    assert (asked(world), world.agent.seen.qsize()) == (2, 1)


def test_an_agent_that_goes_on_not_serving_is_asked_twice_and_no_more(world: World) -> None:
    world.agent.answer(REFUSED, close=True)
    with world.connect() as client:
        answer = client.send(get("/agent/exec", method="POST")).response()
    assert (answer.status, answer.body, answer.get("retry-after")) == (503, b"{}", "2")
    assert answer.get(NOT_STARTED) is None
    assert world.agent.seen.qsize() == 2


@pytest.mark.parametrize("answer", [REFUSED, b""])
def test_a_body_is_sent_once(world: World, answer: bytes) -> None:
    world.agent.answer(answer, close=True)
    with world.connect() as client:
        assert client.send(post("/agent/exec", b"hello")).response().status == 503
    assert (asked(world), world.agent.seen.qsize()) == (1, 1)


@pytest.mark.parametrize("request_", [*BODYLESS, post("/agent/exec", b"hello")])
def test_an_agent_that_is_not_there_is_looked_up_again(world: World, request_: bytes) -> None:
    """Even with a body: none of it was passed on."""

    def moved(question: dict[str, Any]) -> dict[str, Any]:
        world.route = world.default_route
        answer = world.default_route(question)
        answer["ok"]["socket"] += ".former"
        return answer

    world.route = moved
    with world.connect() as client:
        assert client.send(request_).response().status == 200
    assert (asked(world), world.agent.seen.qsize()) == (2, 1)


def test_an_agent_that_ends_before_it_accepts_is_looked_up_again(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = world.run / "dying.sock"
        listener.bind(str(path))
        os.chown(path, world.uid, world.uid)
        listener.listen(8)

        def dying(question: dict[str, Any]) -> dict[str, Any]:
            world.route = world.default_route
            answer = world.default_route(question)
            answer["ok"]["socket"] = str(path)
            return answer

        world.route = dying
        with world.connect() as client:
            client.send(get("/agent/exec", method="POST"))
            assert select.select([listener], [], [], 30)[0]
            listener.close()
            assert client.response().status == 200
    assert (asked(world), world.agent.seen.qsize()) == (2, 1)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_kept_connection_that_ends_under_a_request(world: World, method: str, reads: bool) -> None:
    """One that was not read goes to a new connection; one that was read may have been done."""
    first = threading.Event()

    def once(connection: Wire) -> None:
        if first.is_set():
            return world.api.echo(connection)
        first.set()
        message, raw = connection.request()
        connection.send(b"HTTP/1.1 204 None\r\n\r\n")
        if reads:
            world.api.request(connection)
        else:
            connection.sock.recv(1, socket.MSG_PEEK)
        return None

    world.api.handler = once
    with world.connect() as client:
        assert client.send(get("/")).response().status == 204
        assert client.send(get("/", method=method)).response().status == (503 if reads else 200)
    assert world.api.seen.qsize() == 1


def test_no_command_runs_twice_however_its_agent_dies(world: World, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    ran.touch()
    with socket.socket(socket.AF_UNIX) as listener:
        path = world.run / "mortal.sock"
        listener.bind(str(path))
        os.chown(path, world.uid, world.uid)
        listener.listen(128)
        agents = subprocess.Popen(
            [sys.executable, "-m", "tests.edge.mortal_agent", str(listener.fileno()), str(tmp_path), "7"],
            pass_fds=[listener.fileno()], start_new_session=True,
        )  # fmt: skip

    def route(question: dict[str, Any]) -> dict[str, Any]:
        answer = world.default_route(question)
        answer["ok"]["socket"] = str(path)
        return answer

    world.route = route

    def run(number: int) -> bool:
        """Whether the client was told that its command ran."""
        target = f"/agent/exec?cmd=sh&cmd=-c&cmd=echo+{number}+>>+{ran}"
        with world.connect() as client, suppress(EndedError, ConnectionResetError):
            answer = client.send(get(target.replace(">>", "%3E%3E"), method="POST")).response()
            return answer.status == 200 and answer.chunks[-1:] == [b"\3\0"]
        return False

    try:
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(run, range(1500)))
    finally:
        os.killpg(agents.pid, 9)
        agents.wait()
    runs = Counter(int(line) for line in ran.read_text().splitlines())
    assert set(runs.values()) == {1}
    assert all(runs[number] == 1 for number, done in enumerate(told) if done)
    assert 0 < sum(told) < len(told)
