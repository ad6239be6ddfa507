"""What runs out: a create is refused with a documented error and leaves nothing; what runs loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.host.cgroup import Cgroup, Hierarchies, Limits
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

GIB = 1 << 30

# MiB; a pool of 2 GiB has room for the second and not for the first.
_TOO_MUCH, _ENOUGH = 4000, 900
# Numbered blocks of 1 MiB, none of them synced.
_BLOCKS = "for i in $(seq {}); do printf '%01048575d\\n' $i; done"


@contextmanager
def limited(node: TestNode) -> Iterator[Cgroup]:
    """The running node's process in a cgroup of its own, whose limit the test sets. Ends with the node."""
    group = Cgroup(Hierarchies.detect(), f"test-{node.id}")
    group.make_at_the_top()
    try:
        (pid,) = node.processes("node")
        for fd in (group.open_procs(), *group.open_v1_procs()):
            with open(fd, "w") as procs:
                procs.write(str(pid))
        yield group
        node.down()
    finally:
        group.kill(10)
        group.remove()


def refused(node: TestNode, body: dict[str, Any], code: str) -> None:
    """A create is refused as docs/api.md says, and leaves neither a sprite nor a volume."""
    before = node.api("GET", "/v1/sprites").json()["sprites"]
    answer = node.api("POST", "/v1/sprites", json=body)
    assert (answer.status_code, answer.json()["error"]) == (503, code)
    assert answer.json()["hint"]
    assert int(answer.headers["Retry-After"]) == answer.json()["retry_after_seconds"]
    assert node.api("GET", f"/v1/sprites/{body['name']}").status_code == 404
    assert node.api("GET", "/v1/sprites").json()["sprites"] == before
    eventually(lambda: volumes(node) <= len(before) + 1)  # one stands by


def volumes(node: TestNode) -> int:
    """How many the node has; its pool is mounted in its own mount namespace."""
    (pid,) = node.processes("node")
    return len(list(Path(f"/proc/{pid}/root{node.data}/pool/volumes").iterdir()))


def test_no_blank_and_no_memory_left(own_node: TestNode) -> None:
    own_node.options += ["--pool", "1", "--pool-max", "1", "--reserve-mb", "1024"]
    own_node.start()
    names = iter(f"t-{ids.new_instance_id()}" for _ in range(100))
    with limited(own_node) as group:
        group.limit(Limits(memory=GIB // 2))
        made = []
        while (answer := own_node.api("POST", "/v1/sprites", json={"name": next(names)})).status_code == 201:
            made.append(answer.json()["name"])
        assert answer.json()["error"] == "no_capacity"
        assert len(made) <= 3  # blanks that stood by or were under way
        refused(own_node, {"name": next(names)}, "no_capacity")
        sprite = own_node.client().get_sprite(made[0])
        assert shell(sprite, "echo $((6 * 7))") == (0, "42\n")

        group.limit(Limits(memory=8 * GIB))
        patient = {"name": next(names), "wait_for_capacity": True}
        assert own_node.api("POST", "/v1/sprites", json=patient).status_code == 201
        eventually(lambda: own_node.api("POST", "/v1/sprites", json={"name": next(names)}).status_code == 201)


def test_a_node_without_memory_serves_what_it_has(own_node: TestNode) -> None:
    own_node.options += ["--pool", "1"]
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    own_node.terminate()
    own_node.options += ["--reserve-mb", str(1 << 30)]
    own_node.start()
    sprite = own_node.client().get_sprite(sprite.name)
    assert shell(sprite, "echo adopted") == (0, "adopted\n")
    refused(own_node, {"name": f"t-{ids.new_instance_id()}"}, "no_capacity")


def test_the_disk_is_full(own_node: TestNode) -> None:
    """Two sprites write more than the pool has: both wait; when one is destroyed, the other goes on and has it all."""
    own_node.options += ["--pool", "1", "--pool-gb", "2"]
    own_node.start()
    client = own_node.client()
    quiet, doomed, writer = (client.create_sprite(f"t-{ids.new_instance_id()}") for _ in range(3))
    for sprite, size in ((doomed, _TOO_MUCH), (writer, _ENOUGH)):
        script = f"({_BLOCKS.format(size)} > data; echo $? > done) </dev/null >/dev/null 2>&1 &"
        assert shell(sprite, script)[0] == 0
        becomes(own_node, sprite, "degraded")
        # Its disk may have been found not to answer first: who writes all there is makes every other wait.
        eventually(lambda sprite=sprite: "pool full" in last_cause(own_node, sprite))  # type: ignore[misc]
        answer = own_node.api("POST", f"/v1/sprites/{sprite.name}/exec?cmd=true")
        assert (answer.status_code, answer.json()["error"]) == (503, "degraded")
    refused(own_node, {"name": f"t-{ids.new_instance_id()}"}, "disk_full")
    assert shell(quiet, "echo small > file; sync; cat file") == (0, "small\n")

    assert own_node.api("DELETE", f"/v1/sprites/{doomed.name}").status_code == 204
    becomes(own_node, writer, "ok")
    eventually(lambda: shell(writer, "cat done") == (0, "0\n"), seconds=120)
    assert shell(writer, f"{_BLOCKS.format(_ENOUGH)} | cmp - data && echo complete") == (0, "complete\n")
    late = client.create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(late, "echo $((6 * 7))") == (0, "42\n")


def last_cause(node: TestNode, sprite: Any) -> str:
    told = node.api("GET", f"/v1/sprites/{sprite.name}/events").text.splitlines()
    return str(json.loads(told[-1])["cause"])


def becomes(node: TestNode, sprite: Any, health: str) -> None:
    path = f"/v1/sprites/{sprite.name}"
    eventually(lambda: node.api("GET", path).json()["health"] == health, seconds=120)
