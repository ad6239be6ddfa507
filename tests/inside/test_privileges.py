"""`policy/privileges`: what it takes away is gone in the next command, after a restart, and after the agent's death."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.inside.conftest import Make, agent_of, instance_of
from tests.support.nodes import TestNode, shell
from tests.support.raw import exec_http, exec_websocket

pytestmark = pytest.mark.node

STATUS = "grep -E '^(NoNewPrivs|CapBnd):' /proc/self/status"
CAP_SYS_ADMIN, CAP_CHOWN = 21, 0  # linux/capability.h


@pytest.fixture
def sprite(make_sprite: Make) -> Any:
    return make_sprite()


@pytest.fixture
def limited(node: TestNode, sprite: Any) -> Iterator[Any]:
    answer = node.api("POST", f"/v1/sprites/{sprite.name}/policy/privileges", json={"noNewPrivileges": True})
    assert answer.status_code == 204, answer.text
    yield sprite


def no_new_privileges(sprite: Any) -> bool:
    code, said = shell(sprite, STATUS)
    assert code == 0, said
    found = re.search(r"NoNewPrivs:\t([01])", said)
    assert found, said
    return found[1] == "1"


def bounding_set(sprite: Any) -> int:
    code, said = shell(sprite, STATUS)
    found = re.search(r"CapBnd:\t([0-9a-f]{16})", said)
    assert code == 0 and found, said
    return int(found[1], 16)


def assert_no_way_up(sprite: Any) -> None:
    assert no_new_privileges(sprite)
    code, said = shell(sprite, "sudo -n id -u")
    assert code != 0 and "no new privileges" in said, said
    # Nor for what it starts, nor by another program of that kind.
    code, said = shell(sprite, "setsid --wait bash -c 'su -c id </dev/null; grep NoNewPrivs /proc/self/status'")
    assert code == 0 and "NoNewPrivs:\t1" in said and "uid=0" not in said, said


def test_sudo_works_unless_it_is_said_otherwise(sprite: Any) -> None:
    assert not no_new_privileges(sprite)
    assert shell(sprite, "sudo -n id -u") == (0, "0\n")


def test_no_new_privileges(node: TestNode, limited: Any) -> None:
    answer = node.api("GET", f"/v1/sprites/{limited.name}/policy/privileges")
    assert answer.json()["noNewPrivileges"] is True
    assert_no_way_up(limited)
    for heard in (
        exec_http(node, limited.name, "sudo", "-n", "true"),
        exec_websocket(node, limited.name, "sudo", "-n", "true"),
        exec_websocket(node, limited.name, "sudo", "-n", "true", tty="true"),
    ):
        assert heard.terminal == [1], heard
    assert shell(limited, "echo still works | cat") == (0, "still works\n")


def test_no_new_privileges_after_a_restart(node: TestNode, limited: Any) -> None:
    assert node.api("POST", f"/v1/sprites/{limited.name}/restart").status_code == 200
    assert_no_way_up(limited)


def test_no_new_privileges_after_the_agents_death(node: TestNode, limited: Any) -> None:
    os.kill(agent_of(node, instance_of(node, limited)), signal.SIGKILL)
    assert_no_way_up(limited)


def test_what_runs_already_keeps_what_it_has(node: TestNode, sprite: Any) -> None:
    """And loses it with the next restart, as all processes end in it."""
    waiting = "mkfifo go; (read _ <go; sudo -n id -u) >said 2>&1 & echo $!"
    assert shell(sprite, waiting)[0] == 0
    node.api("POST", f"/v1/sprites/{sprite.name}/policy/privileges", json={"noNewPrivileges": True})
    assert no_new_privileges(sprite)
    assert shell(sprite, "echo >go; until [ -s said ]; do read -t 0.1 <> <(:); done; cat said") == (0, "0\n")


def test_they_can_be_given_back(node: TestNode, limited: Any) -> None:
    assert no_new_privileges(limited)
    assert node.api("DELETE", f"/v1/sprites/{limited.name}/policy/privileges").status_code == 204
    assert not no_new_privileges(limited)
    assert shell(limited, "sudo -n id -u") == (0, "0\n")


def test_profiles(node: TestNode, sprite: Any) -> None:
    standard = bounding_set(sprite)
    assert standard >> CAP_SYS_ADMIN & 1 and standard >> CAP_CHOWN & 1
    node.api("POST", f"/v1/sprites/{sprite.name}/policy/privileges", json={"profile": "minimal"})
    minimal = bounding_set(sprite)
    assert minimal & ~standard == 0 and minimal >> CAP_CHOWN & 1
    assert not minimal >> CAP_SYS_ADMIN & 1
    assert shell(sprite, "mount -t tmpfs none /mnt", user="root")[0] != 0
    assert node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code == 200
    assert bounding_set(sprite) == minimal
