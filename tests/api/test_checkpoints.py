"""Checkpoints, forks and the disk: the statuses and shapes that official clients expect, and ours beside them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from ballpoint.api.bodies import MAX_COMMENT
from ballpoint.core.clock import rfc3339
from ballpoint.node.views import CheckpointView

from .double import ALICE, MALLORY, START, NodeDouble, caller_header

WEB = "/v1/sprites/web"
CHECKPOINTS = f"{WEB}/checkpoints"


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def made(client: httpx2.AsyncClient, node: NodeDouble, *comments: str) -> None:
    node.put("web")
    for comment in comments:
        assert (await client.post(f"{WEB}/checkpoint", json={"comment": comment})).status_code == 200


async def test_a_checkpoint_is_told_step_by_step_and_its_id_at_the_end(
    client: httpx2.AsyncClient, node: NodeDouble
) -> None:
    node.put("web")
    assert lines(await client.post(f"{WEB}/checkpoint", json={"comment": "before the upgrade"})) == [
        {"type": "info", "data": "the disk is kept", "time": rfc3339(START)},
        {"type": "complete", "data": "web has the checkpoint v0", "time": rfc3339(START + timedelta(seconds=1))},
    ]
    assert node.asked == [("checkpoint", {"comment": "before the upgrade", "wait_durable": False})]


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b'{"comment": null}', b'{"comment": ""}'])
async def test_a_checkpoint_needs_no_comment(client: httpx2.AsyncClient, node: NodeDouble, content: bytes) -> None:
    node.put("web")
    assert lines(await client.post(f"{WEB}/checkpoint", content=content))[-1]["type"] == "complete"
    assert node.asked[0][1]["comment"] == ""


@pytest.mark.parametrize("comment", ["a\0", "a\x1b[2J", "a\r", "a\x9b", "a" * (MAX_COMMENT + 1), 7, ["a"]])
async def test_a_comment_that_cannot_be_is_422(client: httpx2.AsyncClient, node: NodeDouble, comment: Any) -> None:
    node.put("web")
    answer = await client.post(f"{WEB}/checkpoint", json={"comment": comment})
    assert (answer.status_code, answer.json()["errors"][0].partition(":")[0]) == (422, "comment")
    assert node.asked == []


@pytest.mark.parametrize(("query", "waits"), [("", False), ("?wait=durable", True)])
async def test_a_checkpoint_waits_for_the_store_where_it_shall(
    client: httpx2.AsyncClient, node: NodeDouble, query: str, waits: bool
) -> None:
    node.put("web")
    await client.post(f"{WEB}/checkpoint{query}")
    assert node.asked[0][1]["wait_durable"] is waits
    assert (await client.post(f"{WEB}/checkpoint?wait=long")).status_code == 422


async def test_checkpoints_are_a_bare_array_oldest_first(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    await made(client, node, "one", "two")
    answer = await client.get(CHECKPOINTS)
    assert answer.json() == [
        {
            "id": "v0", "create_time": rfc3339(START), "comment": "one", "is_auto": False, "durable": False,
            "source_id": None, "health": "", "history": [],
        },
        {
            "id": "v1", "create_time": rfc3339(START), "comment": "two", "is_auto": False, "durable": False,
            "source_id": "v0", "health": "", "history": ["v0"],
        },
    ]  # fmt: skip
    for each in answer.json():
        assert (await client.get(f"{CHECKPOINTS}/{each['id']}")).json() == each


async def test_no_checkpoints_are_an_empty_array(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    assert (await client.get(CHECKPOINTS)).json() == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["v0", "v1"]),
        ("?includeAuto=false", ["v0", "v1"]),
        ("?includeAuto=true", ["v0", "auto-1", "v1"]),
        ("?history=", ["v0", "v1"]),
        ("?history=v0", ["v0", "v1"]),
        ("?history=auto-1&includeAuto=true", ["auto-1", "v1"]),
        ("?history=v1", ["v1"]),
        ("?history=v7", []),
    ],
)
async def test_checkpoints_are_chosen_by_history_and_kind(
    client: httpx2.AsyncClient, node: NodeDouble, query: str, found: list[str]
) -> None:
    node.put("web")
    history: tuple[str, ...] = ()
    for name in ("v0", "auto-1", "v1"):
        view = CheckpointView(
            id=name, create_time=START, comment="", is_auto=name == "auto-1", durable=True, history=history
        )
        node.checkpoints_of.setdefault(("o1", "web"), []).append(view)
        history += (name,)
    assert [each["id"] for each in (await client.get(CHECKPOINTS + query)).json()] == found


async def test_delete_answers_204_then_404_and_409_for_the_one_in_use(
    client: httpx2.AsyncClient, node: NodeDouble
) -> None:
    await made(client, node, "one", "two")
    answer = await client.delete(f"{CHECKPOINTS}/v0")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.delete(f"{CHECKPOINTS}/v0")).status_code == 404
    answer = await client.delete(f"{CHECKPOINTS}/v1")
    assert (answer.status_code, answer.json()["error"]) == (409, "in_use")


async def test_restore_is_told_step_by_step(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    await made(client, node, "one")
    told = lines(await client.post(f"{CHECKPOINTS}/v0/restore"))
    assert [line["type"] for line in told] == ["info", "complete"]
    assert "v0" in told[-1]["data"]
    assert node.asked[-1] == ("restore", {"checkpoint_id": "v0"})


@pytest.mark.parametrize("checkpoint", ["v7", "%00", "%ff", "v0%0a", "v%20", "{name}", "a" * 65])
@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("DELETE", ""), ("POST", "/restore")])
async def test_an_unknown_checkpoint_is_404(
    client: httpx2.AsyncClient, node: NodeDouble, checkpoint: str, method: str, below: str
) -> None:
    await made(client, node, "one")
    asked = list(node.asked)
    answer = await client.request(method, f"{CHECKPOINTS}/{checkpoint}{below}")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert (node.asked == asked) is (checkpoint != "v7")


@pytest.mark.parametrize("more", [{}, {"checkpoint": None}, {"checkpoint": "v0"}])
async def test_fork_answers_201_with_the_new_sprite(
    client: httpx2.AsyncClient, node: NodeDouble, more: dict[str, Any]
) -> None:
    await made(client, node, "one")
    answer = await client.post(f"{WEB}/fork", json={"name": "copy", **more})
    assert (answer.status_code, answer.json()["name"]) == (201, "copy")
    assert (await client.get("/v1/sprites/copy")).json() == answer.json()
    request = node.asked[-2][1]["request"]
    assert (request.name, request.checkpoint) == ("copy", more.get("checkpoint"))


@pytest.mark.parametrize(
    ("body", "status", "asks"),
    [
        ({"name": "web"}, 409, True),
        ({"name": "copy", "checkpoint": "v7"}, 404, True),
        ({"name": "copy", "checkpoint": ""}, 404, False),
        ({"name": "copy", "checkpoint": "v0\n"}, 404, False),
        ({"name": "copy", "checkpoint": 0}, 422, False),
        ({"name": "Copy"}, 422, False),
        ({}, 422, False),
    ],
)
async def test_a_bad_fork_is_refused(
    client: httpx2.AsyncClient, node: NodeDouble, body: dict[str, Any], status: int, asks: bool
) -> None:
    await made(client, node, "one")
    assert (await client.post(f"{WEB}/fork", json=body)).status_code == status
    assert (node.asked[-1][0] == "fork") is asks
    assert list(node.sprites) == [("o1", "web")]


async def test_the_disk_and_a_sync(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    await made(client, node, "one")
    disk = (await client.get(f"{WEB}/disk")).json()
    view = await node.disk(ALICE, "web")
    assert disk == {
        "place": view.place,
        "size": view.size,
        "bytes_written": view.bytes_written,
        "bytes_stored": view.bytes_stored,
        "checkpoints": view.checkpoints,
        "lag_seconds": view.lag_seconds,
        "durable_at": rfc3339(START),
    }
    answer = await client.post(f"{WEB}/sync")
    assert (answer.status_code, answer.json()) == (200, {**disk, "lag_seconds": None})
    assert node.asked[-1] == ("sync", {})


async def test_sleep_and_wake_answer_with_the_sprite(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    for verb, status in (("sleep", "cold"), ("wake", "running")):
        answer = await client.post(f"{WEB}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (200, status)
        assert (await client.get(WEB)).json() == answer.json()


async def test_another_organization_finds_no_checkpoint(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    await made(client, node, "one")
    answer = await client.get(f"{CHECKPOINTS}/v0", headers=caller_header(MALLORY))
    assert answer.status_code == 404
