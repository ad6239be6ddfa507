"""No body makes the API fail, and what is accepted is what the node is asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unicodedata import category

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from ballpoint.core.ids import check_name

from .double import NodeDouble, app_of, caller_header

# Every code point, lone surrogates too: an escape in JSON can spell them.
TEXT = st.text(st.characters(exclude_categories=()))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=12)
KEYS = st.sampled_from(
    ["name", "config", "environment", "url_settings", "labels", "clear_labels", "wait_for_capacity", "runtime",
     "ram_mb", "ramMB", "cpus", "auth", "private_access", "profile", "devices", "noNewPrivileges", "comment",
     "checkpoint", "memory", "limit_mb", "autoscale"]
)  # fmt: skip
NEAR = st.dictionaries(KEYS, ANYTHING | st.dictionaries(KEYS, ANYTHING) | st.lists(TEXT))
ROUTES = [
    ("POST", "/v1/sprites"),
    ("PUT", "/v1/sprites/web"),
    ("POST", "/v1/sprites/web/policy/privileges"),
    ("POST", "/v1/sprites/web/policy/resources"),
    ("POST", "/v1/sprites/web/checkpoint"),
    ("POST", "/v1/sprites/web/fork"),
]


NODE = NodeDouble()
APP = app_of(NODE)


def send(method: str, path: str, content: bytes) -> httpx2.Response:
    async def once() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=APP)
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", headers=caller_header()) as client:
            return await client.request(method, path, content=content)

    return asyncio.run(once())


def check(route: tuple[str, str], content: bytes) -> None:
    NODE.reset()
    NODE.put("web")
    answer = send(*route, content)
    assert answer.status_code in (200, 201, 204, 400, 404, 409, 422)
    if answer.status_code >= 400:
        body = answer.json()
        assert isinstance(body["error"], str)
        assert isinstance(body["message"], str)
        answer.content.decode()
        assert NODE.asked == [] or answer.status_code in (404, 409)


@given(st.sampled_from(ROUTES), ANYTHING | NEAR)
@settings(deadline=None)
def test_any_json_is_accepted_or_refused(route: tuple[str, str], body: Any) -> None:
    check(route, json.dumps(body).encode())


@given(st.sampled_from(ROUTES), st.binary())
@settings(deadline=None)
def test_any_bytes_are_accepted_or_refused(route: tuple[str, str], content: bytes) -> None:
    check(route, content)


@given(TEXT | st.text("a\t\n\r\x9b"), st.sampled_from(["", "?wait=durable"]))
@settings(deadline=None)
def test_a_comment_that_is_accepted_is_what_the_checkpoint_has(comment: str, query: str) -> None:
    NODE.reset()
    NODE.put("web")
    answer = send("POST", f"/v1/sprites/web/checkpoint{query}", json.dumps({"comment": comment}).encode())
    if answer.status_code == 200:
        (made,) = NODE.checkpoints_of["o1", "web"]
        assert made.comment == comment
        assert made.durable is bool(query)
        assert all(category(each) != "Cc" or each in "\t\n" for each in comment)
        (listed,) = send("GET", "/v1/sprites/web/checkpoints", b"").json()
        assert listed["comment"] == comment
    else:
        assert answer.status_code == 422
        assert NODE.asked == []


@given(st.from_regex(r"[a-z0-9-]{1,50}", fullmatch=True), st.lists(st.text("abc", min_size=1)), st.booleans())
@settings(deadline=None)
def test_what_is_accepted_is_what_is_asked(name: str, labels: list[str], wait: bool) -> None:
    NODE.reset()
    body = {"name": name, "labels": labels[:64], "wait_for_capacity": wait}
    answer = send("POST", "/v1/sprites", json.dumps(body).encode())
    if answer.status_code == 201:
        request = NODE.requests[0]
        assert check_name(request.name) == name
        assert set(request.labels) == set(labels[:64])
        assert request.wait_for_capacity is wait
    else:
        assert answer.status_code == 422
        assert NODE.asked == []
