"""What the tests from inside share: sprites, and where their parts are on the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.host.cgroup import Cgroup, Hierarchies
from ballpoint.host.requirements import low_sysctls
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make_sprite(node: TestNode) -> Iterator[Make]:
    """A function that makes sprites of the shared node; they end with the module."""
    made: list[str] = []

    def make(**settings: Any) -> Any:
        name = f"t-{ids.new_instance_id()}"
        body = {"name": name, **({"config": settings} if settings else {})}
        answer = node.api("POST", "/v1/sprites", json=body)
        assert answer.status_code == 201, answer.text
        made.append(name)
        return node.client().get_sprite(name)

    yield make
    for name in made:
        assert node.api("DELETE", f"/v1/sprites/{name}").status_code in (204, 404)


@pytest.fixture(scope="session")
def host_limits(root: None) -> Iterator[None]:
    """The limits that `ballpoint up` and `./dev test` give a host, for the time of the tests."""
    former = {}
    for name, value in low_sysctls().items():
        path = Path("/proc/sys", name.replace(".", "/"))
        former[path] = path.read_text()
        path.write_text(str(value))
    yield
    for path, text in former.items():
        path.write_text(text)


def instance_of(node: TestNode, sprite: Any) -> str:
    """Id of the instance that runs `sprite`."""
    sprite_id = node.api("GET", f"/v1/sprites/{sprite.name}").json()["id"]
    for record in Path(f"/run/ballpoint/{node.id}/instances").glob("*/instance.json"):
        if json.loads(record.read_text()).get("note", {}).get("sprite") == sprite_id:
            return record.parent.name
    raise AssertionError(f"{sprite.name} has no instance")


def group_of(node: TestNode, instance: str) -> Cgroup:
    return Cgroup(Hierarchies.detect(), f"ballpoint-{node.id}").child(instance)


def agent_of(node: TestNode, instance: str) -> int:
    """The agent's pid on the host."""
    members = group_of(node, instance).child("agent").pids()
    agents = [pid for pid in members if Path(f"/proc/{pid}/comm").read_text() == "agent\n"]
    assert len(agents) == 1, members
    return agents[0]


def next_agent(node: TestNode, instance: str, former: int) -> None:
    """Wait until another agent has taken the place of `former`, which was killed."""

    def there() -> bool:
        try:
            return agent_of(node, instance) != former
        except (AssertionError, FileNotFoundError, ProcessLookupError):  # between the two
            return False

    eventually(there)


def init_of(node: TestNode, instance: str) -> int:
    """The pid of the sprite's init on the host."""
    members = group_of(node, instance).child("inner").child("main").pids()
    inits = [pid for pid in members if Path(f"/proc/{pid}/comm").read_text() == "init\n"]
    assert inits, members
    return inits[0]
