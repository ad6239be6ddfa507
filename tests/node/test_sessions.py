"""Sessions through a whole node: read from cursors, over everything that can end a connection, and gone in time."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from ballpoint.core import ids
from tests.inside.conftest import agent_of, instance_of, next_agent
from tests.support.nodes import TestNode, shell
from tests.support.raw import Cursors, watch
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

_ROUNDS, _LINES = 50, 75_000
# A megabyte of numbers on stdout in each round, with a line between two on stderr.
_SCRIPT = (
    f"for i in $(seq 0 {_ROUNDS - 1}); do seq -f %013.0f $((i * {_LINES})) $(((i + 1) * {_LINES} - 1)); "
    "echo round $i >&2; sleep 0.1; done; exit 7"
)


@pytest.fixture
def sprite(own_node: TestNode) -> Iterator[Any]:
    own_node.start()
    yield own_node.client().create_sprite(f"t-{ids.new_instance_id()}")


def begin(node: TestNode, name: str, *argv: str, **query: str) -> tuple[str, Cursors]:
    """Start a command whose client goes away at once. Returns its session, and what the client had heard."""
    cursors = Cursors()
    with watch(node, name, None, cursors, cmd=argv, max_run_after_disconnect="0", **query) as connection:
        cursors.take(connection.recv(timeout=60))
        assert cursors.info["offsets"] == {"stdout": 0, "stderr": 0}
        return str(cursors.info["session_id"]), cursors


def read_more(readers: list[Cursors], size: int) -> None:
    """Wait until one of them has read so many bytes more."""
    before = max(len(each.stdout) for each in readers)
    eventually(lambda: max(len(each.stdout) for each in readers) > before + size)


@pytest.mark.slow
def test_reads_from_cursors_are_one_read_over_disconnects_and_restarts(own_node: TestNode, sprite: Any) -> None:
    seed = fresh_seed()
    session, _ = begin(own_node, sprite.name, "bash", "-c", _SCRIPT)
    stop = threading.Event()

    def read(chance: random.Random, cursors: Cursors) -> None:
        """Attach and leave, again and again, until the exit was told."""
        while not cursors.terminal and not stop.is_set():
            with (
                suppress(OSError, EOFError, TimeoutError, WebSocketException),
                watch(own_node, sprite.name, session, cursors) as connection,
            ):
                for _ in range(chance.randrange(1, 200)):
                    cursors.take(connection.recv(timeout=10))
                continue
            stop.wait(0.05)

    readers = [Cursors() for _ in range(3)]
    threads = [threading.Thread(target=read, args=(random.Random(seed + n), each)) for n, each in enumerate(readers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            read_more(readers, 4 << 20)
            former = agent_of(own_node, instance_of(own_node, sprite))
            os.kill(former, signal.SIGKILL)
            next_agent(own_node, instance_of(own_node, sprite), former)
        for end in (own_node.terminate, own_node.kill):
            assert any(not each.terminal for each in readers), "all was read before the node was started again"
            end()
            own_node.start()
        for thread in threads:
            thread.join(120)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    expected = b"".join(b"%013d\n" % number for number in range(_ROUNDS * _LINES))
    for each in readers:
        assert each.dropped == []
        assert each.stdout == expected
        assert each.stderr == b"".join(b"round %d\n" % number for number in range(_ROUNDS))
        assert each.terminal == [7]


def test_rejoined_by_its_id_after_the_client_was_killed(own_node: TestNode, sprite: Any) -> None:
    session, _ = begin(
        own_node, sprite.name, "sh", "-c", "echo one; until [ -e go ]; do sleep 0.1; done; echo two; exit 3"
    )
    (listed,) = own_node.api("GET", f"/v1/sprites/{sprite.name}/exec").json()["sessions"]
    assert (listed["id"], listed["is_active"]) == (session, False)
    cursors = Cursors()
    with watch(own_node, sprite.name, session, cursors) as connection, pytest.raises(ConnectionClosed):
        assert shell(sprite, "touch go")[0] == 0
        while True:
            cursors.take(connection.recv(timeout=60))
    assert (bytes(cursors.stdout), cursors.terminal) == (b"one\ntwo\n", [3])


def test_one_that_ended_is_found_by_the_next_agent(own_node: TestNode, sprite: Any) -> None:
    session, _ = begin(own_node, sprite.name, "sh", "-c", "sleep 1; echo one; exit 5")
    eventually(lambda: own_node.api("GET", f"/v1/sprites/{sprite.name}/exec").json()["count"] == 0)
    former = agent_of(own_node, instance_of(own_node, sprite))
    os.kill(former, signal.SIGKILL)
    next_agent(own_node, instance_of(own_node, sprite), former)
    cursors = Cursors()
    with watch(own_node, sprite.name, session, cursors) as connection, pytest.raises(ConnectionClosed):
        while True:
            cursors.take(connection.recv(timeout=60))
    assert (bytes(cursors.stdout), cursors.terminal) == (b"one\n", [5])


def test_gone_when_the_sprite_goes_cold_and_in_no_fork(own_node: TestNode, sprite: Any) -> None:
    session, _ = begin(own_node, sprite.name, "sh", "-c", "echo something-to-find; sleep 600")
    name = sprite.name
    assert own_node.api("POST", f"/v1/sprites/{name}/fork", json={"name": "forked"}).status_code == 201
    for each in (name, "forked"):
        found = (
            own_node.client()
            .get_sprite(each)
            .run("sudo", "grep", "-rl", "something-to-find", "/home", "/var", "/tmp", "/run", capture_output=True)
        )
        assert found.stdout == b""
    assert own_node.api("POST", f"/v1/sprites/{name}/sleep").status_code == 200
    assert own_node.api("POST", f"/v1/sprites/{name}/wake").status_code == 200
    with pytest.raises(InvalidStatus) as caught, watch(own_node, name, session, Cursors()):
        pass
    assert caught.value.response.status_code == 404
