"""What an edge remembers of a real node's answers ends with whatever they rest on, whoever changes it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.edge.wires import Message, Wire
from tests.edge.wires import get as head_of
from tests.node.test_urls import bearer, connect, host_of, log_in, registered, start_web
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

# A server that has just been started is waited for, and so long each answer is another.
_SECONDS = 30.0


@pytest.fixture
def name(node: TestNode) -> Iterator[str]:
    """A sprite with a server, whose URL asks for a token."""
    name = f"k-{ids.new_instance_id()}"
    client = node.client()
    start_web(client.create_sprite(name))
    yield name
    node.api("DELETE", f"/v1/sprites/{name}")


class Visit:
    """One connection to a sprite's URL."""

    def __init__(self, node: TestNode, name: str, *fields: str) -> None:
        self.wire: Wire = connect(node)
        self._request = head_of("/", *fields, host=host_of(node, name))

    def ask(self) -> Message:
        return self.wire.send(self._request).response()


@pytest.fixture
def visits() -> Iterator[Callable[[Visit], Visit]]:
    """Takes connections, and ends them with the test."""
    with ExitStack() as stack:

        def take(visit: Visit) -> Visit:
            stack.callback(visit.wire.close)
            return visit

        yield take


@pytest.fixture
def known(node: TestNode, name: str, visits: Callable[[Visit], Visit]) -> Callable[..., Visit]:
    """Makes connections whose answers are known; each edge may have one, so there may be several."""

    def make(*fields: str) -> Visit:
        visit = visits(Visit(node, name, *fields))
        # It lasts once the sprite has run for some seconds.
        eventually(lambda: visit.ask().status == 200 and _is_known(node, visit), _SECONDS)
        return visit

    return make


def _asked(node: TestNode) -> int:
    """How often the node's process has waited for something to do."""
    (pid,) = node.processes("node")
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _is_known(node: TestNode, visit: Visit) -> bool:
    """Whether requests no longer make the node work."""
    before = _asked(node)
    for _ in range(200):
        assert visit.ask().status == 200
    return _asked(node) - before < 100


def test_a_revoked_token_is_refused_at_once_whoever_revoked_it(node: TestNode, known: Callable[..., Visit]) -> None:
    info, text = registered(node, lambda registry: registry.create_token("acme", "known"))
    visits = [known(bearer(text)) for _ in range(2)]
    assert registered(node, lambda registry: registry.revoke_token(info.id))
    assert [visit.ask().status for visit in visits] == [401, 401]


def test_a_log_in_ends_with_its_token(node: TestNode, name: str, known: Callable[..., Visit]) -> None:
    info, text = registered(node, lambda registry: registry.create_token("acme", "known"))
    cookie, _ = log_in(node, host_of(node, name), text)
    visit = known(cookie)
    assert registered(node, lambda registry: registry.revoke_token(info.id))
    assert visit.ask().status == 401


def test_a_url_that_is_public_no_more_asks_at_once(node: TestNode, name: str, known: Callable[..., Visit]) -> None:
    def set_auth(auth: str) -> None:
        assert node.api("PUT", f"/v1/sprites/{name}", json={"url_settings": {"auth": auth}}).status_code == 200

    set_auth("public")
    visit = known()
    for _ in range(3):
        set_auth("sprite")
        assert visit.ask().status == 401
        set_auth("public")
        assert visit.ask().status == 200


def test_a_sprite_that_is_destroyed_is_gone_at_once(node: TestNode, name: str, known: Callable[..., Visit]) -> None:
    visit = known(bearer(node.token))
    assert node.api("DELETE", f"/v1/sprites/{name}").status_code == 204
    assert visit.ask().status == 404


@pytest.mark.parametrize("verb", ["sleep", "restart"])
def test_a_sprite_that_was_ended_is_started_and_asked_anew(
    node: TestNode, name: str, known: Callable[..., Visit], verb: str
) -> None:
    visit = known(bearer(node.token))
    assert node.api("POST", f"/v1/sprites/{name}/{verb}").status_code == 200
    answer = visit.ask()  # it runs again, without its server
    assert (answer.status, b"nothing listens" in answer.body) == (503, True)
    assert node.api("GET", f"/v1/sprites/{name}").json()["status"] == "running"


def test_another_nodes_life_is_asked_anew(own_node: TestNode, visits: Callable[[Visit], Visit]) -> None:
    node = own_node.start()
    client = node.client()
    start_web(client.create_sprite("lives"))
    visit = visits(Visit(node, "lives", bearer(node.token)))
    eventually(lambda: visit.ask().status == 200 and _is_known(node, visit), _SECONDS)
    (pid,) = node.processes("node")
    os.kill(pid, signal.SIGKILL)
    assert visit.ask().status == 200
    eventually(lambda: pid not in node.processes("node") and bool(node.processes("node")), _SECONDS)
    assert visit.ask().status == 200
    assert node.api("POST", "/v1/sprites/lives/sleep").status_code == 200
    assert visit.ask().status == 503


def test_one_that_is_used_so_does_not_sleep_and_one_that_is_not_does(
    own_node: TestNode, visits: Callable[[Visit], Visit]
) -> None:
    """The lease is there while answers are remembered, and ends behind them."""
    own_node.options += ["--idle-seconds", "1"]
    own_node.start()
    start_web(own_node.client().create_sprite("idle"))
    visit = visits(Visit(own_node, "idle", bearer(own_node.token)))
    eventually(lambda: visit.ask().status == 200 and _is_known(own_node, visit), _SECONDS)

    def status() -> str:
        return str(own_node.api("GET", "/v1/sprites/idle").json()["status"])

    until = time.monotonic() + 4
    while time.monotonic() < until:
        assert visit.ask().status == 200
    assert status() == "running"
    eventually(lambda: status() == "warm", _SECONDS)
    assert visit.ask().status == 200
    assert status() == "running"
