"""A sprite that nobody uses is frozen, then cold; whoever wants it has it at once, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect

from ballpoint.core import ids
from tests.inside.conftest import agent_of, group_of, instance_of, next_agent
from tests.support.nodes import TestNode, shell
from tests.support.raw import ControlSocket, Cursors, watch
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def quick(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    """A node that freezes after a second."""
    made = TestNode(tmp_path_factory.mktemp("quick") / "data", ["--idle-seconds", "1", "--cold-seconds", "0"])
    made.start()
    yield made
    made.down()


@pytest.fixture
def name(quick: TestNode) -> Iterator[str]:
    made = f"t-{ids.new_instance_id()}"
    quick.client().create_sprite(made)
    yield made
    quick.api("DELETE", f"/v1/sprites/{made}")


def status(node: TestNode, name: str) -> str:
    return str(node.api("GET", f"/v1/sprites/{name}").json()["status"])


def becomes(node: TestNode, name: str, wanted: str) -> None:
    eventually(lambda: status(node, name) == wanted)


def events(node: TestNode, name: str) -> list[tuple[str, str]]:
    lines = node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()
    return [(each["kind"], each["cause"]) for each in map(json.loads, lines)]


def frozen(node: TestNode, name: str) -> bool:
    """What the kernel says."""
    group = group_of(node, instance_of(node, node.client().get_sprite(name))).child("inner")
    return "frozen 1" in (group.v2 / "cgroup.events").read_text()


def test_idle_then_warm_then_woken_with_its_memory(quick: TestNode, name: str) -> None:
    sprite = quick.client().get_sprite(name)
    assert shell(sprite, "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done) & echo $! > /tmp/pid")[0] == 0
    becomes(quick, name, "warm")
    assert frozen(quick, name)
    listed = quick.api("GET", "/v1/sprites", params={"prefix": name}).json()
    assert [each["status"] for each in listed["sprites"]] == ["warm"]
    assert (listed["running"], listed["warm"]) == (0, 1)
    code, said = shell(sprite, "kill -0 $(cat /tmp/pid) && kill $(cat /tmp/pid) && echo same")
    assert (code, said) == (0, "same\n")
    eventually(lambda: [kind for kind, _ in events(quick, name)][:3] == ["created", "warm", "running"])
    causes = dict(events(quick, name)[:3])
    assert causes["warm"] == "idle for 1 s"
    assert causes["running"].startswith("exec by token ")


# What is asked of a sprite, by ways of which each must wake it.
TOUCHES = (
    "exec", "http", "fs", "fs/watch", "services", "ports/watch", "sessions", "control", "proxy", "wake", "restart",
)  # fmt: skip


def touch(node: TestNode, name: str, way: str) -> None:
    """Ask something of it, and see that it is answered."""
    if way == "exec":
        assert shell(node.client().get_sprite(name), "echo hi") == (0, "hi\n")
    elif way == "http":
        assert node.api("POST", f"/v1/sprites/{name}/exec?cmd=true").content == b"\3\0"
    elif way == "fs":
        assert (node.client().get_sprite(name).filesystem() / "/etc/hostname").read_text() == "sprite\n"
    elif way in ("services", "sessions"):
        below = "exec" if way == "sessions" else way
        assert node.api("GET", f"/v1/sprites/{name}/{below}").status_code == 200
    elif way == "control":
        control = ControlSocket(node, name)
        assert control.run("echo", "hi").stdout == b"hi\n"
        control.close()
    elif way in ("wake", "restart"):
        assert node.api("POST", f"/v1/sprites/{name}/{way}").status_code == 200
    else:
        with connect(
            f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}/{way}",
            additional_headers={"Authorization": f"Bearer {node.token}"},
            proxy=None,
        ) as opened:
            if way == "proxy":
                opened.send(json.dumps({"host": "localhost", "port": 1}))
            elif way == "fs/watch":
                opened.send(json.dumps({"type": "subscribe", "paths": ["/tmp"], "workingDir": "/"}))
            if way != "ports/watch":  # which says something when a port is opened
                opened.recv(timeout=60)
                assert status(node, name) == "running"


def woken(node: TestNode, name: str, way: str) -> bool:
    return ("restarted" if way == "restart" else "running") in [kind for kind, _ in events(node, name)]


@pytest.mark.parametrize("way", TOUCHES)
def test_every_touch_wakes_it(quick: TestNode, name: str, way: str) -> None:
    becomes(quick, name, "warm")
    touch(quick, name, way)
    eventually(lambda: woken(quick, name, way))
    becomes(quick, name, "warm")


@pytest.mark.parametrize("way", TOUCHES)
def test_every_touch_starts_it_from_its_disk(quick: TestNode, name: str, way: str) -> None:
    assert quick.api("POST", f"/v1/sprites/{name}/sleep").json()["status"] == "cold"
    touch(quick, name, way)
    eventually(lambda: woken(quick, name, way))


def test_who_goes_on_with_what_he_had_wakes_it(quick: TestNode, name: str) -> None:
    cursors = Cursors()
    with watch(quick, name, None, cursors, cmd=["sleep", "600"], max_run_after_disconnect="0") as begun:
        cursors.take(begun.recv(timeout=60))
    control = ControlSocket(quick, name)
    assert control.run("true").terminal == [0]
    becomes(quick, name, "warm")
    assert control.run("echo", "hi").stdout == b"hi\n"
    becomes(quick, name, "warm")
    with watch(quick, name, str(cursors.info["session_id"]), Cursors()) as again:
        again.recv(timeout=60)
        assert status(quick, name) == "running"
    control.close()
    becomes(quick, name, "warm")


def test_where_memory_is_short_who_sleeps_gives_back_his(own_node: TestNode) -> None:
    own_node.options += ["--cold-seconds", "0"]
    own_node.start()
    own_node.api("POST", "/v1/sprites", json={"name": "sleeper", "idle_timeout": 0.5})
    assert shell(own_node.client().get_sprite("sleeper"), "echo kept > notes; sync")[0] == 0
    becomes(own_node, "sleeper", "warm")
    own_node.terminate()
    options = own_node.options
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    own_node.options = [*options, "--reserve-mb", str(total)]  # more than is left, whatever else runs
    own_node.start()
    becomes(own_node, "sleeper", "cold")
    eventually(lambda: ("cold", "memory is short") in events(own_node, "sleeper"))
    own_node.terminate()
    own_node.options = options
    own_node.start()
    assert shell(own_node.client().get_sprite("sleeper"), "cat notes") == (0, "kept\n")


def test_looking_at_it_wakes_nothing(quick: TestNode, name: str) -> None:
    becomes(quick, name, "warm")
    for path in ("", "/events", "/logs", "/activity", "/check", "/checkpoints", "/disk", "/policy/privileges"):
        assert quick.api("GET", f"/v1/sprites/{name}{path}").status_code == 200
    assert quick.api("POST", f"/v1/sprites/{name}/checkpoint").text.splitlines()[-1].find("complete") > 0
    assert quick.api("GET", f"/v1/sprites/{name}/check").json()["status"] == "hibernated"
    assert status(quick, name) == "warm"
    assert frozen(quick, name)


def test_what_is_attached_keeps_it_awake_and_says_so(quick: TestNode, name: str) -> None:
    cursors = Cursors()
    with watch(quick, name, None, cursors, cmd=["cat"], stdin="true") as connection:
        cursors.take(connection.recv(timeout=60))
        seen = []
        for _ in range(30):
            seen.append(quick.api("GET", f"/v1/sprites/{name}/activity").json())
            _wait(0.1)
        assert {each["status"] for each in seen} == {"running"}
        assert {reason["what"] for each in seen for reason in each["reasons"]} == {"exec"}
        assert all(each["reasons"] and each["sleeps_in"] is None for each in seen)
        assert quick.api("GET", f"/v1/sprites/{name}/check").json()["status"] == "healthy"
        # Long enough to be seen.
        assert quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": 600}).is_success
    eventually(lambda: quick.api("GET", f"/v1/sprites/{name}/activity").json()["sleeps_in"] is not None)
    assert quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": "default"}).is_success
    becomes(quick, name, "warm")
    assert quick.api("GET", f"/v1/sprites/{name}/activity").json()["reasons"] == []


def test_its_own_time(quick: TestNode, name: str) -> None:
    answer = quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": "0"})
    assert answer.json()["idle_timeout"] == 0
    assert quick.api("GET", f"/v1/sprites/{name}/activity").json()["idle_timeout"] is None
    assert quick.api("POST", f"/v1/sprites/{name}/wake").is_success  # it may sleep already
    _wait(2.5)
    assert status(quick, name) == "running"
    assert quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": "1s"}).json()["idle_timeout"] == 1
    becomes(quick, name, "warm")
    assert quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": "default"}).json()["idle_timeout"] is None
    wrong: tuple[Any, ...] = (-1, "soon", True, [], 1e12)
    for bad in wrong:
        assert quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": bad}).status_code == 422


def test_a_hundred_touches_while_it_falls_asleep(quick: TestNode, name: str) -> None:
    """Whoever comes when it sleeps, or is about to, waits for nothing and loses nothing."""
    chance = random.Random(fresh_seed())
    quick.api("PUT", f"/v1/sprites/{name}", json={"idle_timeout": 0.001})
    sprites = [quick.client().get_sprite(name) for _ in range(5)]

    def run(number: int, after: float) -> None:
        _wait(after)
        assert shell(sprites[number], f"echo {number} {after}") == (0, f"{number} {after}\n")

    def slept() -> int:
        return [kind for kind, _ in events(quick, name)].count("warm")

    rounds = 0
    with ThreadPoolExecutor(len(sprites)) as threads:
        # How often it sleeps is chance: an edge lets go of it after a second, and the node looks once a second.
        while rounds < 20 or (slept() < 5 and rounds < 200):
            rounds += 1
            _wait(chance.uniform(0.9, 2.1))
            list(threads.map(run, range(len(sprites)), [chance.uniform(0, 0.1) for _ in sprites]))
    assert slept() >= 5


def test_a_killed_agent_does_not_keep_a_sprite_from_waking(quick: TestNode, name: str) -> None:
    sprite = quick.client().get_sprite(name)
    becomes(quick, name, "warm")
    instance = instance_of(quick, sprite)
    former = agent_of(quick, instance)
    os.kill(former, signal.SIGKILL)
    next_agent(quick, instance, former)
    assert status(quick, name) == "warm"
    assert shell(sprite, "echo on") == (0, "on\n")


def test_the_next_node_knows_who_is_warm_and_who_is_held(own_node: TestNode) -> None:
    own_node.options += ["--idle-seconds", "1"]
    own_node.start()
    for each in ("asleep", "held"):
        own_node.client().create_sprite(each)
    becomes(own_node, "asleep", "warm")
    cursors = Cursors()
    with watch(own_node, "held", None, cursors, cmd=["cat"], stdin="true") as connection:
        cursors.take(connection.recv(timeout=60))
        (node,) = own_node.processes("node")
        os.kill(node, signal.SIGKILL)
        eventually(lambda: own_node.processes("node") not in ([], [node]))
        eventually(lambda: own_node.api("GET", "/v1/sprites/asleep").status_code == 200)
        assert status(own_node, "asleep") == "warm"
        assert frozen(own_node, "asleep")
        _wait(3)
        assert status(own_node, "held") == "running"
        connection.send(b"\0still\n")
        while not cursors.stdout:
            cursors.take(connection.recv(timeout=60))
    becomes(own_node, "held", "warm")
    assert shell(own_node.client().get_sprite("asleep"), "echo on") == (0, "on\n")


@pytest.mark.parametrize("what", ["connection", "task"])
def test_what_a_killed_node_was_freezing_goes_on_if_it_is_held(own_node: TestNode, what: str) -> None:
    """It had begun before it could hear of that, and was killed before it asked again."""
    sprite = own_node.start().client().create_sprite("one")
    inner = group_of(own_node, instance_of(own_node, sprite)).child("inner")
    with ExitStack() as stack:
        if what == "task":
            task = """-X PUT http://sprite/v1/tasks/t -d '{"expire": "1h"}'"""
            assert shell(sprite, f"curl -fsS --unix-socket /.sprite/api.sock {task}")[0] == 0
        else:
            connection = stack.enter_context(watch(own_node, "one", None, Cursors(), cmd=["cat"], stdin="true"))
            connection.recv(timeout=60)
        (node,) = own_node.processes("node")
        os.kill(node, signal.SIGKILL)
        inner.freeze(True)
        eventually(lambda: own_node.processes("node") not in ([], [node]))
        eventually(lambda: own_node.api("GET", "/v1/sprites/one/activity").status_code == 200)
        eventually(lambda: status(own_node, "one") == "running")
        assert not frozen(own_node, "one")
        assert own_node.api("GET", "/v1/sprites/one/activity").json()["reasons"]


