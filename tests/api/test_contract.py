"""The statuses and shapes that official clients expect."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from ballpoint.node.views import Privileges, Resources, SpriteConfig, UrlSettings

from .double import MALLORY, NodeDouble, caller_header

SPRITE_KEYS = {
    "idle_timeout",
    "id", "name", "organization", "org_slug", "status", "health", "health_reason", "url", "url_settings", "created_at",
    "updated_at", "config", "environment", "labels", "last_running_at", "last_warming_at", "durable_at", "version",
}  # fmt: skip


async def test_create_answers_201_with_the_whole_sprite(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    answer = await client.post(
        "/v1/sprites", json={"name": "web", "labels": ["a", "b", "a"], "environment": {"A": "1"}}
    )
    assert answer.status_code == 201
    sprite = answer.json()
    assert set(sprite) == SPRITE_KEYS
    assert sprite["organization"] == sprite["org_slug"] == "acme"
    assert sprite["labels"] == ["a", "b"]
    assert sprite["environment"] == {"A": "1"}
    assert sprite["url_settings"] == {"auth": "sprite", "private_access": None}
    assert (await client.get("/v1/sprites/web")).json() == sprite


async def test_a_moment_is_rfc_3339_and_an_unknown_one_null(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web", created_at=datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC))
    sprite = (await client.get("/v1/sprites/web")).json()
    assert sprite["created_at"] == "2026-05-06T07:08:09.000000Z"
    assert sprite["last_running_at"] is None
    assert sprite["last_warming_at"] is sprite["durable_at"] is None


async def test_health_stands_beside_the_status(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web", status="warm", health="degraded", health_reason="the agent does not answer")
    sprite = (await client.get("/v1/sprites/web")).json()
    assert (sprite["status"], sprite["health"], sprite["health_reason"]) == (
        "warm",
        "degraded",
        "the agent does not answer",
    )


@pytest.mark.parametrize(
    "config",
    [
        {"ram_mb": 512, "cpus": 2, "storage_gb": 7, "region": "here"},
        {"ramMB": 512, "cpus": 2, "storageGB": 7, "region": "here"},
    ],
)
async def test_config_takes_both_spellings(
    client: httpx2.AsyncClient, node: NodeDouble, config: dict[str, Any]
) -> None:
    answer = await client.post("/v1/sprites", json={"name": "web", "config": config})
    assert answer.json()["config"] == {"ram_mb": 512, "cpus": 2, "storage_gb": 7, "region": "here"}
    assert node.requests[0].config == SpriteConfig(ram_mb=512, cpus=2, storage_gb=7, region="here")


async def test_create_passes_everything_on(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    body = {
        "name": "web",
        "url_settings": {"auth": "public", "private_access": "admins"},
        "wait_for_capacity": True,
        "runtime": "dev",
        "a_key_of_the_future": {"x": 1},
    }
    assert (await client.post("/v1/sprites", json=body)).status_code == 201
    assert node.requests[0].wait_for_capacity
    assert node.requests[0].url_settings == UrlSettings(auth="public", private_access="admins")


async def test_null_means_left_out(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    keys = ("config", "environment", "url_settings", "labels", "wait_for_capacity", "runtime")
    assert (await client.post("/v1/sprites", json={"name": "a", **dict.fromkeys(keys)})).status_code == 201
    assert (await client.post("/v1/sprites", json={"name": "b"})).status_code == 201
    first, second = node.requests
    assert (first.config, first.environment, first.labels) == (second.config, second.environment, second.labels)


async def test_a_taken_name_is_409(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.post("/v1/sprites", json={"name": "web"})
    assert (answer.status_code, answer.json()["error"]) == (409, "sprite_exists")


@pytest.mark.parametrize("name", ["", "Web", "a_b", "-a", "a-", "a.b", "a" * 49, "api", "ä", "{name}", 7, None, ["a"]])
async def test_a_bad_name_is_422_and_changes_nothing(client: httpx2.AsyncClient, node: NodeDouble, name: Any) -> None:
    answer = await client.post("/v1/sprites", json={"name": name})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert answer.json()["errors"][0].startswith("name: ")
    assert node.asked == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ([], "body"),
        ("web", "body"),
        (None, "body"),
        ({"name": "a", "config": {"ram_mb": 0}}, "config.ram_mb"),
        ({"name": "a", "config": {"ramMB": "much"}}, "config.ram"),
        ({"name": "a", "config": {"cpus": 1.5}}, "config.cpus"),
        ({"name": "a", "config": {"storage_gb": 2**40}}, "config.storage_gb"),
        ({"name": "a", "labels": ["x\n"]}, "labels.0"),
        ({"name": "a", "labels": [""]}, "labels.0"),
        ({"name": "a", "labels": ["x"] * 65}, "labels"),
        ({"name": "a", "labels": "x"}, "labels"),
        ({"name": "a", "environment": {"A=B": "x"}}, "environment.A=B"),
        ({"name": "a", "environment": {"": "x"}}, "environment"),
        ({"name": "a", "environment": {"A": "x\0"}}, "environment.A"),
        ({"name": "a", "environment": {"A": 1}}, "environment.A"),
        ({"name": "a", "environment": {"A": "x" * 131072}}, "environment"),
        ({"name": "a", "environment": {"A": "\ud800"}}, "environment.A"),
        ({"name": "a", "environment": {"\ud800": "x"}}, "environment"),
        ({"name": "a", "url_settings": {"auth": "nobody"}}, "url_settings.auth"),
        ({"name": "a", "runtime": "fast"}, "runtime"),
        ({"name": "a", "wait_for_capacity": "yes"}, "wait_for_capacity"),
    ],
)
async def test_a_bad_body_is_422_and_names_the_field(
    client: httpx2.AsyncClient, node: NodeDouble, body: Any, field: str
) -> None:
    answer = await client.post("/v1/sprites", content=json.dumps(body))  # its escapes can spell lone surrogates
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert answer.json()["errors"][0].startswith(field)
    assert answer.json()["message"].startswith(field)
    assert node.asked == []


async def test_every_failed_check_is_listed(client: httpx2.AsyncClient) -> None:
    body = (await client.post("/v1/sprites", json={"name": "A", "labels": 1})).json()
    assert len(body["errors"]) == 2
    assert body["message"] == body["errors"][0] + " (and 1 more)"
    assert body["hint"].startswith("use 1-48")


async def test_a_body_is_json_whatever_its_type_says(client: httpx2.AsyncClient) -> None:
    for number, kind in enumerate(("application/x-www-form-urlencoded", "text/plain", "", "\udcff")):
        headers = {b"content-type": kind.encode("utf-8", "surrogateescape")}
        answer = await client.post("/v1/sprites", content=f'{{"name": "a{number}"}}', headers=headers)
        assert answer.status_code == 201


async def test_list_is_one_page_with_the_counters_twice(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    for number in range(5):
        node.put(f"w{number}")
    node.put("other", MALLORY)
    page = (await client.get("/v1/sprites", params={"max_results": 2, "bulk_load": "true"})).json()
    assert [sprite["name"] for sprite in page["sprites"]] == ["w0", "w1"]
    assert set(page["sprites"][0]) == SPRITE_KEYS
    assert page["has_more"] is True
    counters = {"name": "acme", "running": 1, "warm": 2, "cold": 3, "running_limit": None, "warm_limit": None}
    assert page["org"] == counters
    assert counters.items() <= page.items()
    token = page["next_continuation_token"]
    page = (await client.get("/v1/sprites", params={"max_results": 50, "continuation_token": token})).json()
    assert [sprite["name"] for sprite in page["sprites"]] == ["w2", "w3", "w4"]
    assert (page["has_more"], page["next_continuation_token"]) == (False, None)


async def test_list_by_prefix(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("ab")
    node.put("b")
    page = (await client.get("/v1/sprites", params={"prefix": "a"})).json()
    assert [sprite["name"] for sprite in page["sprites"]] == ["ab"]


@pytest.mark.parametrize(
    ("asked", "given"), [("100", 50), ("51", 50), ("50", 50), ("7", 7), ("0", 1), ("-3", 1), ("9" * 30, 50)]
)
async def test_max_results_is_clamped(client: httpx2.AsyncClient, node: NodeDouble, asked: str, given: int) -> None:
    assert (await client.get("/v1/sprites", params={"max_results": asked})).status_code == 200
    assert node.asked[-1][1]["limit"] == given


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("max_results=many", 422),
        ("prefix=%00", 422),
        ("continuation_token=%0a", 422),
        ("continuation_token=mine", 400),
        ("continuation_token=", 200),
        ("prefix=%ff", 200),
    ],
)
async def test_a_bad_query(client: httpx2.AsyncClient, query: str, status: int) -> None:
    assert (await client.get(f"/v1/sprites?{query}")).status_code == status


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({}, ["x"]),
        ({"labels": None, "clear_labels": False}, ["x"]),
        ({"labels": []}, []),
        ({"clear_labels": True}, []),
        ({"clear_labels": True, "labels": []}, []),
        ({"labels": ["y", "z"]}, ["y", "z"]),
    ],
)
async def test_update_of_labels(
    client: httpx2.AsyncClient, node: NodeDouble, change: dict[str, Any], labels: list[str]
) -> None:
    node.put("web", labels=("x",))
    answer = await client.put("/v1/sprites/web", json=change)
    assert answer.status_code == 200
    assert set(answer.json()) == SPRITE_KEYS
    assert answer.json()["labels"] == labels


async def test_an_update_that_contradicts_itself(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.put("/v1/sprites/web", json={"labels": ["a"], "clear_labels": True})
    assert answer.status_code == 422
    assert node.asked == []


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({}, {"auth": "public", "private_access": "admins"}),
        ({"auth": "sprite"}, {"auth": "sprite", "private_access": "admins"}),
        ({"private_access": "org_users"}, {"auth": "public", "private_access": "org_users"}),
    ],
)
async def test_update_of_url_settings_is_partial(
    client: httpx2.AsyncClient, node: NodeDouble, change: dict[str, Any], result: dict[str, Any]
) -> None:
    node.put("web", url_settings=UrlSettings(auth="public", private_access="admins"))
    answer = await client.put("/v1/sprites/web", json={"url_settings": change})
    assert answer.json()["url_settings"] == result


async def test_destroy_answers_204_and_then_404(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.delete("/v1/sprites/web")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.delete("/v1/sprites/web")).status_code == 404


async def test_restart(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.post("/v1/sprites/web/restart")
    assert answer.status_code == 200
    assert answer.json() == {"sprite_name": "web", "machine_id": "sprite-web", "message": "web has restarted"}


async def test_privileges(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    path = "/v1/sprites/web/policy/privileges"
    assert (await client.get(path)).json() == {"profile": "", "devices": [], "noNewPrivileges": False}
    wish = {"profile": "minimal", "devices": ["/dev/fuse"], "noNewPrivileges": True}
    answer = await client.post(path, json=wish)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get(path)).json() == wish
    assert node.policies["o1", "web"] == Privileges(profile="minimal", devices=("/dev/fuse",), no_new_privileges=True)
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).json()["profile"] == ""
    assert (await client.post(path, json={"profile": "root"})).status_code == 422


async def test_resources(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    path = "/v1/sprites/web/policy/resources"
    assert (await client.get(path)).json() == {"memory": None}
    answer = await client.post(path, json={"memory": {"limit_mb": 300, "autoscale": True}})
    assert (answer.status_code, answer.content) == (204, b"")
    assert node.asked[-1] == ("set_resources", {"resources": Resources(memory_mb=300, autoscale=True)})
    assert (await client.get(path)).json() == {"memory": {"limit_mb": 300, "autoscale": False}}
    assert (await client.get("/v1/sprites/web")).json()["config"]["ram_mb"] == 300
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).json() == {"memory": None}
    assert (await client.post(path, json={"memory": {"limit_mb": 0}})).status_code == 422


async def test_organization_lists_what_runs(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    for number in range(120):
        node.put(f"w{number:03}", status="running" if number % 2 else "cold")
    body = (await client.get("/v1/organization")).json()["organization"]
    assert body["slug"] == "acme"
    assert body["active_sprites"] == [f"w{number:03}" for number in range(1, 120, 2)]
    assert (body["sprites_enabled"], body["max_sprites"], body["active_sprite_limit"]) == (True, None, None)


async def test_another_organization_finds_nothing(client: httpx2.AsyncClient, node: NodeDouble) -> None:
    node.put("web")
    answer = await client.get("/v1/sprites/web", headers=caller_header(MALLORY))
    assert answer.status_code == 404


@pytest.mark.parametrize("name", ["Web", "a_b", "%00", "%ff", "..", "api", "a" * 200])
async def test_a_name_that_cannot_be_is_404_without_asking(
    client: httpx2.AsyncClient, node: NodeDouble, name: str
) -> None:
    answer = await client.get(f"/v1/sprites/{name}/logs")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert node.asked == []
