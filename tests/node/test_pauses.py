"""Sprites that are frozen and thawed over and over: nothing they write is lost, and nobody who comes meanwhile."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.host.cgroup import Cgroup
from ballpoint.host.changes import Changes
from tests.inside.conftest import group_of, instance_of
from tests.node.test_urls import ask, bearer, host_of
from tests.support.checkpoints import kinds, new_sprite, post, status
from tests.support.nodes import TestNode, shell
from tests.support.raw import ControlSocket, exec_http, exec_websocket
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

_SPRITES = 5
_CYCLES, _SOAK_CYCLES = 40, 2000
_ROUNDS, _SOAK_ROUNDS = 8, 1000
_MOST_ROUNDS = 100
_TOGETHER = 3
_SECONDS = 60

# One file after the other, each durable before it is noted, and the note, too.
_WRITER = """
import hashlib, os, sys, time
def content(number):
    head = b"%012d " % number
    return head + hashlib.shake_128(head).digest(9000)
def put(name, mode, data):
    with open(name, mode, buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
def noted():
    return open("noted").read().splitlines() if os.path.exists("noted") else []
os.makedirs("files", exist_ok=True)
if sys.argv[1] == "check":
    lines = noted()
    bad = [n for n in lines if open(f"files/{n}", "rb").read() != content(int(n))]
    print(len(lines), bad == [] and lines == [str(n) for n in range(len(lines))])
else:
    folder = os.open("files", os.O_RDONLY)
    number = len(noted())
    while True:
        put(f"files/{number}", "wb", content(number))
        os.fsync(folder)
        put("noted", "ab", b"%d\\n" % number)
        number += 1
        time.sleep(0.1)
"""


class Writing:
    """A sprite with a service that writes, and how much of that was seen already."""

    def __init__(self, node: TestNode) -> None:
        self.node, self.sprite = node, new_sprite(node)
        assert shell(self.sprite, f"cat > writer.py <<'END'\n{_WRITER}\nEND")[0] == 0
        body = {"cmd": "python3", "args": ["writer.py", "write"], "dir": "/home/sprite"}
        assert post_service(node, self.sprite.name, "writer", body)
        answer = node.api("PUT", f"/v1/sprites/{self.sprite.name}", json={"idle_timeout": 0.3})
        assert answer.status_code == 200, answer.text
        self.seen = 0

    def check(self) -> None:
        """All that was noted is there as it was written, and what was noted before still is."""
        code, said = shell(self.sprite, "python3 writer.py check")
        count, whole = said.split()
        assert (code, whole) == (0, "True"), said
        assert int(count) >= self.seen
        self.seen = int(count)

    def cycles(self, number: int, chance: random.Random) -> None:
        node, name = self.node, self.sprite.name
        for _ in range(number):
            group = group_of(node, instance_of(node, self.sprite))
            inner = group.child("inner")
            until_frozen(inner)
            eventually(lambda: status(node, self.sprite) == "warm")
            before = inner.cpu_microseconds()
            assert node.api("GET", f"/v1/sprites/{name}/check").json()["status"] == "hibernated"
            assert inner.cpu_microseconds() == before
            way = chance.choices(["wake", "exec", "cold"], [8, 2, 1])[0]
            if way == "exec":
                self.check()
                continue
            if way == "cold":
                assert post(node, self.sprite, "sleep").json()["status"] == "cold"
                assert not group.exists()
                assert node.api("GET", f"/v1/sprites/{name}/check").json()["status"] == "hibernated"
            assert post(node, self.sprite, "wake").json()["status"] == "running"
        before = self.seen

        def goes_on() -> bool:
            self.check()
            return self.seen > before

        eventually(goes_on, _SECONDS)


def until_frozen(group: Cgroup) -> None:
    """Wait until the kernel says that all processes of a group have stopped."""
    with (group.v2 / "cgroup.events").open("rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while b"frozen 1" not in os.pread(events.fileno(), 4096, 0):
            assert poll.poll(_SECONDS * 1000), "it is not frozen"


def post_service(node: TestNode, name: str, service: str, body: dict[str, Any]) -> bool:
    answer = node.api("PUT", f"/v1/sprites/{name}/services/{service}?duration=0", json=body)
    assert answer.status_code == 200, answer.text
    return '"complete"' in answer.text


@pytest.mark.timeout(900)
def test_no_file_is_lost_or_torn_in_two_hundred_pauses(own_node: TestNode, soak: bool) -> None:
    chance = random.Random(fresh_seed())
    own_node.options += ["--cold-seconds", "0"]
    own_node.start()
    writing = [Writing(own_node) for _ in range(_SPRITES)]
    cycles = _SOAK_CYCLES if soak else _CYCLES
    with ThreadPoolExecutor(_SPRITES) as threads:
        for done in [threads.submit(each.cycles, cycles, random.Random(chance.random())) for each in writing]:
            done.result()
    for each in writing:
        assert kinds(own_node, each.sprite).count("warm") >= cycles
        state = own_node.api("GET", f"/v1/sprites/{each.sprite.name}/services/writer").json()["state"]
        assert (state["status"], state["restart_count"]) == ("running", 0)


class Freezes:
    """Tells of the moment at which a freeze begins, as edges learn of it: what they remember is worth nothing then."""

    def __init__(self, node: TestNode) -> None:
        self._changes = Changes(node.config.instance_changes, counts=False)

    def wait(self, seconds: float = _SECONDS) -> bool:
        """Until the next begins, or for so long; looked for again and again, as a freeze takes some milliseconds."""
        before = self._changes.look()
        until = SYSTEM_CLOCK.monotonic() + seconds
        soon = threading.Event()
        while self._changes.look() == before:
            if SYSTEM_CLOCK.monotonic() > until:
                return False
            soon.wait(0.0005)
        return True

    def close(self) -> None:
        self._changes.close()


def _through_the_proxy(node: TestNode, name: str) -> None:
    with connect(
        f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/proxy",
        additional_headers={"Authorization": f"Bearer {node.token}"},
        proxy=None,
        open_timeout=60,
    ) as proxy:
        proxy.send(json.dumps({"host": "localhost", "port": 3000}))
        assert json.loads(proxy.recv(timeout=60))["status"] == "connected"
        proxy.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = proxy.recv(timeout=60)
        assert isinstance(answer, bytes)
        assert answer.startswith(b"HTTP/1.0 200 OK")


def _url(node: TestNode, name: str) -> None:
    assert ask(node, host_of(node, name), bearer(node.token)).status == 200


def _exec(node: TestNode, name: str) -> None:
    assert exec_websocket(node, name, "echo", "hi").stdout == b"hi\n"


def _exec_over_http(node: TestNode, name: str) -> None:
    assert exec_http(node, name, "echo", "hi").stdout == b"hi\n"


def _file(node: TestNode, name: str) -> None:
    answer = node.api("GET", f"/v1/sprites/{name}/fs/read", params={"path": "/etc/hostname"})
    assert (answer.status_code, answer.text) == (200, "sprite\n")


def _wake(node: TestNode, name: str) -> None:
    assert node.api("POST", f"/v1/sprites/{name}/wake").status_code == 200


_TOUCHES: list[Callable[[TestNode, str], None]] = [_through_the_proxy, _url, _exec, _exec_over_http, _file, _wake]


def _falling_asleep(node: TestNode, number: int) -> list[Any]:
    """Sprites that sleep as soon as nobody is there, all at the same moment."""
    made = [new_sprite(node) for _ in range(number)]
    for each in made:
        body = {"cmd": "python3", "args": ["-m", "http.server", "3000"], "http_port": 3000}
        assert post_service(node, each.name, "web", body)
        _url(node, each.name)  # it listens
        assert node.api("PUT", f"/v1/sprites/{each.name}", json={"idle_timeout": 0.001}).status_code == 200
    return made


@pytest.mark.timeout(900)
def test_whoever_comes_at_the_moment_of_a_freeze_is_served(own_node: TestNode, soak: bool) -> None:
    chance = random.Random(fresh_seed())
    own_node.options += ["--cold-seconds", "0"]
    own_node.start()
    sprites = _falling_asleep(own_node, _TOGETHER)
    sockets = [ControlSocket(own_node, each.name) for each in sprites]

    def come(after: float, touch: Callable[[], None]) -> None:
        threading.Event().wait(after)
        touch()

    def over(control: ControlSocket) -> None:
        assert control.run("echo", "hi").stdout == b"hi\n"

    touches = [partial(touch, own_node, each.name) for each in sprites for touch in _TOUCHES]
    touches += [partial(over, control) for control in sockets]
    with closing(Freezes(own_node)) as freezes, ThreadPoolExecutor(len(touches)) as threads:
        for _ in range(_SOAK_ROUNDS if soak else _ROUNDS):
            assert freezes.wait()
            # Some at once, some while it goes on, some just after.
            coming = [threads.submit(come, chance.choice([0.0, chance.uniform(0, 0.03)]), each) for each in touches]
            for each in coming:
                each.result()
    for control in sockets:
        control.close()
    for each in sprites:
        assert "warm" in kinds(own_node, each)
        eventually(lambda each=each: status(own_node, each) == "warm")  # type: ignore[misc]


# A task at each signal; what asks for it does nothing else, so that it is there at once.
_ASKER = """
import signal, socket
request = b"PUT /v1/tasks/t HTTP/1.1\\r\\nHost: sprite\\r\\nContent-Length: 15\\r\\n\\r\\n{\\"expire\\": 600}"
def asked(number, frame):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/.sprite/api.sock")
        sock.sendall(request)
        assert b" 200 " in sock.recv(65536)
signal.signal(signal.SIGUSR1, asked)
while True:
    signal.pause()
"""


@pytest.mark.timeout(900)
def test_a_task_that_is_asked_for_at_the_moment_of_a_freeze_keeps_it_awake(own_node: TestNode, soak: bool) -> None:
    chance = random.Random(fresh_seed())
    own_node.options += ["--cold-seconds", "0"]
    own_node.start()
    sprites = [new_sprite(own_node) for _ in range(_TOGETHER)]
    askers = {}
    for each in sprites:
        assert shell(each, f"cat > asker.py <<'END'\n{_ASKER}\nEND")[0] == 0
        assert post_service(
            own_node, each.name, "asker", {"cmd": "python3", "args": ["asker.py"], "dir": "/home/sprite"}
        )
        group = group_of(own_node, instance_of(own_node, each)).child("inner").child("svc-asker")
        eventually(lambda group=group: _waiting_for(group, signal.SIGUSR1))  # type: ignore[misc]
        (askers[each.name],) = _waiting_for(group, signal.SIGUSR1)
    for each in sprites:
        assert own_node.api("PUT", f"/v1/sprites/{each.name}", json={"idle_timeout": 0.001}).status_code == 200
    granted = 0
    with closing(Freezes(own_node)) as freezes:
        rounds = 0
        # On a machine with much to do, a question seldom comes before the freeze does.
        while rounds < (_SOAK_ROUNDS if soak else _ROUNDS) or (granted == 0 and rounds < _MOST_ROUNDS):
            rounds += 1
            assert freezes.wait()
            threading.Event().wait(chance.uniform(0, 0.02))
            for pid in askers.values():
                os.kill(pid, signal.SIGUSR1)
            for each in sprites:
                eventually(lambda each=each: _kept_or_asleep(own_node, each))  # type: ignore[misc]
            for each in sprites:
                if _tasks(own_node, each):
                    # One that was asked for before the freeze and heard of after it has the sprite thawed.
                    eventually(lambda each=each: status(own_node, each) == "running")  # type: ignore[misc]
                    granted += 1
                end = "until curl -fsS --unix-socket /.sprite/api.sock -X DELETE http://sprite/v1/tasks/t; do :; done"
                assert shell(each, end)[0] == 0  # what was frozen before it had asked asks now
    assert granted > 0


def _waiting_for(group: Cgroup, number: int) -> list[int]:
    """Those in a group that take a signal."""
    found = []
    for pid in group.pids():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends right now
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            caught = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
            if int(caught, 16) >> number - 1 & 1:
                found.append(pid)
    return found


def _tasks(node: TestNode, sprite: Any) -> dict[str, Any]:
    """What the node has noted, and so would know after its own end, too."""
    note = Path(f"/run/ballpoint/{node.id}/instances/{instance_of(node, sprite)}/instance.json")
    return dict(json.loads(note.read_text())["note"].get("tasks", {}))


def _kept_or_asleep(node: TestNode, sprite: Any) -> bool:
    """It has its task and runs, or it sleeps and has asked for none yet."""
    return (status(node, sprite) == "running") == bool(_tasks(node, sprite))
