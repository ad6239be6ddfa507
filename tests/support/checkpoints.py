"""Checkpoints of sprites of a real node, by plain requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2

from ballpoint.core import ids
from tests.support.nodes import TestNode, shell


def new_sprite(node: TestNode, **settings: Any) -> Any:
    """A running sprite, as the official SDK has it."""
    name = f"t-{ids.new_instance_id()}"
    answer = node.api("POST", "/v1/sprites", json={"name": name, **settings})
    assert answer.status_code == 201, answer.text
    return node.client().sprite(name)


def write(sprite: Any, text: str) -> None:
    assert shell(sprite, f"echo {text} > file")[0] == 0


def content(sprite: Any) -> str:
    """What `write` wrote."""
    code, said = shell(sprite, "cat file")
    assert code == 0, said
    return said.strip()


def post(node: TestNode, sprite: Any, verb: str, **arguments: Any) -> httpx2.Response:
    return node.api("POST", f"/v1/sprites/{sprite.name}/{verb}", **arguments)


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The steps that a stream told."""
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def completed(answer: httpx2.Response) -> list[dict[str, Any]]:
    """As `lines`, of a stream that says that all is done."""
    told = lines(answer)
    assert told[-1]["type"] == "complete", told
    return told


def checkpoint(node: TestNode, sprite: Any, comment: str = "", **arguments: Any) -> str:
    """Make one. Returns its id."""
    told = completed(post(node, sprite, "checkpoint", json={"comment": comment}, **arguments))
    return str(told[-1]["data"].split()[1])


def restore(node: TestNode, sprite: Any, checkpoint_id: str) -> list[dict[str, Any]]:
    return completed(post(node, sprite, f"checkpoints/{checkpoint_id}/restore"))


def fork(node: TestNode, sprite: Any, checkpoint_id: str | None = None) -> Any:
    name = f"t-{ids.new_instance_id()}"
    answer = post(node, sprite, "fork", json={"name": name, "checkpoint": checkpoint_id})
    assert answer.status_code == 201, answer.text
    return node.client().sprite(name)


def listed(node: TestNode, sprite: Any, *, auto: bool = True) -> list[dict[str, Any]]:
    answer = node.api("GET", f"/v1/sprites/{sprite.name}/checkpoints", params={"includeAuto": str(auto).lower()})
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def disk(node: TestNode, sprite: Any) -> dict[str, Any]:
    answer = node.api("GET", f"/v1/sprites/{sprite.name}/disk")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def status(node: TestNode, sprite: Any) -> str:
    return str(node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"])


def events(node: TestNode, sprite: Any) -> list[dict[str, Any]]:
    answer = node.api("GET", f"/v1/sprites/{sprite.name}/events")
    return [json.loads(line) for line in answer.text.splitlines()]


def kinds(node: TestNode, sprite: Any) -> list[str]:
    return [event["kind"] for event in events(node, sprite)]


def pool(node: TestNode) -> Path:
    """The node's pool, which is mounted in its own mount namespace."""
    (pid,) = node.processes("node")
    return Path(f"/proc/{pid}/root{node.data}/pool")