def test_from_warm_to_cold_and_back_with_the_disk(own_node: TestNode) -> None:
    own_node.options += ["--idle-seconds", "1", "--cold-seconds", "1"]
    own_node.start()
    sprite = own_node.client().create_sprite("one")
    script = "trap 'echo ended > ended; exit' TERM; echo $$ > pid; while :; do sleep 0.1; done"
    shell(sprite, f"echo kept > file; sync; nohup bash -c {json.dumps(script)} > /dev/null 2>&1 &")
    becomes(own_node, "one", "cold")
    eventually(lambda: ("cold", "idle for 1 s more") in events(own_node, "one"))
    # Those that ran were asked first.
    assert shell(sprite, "cat file ended") == (0, "kept\nended\n")


def test_the_listing_is_watched(quick: TestNode, name: str) -> None:
    lines: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {quick.token}", "Accept": "application/x-ndjson"}
    with httpx2.stream("GET", f"{quick.url}/v1/sprites?prefix={name}", headers=headers, timeout=60) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        for line in answer.iter_lines():
            lines.append(json.loads(line))
            kinds = [(each["type"], each.get("status")) for each in lines]
            if kinds[-1] == ("sprite", "warm"):
                quick.api("DELETE", f"/v1/sprites/{name}")
            if kinds[-1][0] == "removed":
                break
    assert kinds[0][0] == "sprite"
    assert {each["name"] for each in lines if each["type"] != "heartbeat"} == {name}
    assert all(each["org"]["name"] == "acme" for each in lines)


def test_a_watch_of_nothing_says_so_at_once(quick: TestNode) -> None:
    """Clients wait for the head of the answer before they do anything else."""
    headers = {"Authorization": f"Bearer {quick.token}", "Accept": "application/x-ndjson"}
    with httpx2.stream("GET", f"{quick.url}/v1/sprites?prefix=no-such", headers=headers, timeout=10) as answer:
        assert answer.status_code == 200
        assert json.loads(next(answer.iter_lines()))["type"] == "heartbeat"


def test_a_service_alone_keeps_no_sprite_awake(quick: TestNode, name: str) -> None:
    sprite = quick.client().get_sprite(name)
    sprite.create_service("web", "sleep", ["600"], duration=0.1)
    before = sprite.get_service("web").state
    becomes(quick, name, "warm")
    after = sprite.get_service("web").state
    assert before is not None and after is not None
    assert (after.status, after.pid) == (before.status, before.pid) and before.status == "running"


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
