"""What the API is for code inside a sprite: its own sprite, and less of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ballpoint.api.inside import Inside
from ballpoint.core.types import Caller
from ballpoint.node.inside import SCOPE_KEY
from tests.api.double import ALICE, NodeDouble, app_of

SERVED = [
    ("GET", "/v1/checkpoints", "/v1/sprites/one/checkpoints"),
    ("GET", "/v1/checkpoints/v0", "/v1/sprites/one/checkpoints/v0"),
    ("DELETE", "/v1/checkpoints/auto-2026-01-02T03.04.05Z", "/v1/sprites/one/checkpoints/auto-2026-01-02T03.04.05Z"),
    ("POST", "/v1/checkpoints/v1/restore", "/v1/sprites/one/checkpoints/v1/restore"),
    ("POST", "/v1/checkpoint", "/v1/sprites/one/checkpoint"),
    ("POST", "/v1/sync", "/v1/sprites/one/sync"),
]
NOT_SERVED = [
    "/v1/sprites",
    "/v1/sprites/one",
    "/v1/sprites/two/checkpoints",
    "/v1/policy/privileges",
    "/v1/policy/resources",
    "/v1/restart",
    "/v1/fork",
    "/v1/checkpoints/",
    "/v1/checkpoints/../../two",
    "/v1/checkpoints/v0/../../../two/checkpoints/v0",
    "/v1/checkpoints/v0\n",
    "/docs",
    "/openapi.json",
    "/v1/health",
    "",
]


class Heard:
    """An ASGI application that says nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)


async def ask(app: Any, method: str, path: str, *, inside: bool = True, headers: Any = ()) -> tuple[int, Any]:
    """Status and JSON of what `app` answers; 0 where it answers nothing."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"a=b",
        "headers": list(headers), "root_path": "", "scheme": "http", "http_version": "1.1", "client": None,
        "server": None,
    }  # fmt: skip
    if inside:
        scope[SCOPE_KEY] = ("one", ALICE)
    await app(scope, receive, send)
    if not said:
        return 0, None
    return said[0]["status"], json.loads(b"".join(each.get("body", b"") for each in said[1:]))


@pytest.mark.parametrize(("method", "path", "becomes"), SERVED)
async def test_what_is_served_is_asked_of_its_own_sprite(method: str, path: str, becomes: str) -> None:
    app = Heard()
    await ask(Inside(app), method, path)
    (scope,) = app.scopes
    assert (scope["method"], scope["path"], scope["raw_path"].decode()) == (method, becomes, becomes)
    assert scope["query_string"] == b"a=b"
    callers = [value for name, value in scope["headers"] if name == b"x-ballpoint-caller"]
    assert [msgspec.json.decode(value, type=Caller) for value in callers] == [ALICE]


@pytest.mark.parametrize(("method", "path", "becomes"), SERVED)
async def test_other_methods_are_refused(method: str, path: str, becomes: str) -> None:
    app = Heard()
    for other in ("PUT", "PATCH"):
        status, body = await ask(Inside(app), other, path)
        assert (status, body["error"], method in body["message"]) == (405, "method_not_allowed", True)
    assert app.scopes == []


@pytest.mark.parametrize("path", NOT_SERVED)
async def test_nothing_else_is_there(path: str) -> None:
    app = Heard()
    for method in ("GET", "POST", "PUT", "DELETE"):
        status, body = await ask(Inside(app), method, path)
        assert (status, body["error"]) == (404, "not_found")
    assert app.scopes == []


async def test_info() -> None:
    node = NodeDouble()
    view = node.put("one")
    status, info = await ask(app_of(node), "GET", "/v1/info")
    assert status == 200
    assert (info["name"], info["id"], info["org"]) == ("one", view.id, view.organization)
    assert (info["sprite_url"], info["image"]) == (view.url, view.version)


async def test_from_outside_nothing_is_changed() -> None:
    app = Heard()
    await ask(Inside(app), "GET", "/v1/checkpoints", inside=False)
    assert app.scopes[0]["path"] == "/v1/checkpoints"
    caller = [(b"x-ballpoint-caller", msgspec.json.encode(ALICE))]
    assert (await ask(app_of(NodeDouble()), "GET", "/v1/info", inside=False, headers=caller))[0] == 404
    assert (await ask(app_of(NodeDouble()), "GET", "/v1/info", inside=False))[0] == 401


def test_what_is_inside_is_not_in_the_document() -> None:
    assert "/v1/info" not in app_of(NodeDouble()).openapi()["paths"]
