"""A sprite that sleeps: what stays, what goes, and what wakes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ballpoint.core import ids
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node


@pytest.fixture
def sprite(node: TestNode) -> Iterator[Any]:
    client = node.client()
    made = client.create_sprite(f"t-{ids.new_instance_id()}")
    yield made
    client.delete_sprite(made.name)


def told(node: TestNode, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()]


def post(node: TestNode, name: str, verb: str) -> str:
    answer = node.api("POST", f"/v1/sprites/{name}/{verb}")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["status"])


def test_sleep_keeps_the_disk_and_ends_the_rest(node: TestNode, sprite: Any) -> None:
    assert shell(sprite, "echo kept > file; sleep 1000 &")[0] == 0
    before = node.api("GET", "/v1/sprites").json()
    assert post(node, sprite.name, "sleep") == "cold"
    after = node.api("GET", "/v1/sprites").json()
    assert (after["running"], after["cold"]) == (before["running"] - 1, before["cold"] + 1)
    assert node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"] == "cold"
    assert post(node, sprite.name, "wake") == "running"
    assert shell(sprite, "cat file; pgrep -c sleep") == (1, "kept\n0\n")


def test_a_command_wakes_it(node: TestNode, sprite: Any) -> None:
    assert post(node, sprite.name, "sleep") == "cold"
    assert shell(sprite, "echo awake") == (0, "awake\n")
    assert node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"] == "running"


def test_what_is_so_already_stays_so_and_is_no_event(node: TestNode, sprite: Any) -> None:
    assert post(node, sprite.name, "wake") == "running"
    assert [post(node, sprite.name, "sleep") for _ in range(2)] == ["cold", "cold"]
    assert [post(node, sprite.name, "wake") for _ in range(2)] == ["running", "running"]
    events = told(node, sprite.name)
    assert [event["kind"] for event in events] == ["created", "cold", "running"]
    assert all("with token" in event["cause"] for event in events)
