"""Tasks on a real node: they outlive it, and not their sprite's instance."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.nodes import TestNode, shell

pytestmark = [pytest.mark.node, pytest.mark.host]


def tasks_of(sprite: Any) -> list[dict[str, str]]:
    code, said = shell(sprite, "curl -sS --unix-socket /.sprite/api.sock http://sprite/v1/tasks")
    assert code == 0, said
    found: list[dict[str, str]] = json.loads(said)["tasks"]
    return found


def test_tasks_outlive_a_node_and_not_their_instance(own_node: TestNode) -> None:
    node = own_node.start()
    node.api("POST", "/v1/sprites", json={"name": "one"})
    sprite = node.client().get_sprite("one")
    post = """curl -sS --unix-socket /.sprite/api.sock http://sprite/v1/tasks -d '{"name": "build", "expire": "1h"}'"""
    code, said = shell(sprite, post)
    assert (code, json.loads(said)["name"]) == (0, "build")
    before = tasks_of(sprite)
    assert [each["name"] for each in before] == ["build"]
    node.kill()
    node.start()
    sprite = node.client().get_sprite("one")
    assert tasks_of(sprite) == before
    assert node.api("POST", "/v1/sprites/one/restart").status_code == 200
    assert tasks_of(sprite) == []
    for path in ("/v1/tasks", "/v1/sprites/one/tasks"):
        assert node.api("GET", path).status_code == 404
