"""Kill anything at random moments while clients work: what lived answers, what was half-made is finished or gone."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import httpx2
import pytest

from ballpoint.core import ids
from ballpoint.node.standby.spares import MOST as SPARES_MOST
from tests.crash.test_kill import inside, kill
from tests.support.host import traces
from tests.support.nodes import TestNode
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

ROUNDS = int(os.environ.get("BALLPOINT_ROUNDS", "24"))
KEPT, WORKERS = 3, 3
EXITED_WELL = b"\3\0"


@dataclass
class Sprite:
    """A sprite as a client knows it.

    Attributes:
        written: its client was told that its file is written.
    """

    name: str = field(default_factory=lambda: f"t-{ids.new_instance_id()}")
    written: bool = False


def run(node: TestNode, sprite: Sprite, script: str) -> httpx2.Response:
    return node.api("POST", f"/v1/sprites/{sprite.name}/exec", params={"cmd": ["sh", "-c", script]})


def output(node: TestNode, sprite: Sprite, script: str) -> str:
    """What a script says that must succeed."""
    answer = run(node, sprite, script)
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(EXITED_WELL), answer.content
    return answer.content.removesuffix(EXITED_WELL).replace(b"\1", b"").decode()


class Clients:
    """Threads that create sprites, work in them, restart and destroy them, and give one up whenever that fails."""

    def __init__(self, node: TestNode) -> None:
        self._node = node
        self._stop = threading.Event()
        self.given_up: list[Sprite] = []
        self.whole = 0
        self.strange: list[str] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            sprite = Sprite()
            if all(self._done(sprite, step) for step in (_create, _write, _restart, _read, _destroy)):
                self.whole += 1
            else:
                self.given_up.append(sprite)

    def _done(self, sprite: Sprite, step: Callable[[TestNode, Sprite], httpx2.Response]) -> bool:
        try:
            answer = step(self._node, sprite)
        except httpx2.TransportError:
            return False  # whoever served it was killed
        if answer.status_code == 503:
            return False
        if answer.status_code >= 300:
            self.strange.append(f"{step.__name__}: {answer.status_code} {answer.text}")
            return False
        if step in (_write, _read) and not answer.content.endswith(EXITED_WELL):
            return False  # its sprite was killed
        if step is _write:
            sprite.written = True
        if step is _read and answer.content != b"\1once\n" + EXITED_WELL:
            self.strange.append(f"{sprite.name} has {answer.content!r}")
        return True


def _create(node: TestNode, sprite: Sprite) -> httpx2.Response:
    return node.api("POST", "/v1/sprites", json={"name": sprite.name})


def _write(node: TestNode, sprite: Sprite) -> httpx2.Response:
    return run(node, sprite, "echo once >> file")


def _restart(node: TestNode, sprite: Sprite) -> httpx2.Response:
    return node.api("POST", f"/v1/sprites/{sprite.name}/restart")


def _read(node: TestNode, sprite: Sprite) -> httpx2.Response:
    return run(node, sprite, "cat file")


def _destroy(node: TestNode, sprite: Sprite) -> httpx2.Response:
    return node.api("DELETE", f"/v1/sprites/{sprite.name}")


# ---- victims: each is killed at once, and whatever must come back has begun to when its function returns ----


def _of_the_supervisor(name: str, node: TestNode, chance: random.Random) -> None:
    eventually(lambda: node.processes(name))  # it may be on its way after the one before
    killed = node.processes(name)
    for pid in killed:
        kill(pid)
    eventually(lambda: set(node.processes(name)) - set(killed))


def _supervisor(node: TestNode, chance: random.Random) -> None:
    node.kill()
    node.start()  # at once: its children may still be ending


def _of_an_instance(name: str, node: TestNode, chance: random.Random) -> None:
    with suppress(ProcessLookupError):  # its sprite is restarted or destroyed right now
        kill(chance.choice(inside(node, name)))


VICTIMS: dict[str, Callable[[TestNode, random.Random], None]] = {
    "node": partial(_of_the_supervisor, "node"),
    "zygote": partial(_of_the_supervisor, "zygote"),
    "edge": partial(_of_the_supervisor, "edge"),
    "supervisor": _supervisor,
    "agent": partial(_of_an_instance, "agent"),
    "anchor": partial(_of_an_instance, "anchor"),
}


def begin(node: TestNode) -> Sprite:
    """A sprite with a file and a process in its background."""
    sprite = Sprite()
    assert _create(node, sprite).status_code == 201
    output(node, sprite, "echo once >> file; sleep 10000 >/dev/null 2>&1 &")
    return sprite


def assert_lives(node: TestNode, sprite: Sprite) -> None:
    """It answers with its file, and its process runs, unless its anchor was killed: then the sprite's events say so."""
    lines = output(node, sprite, "cat file; pgrep -x sleep >/dev/null && echo runs || echo ended").splitlines()
    causes = [
        event["cause"]
        for event in map(json.loads, node.api("GET", f"/v1/sprites/{sprite.name}/events").text.splitlines())
        if event["kind"] == "stopped"
    ]
    assert lines == ["once", "ended" if causes else "runs"]
    assert set(causes) <= {"its anchor died"}


@pytest.mark.parametrize("victim", [*VICTIMS, "any"])
def test_what_lived_answers_and_what_was_half_made_is_finished_or_gone(own_node: TestNode, victim: str) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    own_node.start()
    # Its address stays, as an operator's does: a supervisor that is started again binds it while former edges end.
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    kept = [begin(own_node) for _ in range(KEPT)]
    clients = Clients(own_node)
    try:
        for _ in range(ROUNDS if victim == "any" else ROUNDS // 4):
            threading.Event().wait(chance.uniform(0.0, 0.8))
            VICTIMS[chance.choice([*VICTIMS]) if victim == "any" else victim](own_node, chance)
            for sprite in kept:
                eventually(lambda sprite=sprite: lives(own_node, sprite), 90.0)  # type: ignore[misc]
                assert_lives(own_node, sprite)
    finally:
        clients.close()
    assert clients.strange == []
    assert clients.whole > 0
    own_node.terminate()
    own_node.start()

    names = {each["name"] for each in own_node.api("GET", "/v1/sprites").json()["sprites"]}
    assert names <= {sprite.name for sprite in [*kept, *clients.given_up]}
    for sprite in kept:
        assert_lives(own_node, sprite)
    for sprite in clients.given_up:
        if sprite.name in names:
            lines = output(own_node, sprite, "touch file; cat file").splitlines()
            assert lines == ["once"] or (lines == [] and not sprite.written)
    for name in names:
        assert own_node.api("DELETE", f"/v1/sprites/{name}").status_code == 204
    (daemon,) = own_node.processes("node")
    volumes = f"/proc/{daemon}/root{own_node.data}/pool/volumes"
    # As many disks stand by as blanks; the pool has three.
    eventually(lambda: len(os.listdir(volumes)) == min(3, SPARES_MOST))
    assert own_node.terminate() == 0
    found = traces(own_node.id, own_node.data)
    assert found == dict.fromkeys(found, [])


def lives(node: TestNode, sprite: Sprite) -> bool:
    """Whether it answers now; what stands in the way while something is started again does not count."""
    try:
        return run(node, sprite, "true").status_code == 200
    except httpx2.TransportError:
        return False
