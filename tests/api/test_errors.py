"""One error shape, whatever goes wrong, over all routes of the document."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from ballpoint.api.errors import ErrorBody
from ballpoint.api.guard import MAX_BODY
from ballpoint.core.errors import (
    BallpointError,
    ConflictError,
    CorruptError,
    FencedError,
    InternalError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)

from .double import NodeDouble, app_of, caller_header

KINDS: list[type[BallpointError]] = [
    ConflictError,
    CorruptError,
    FencedError,
    InternalError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
]


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    node = NodeDouble()
    for path, methods in app_of(node).openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


OPERATIONS = [(method, path) for method, path, _ in _operations()]
WITH_BODY = [(method, path) for method, path, operation in _operations() if "requestBody" in operation]
NEEDING_BODY = [
    (method, path) for method, path, operation in _operations() if operation.get("requestBody", {}).get("required")
]
every_operation = pytest.mark.parametrize(("method", "path"), OPERATIONS)
every_body = pytest.mark.parametrize(("method", "path"), WITH_BODY)
every_needed_body = pytest.mark.parametrize(("method", "path"), NEEDING_BODY)


def filled(path: str) -> str:
    return path.format(name="web", checkpoint="v0")


async def ask(client: httpx2.AsyncClient, method: str, path: str, **how: Any) -> httpx2.Response:
    if (method, path) in WITH_BODY and "content" not in how:
        how["json"] = {"name": "web"}
    return await client.request(method, filled(path), **how)


def shaped(answer: httpx2.Response, status: int, error: str) -> ErrorBody:
    """Assert that `answer` is an error of that status and word in the one shape, and return it."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) >= 8
    raw = answer.json()
    assert set(raw) <= set(ErrorBody.model_fields)
    assert None not in raw.values()
    body = ErrorBody.model_validate(raw, strict=True)
    assert body.error == error
    assert body.message
    assert body.message[-1] not in "\n."
    assert "Traceback" not in answer.text
    return body


def test_the_document_has_every_route_of_the_contract() -> None:
    assert set(OPERATIONS) == {
        ("POST", "/v1/sprites"),
        ("GET", "/v1/sprites"),
        ("GET", "/v1/sprites/{name}"),
        ("PUT", "/v1/sprites/{name}"),
        ("DELETE", "/v1/sprites/{name}"),
        ("POST", "/v1/sprites/{name}/restart"),
        ("POST", "/v1/sprites/{name}/upgrade"),
        ("GET", "/v1/sprites/{name}/activity"),
        ("GET", "/v1/sprites/{name}/check"),
        ("POST", "/v1/sprites/{name}/sleep"),
        ("POST", "/v1/sprites/{name}/wake"),
        ("POST", "/v1/sprites/{name}/checkpoint"),
        ("GET", "/v1/sprites/{name}/checkpoints"),
        ("GET", "/v1/sprites/{name}/checkpoints/{checkpoint}"),
        ("DELETE", "/v1/sprites/{name}/checkpoints/{checkpoint}"),
        ("POST", "/v1/sprites/{name}/checkpoints/{checkpoint}/restore"),
        ("POST", "/v1/sprites/{name}/fork"),
        ("POST", "/v1/sprites/{name}/sync"),
        ("GET", "/v1/sprites/{name}/disk"),
        ("GET", "/v1/sprites/{name}/events"),
        ("GET", "/v1/sprites/{name}/logs"),
        ("GET", "/v1/sprites/{name}/policy/privileges"),
        ("POST", "/v1/sprites/{name}/policy/privileges"),
        ("DELETE", "/v1/sprites/{name}/policy/privileges"),
        ("GET", "/v1/sprites/{name}/policy/resources"),
        ("POST", "/v1/sprites/{name}/policy/resources"),
        ("DELETE", "/v1/sprites/{name}/policy/resources"),
        ("GET", "/v1/organization"),
    }


@every_operation
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Ballpoint-Caller", "{}")],
        [("X-Ballpoint-Caller", "")],
        [("X-Ballpoint-Caller", "null")],
        [("X-Ballpoint-Caller", '{"org_id":"o1","org":"acme"}')],
        [("X-Ballpoint-Caller", '{"org_id":"","org":"acme","token_id":"t"}')],
        [("X-Ballpoint-Caller", '{"org_id":1,"org":"acme","token_id":"t"}')],
        [*caller_header().items(), *caller_header().items()],
        [("Authorization", "Bearer acme/o1/t1/value")],
    ],
)
async def test_without_exactly_one_caller_it_is_401(
    app: FastAPI, node: NodeDouble, method: str, path: str, headers: list[tuple[str, str]]
) -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node") as client:
        answer = await ask(client, method, path, headers=headers)
    shaped(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert node.asked == []


@every_operation
@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_the_node_has_the_status_of_its_kind(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, kind: type[BallpointError]
) -> None:
    node.failure = kind("it went wrong", hint="do this", code="a_word")
    answer = await ask(client, method, path)
    body = shaped(answer, kind.status, "a_word")
    assert (body.message, body.hint) == ("it went wrong", "do this")
    assert (body.request_id == answer.headers["x-request-id"]) is (kind.status == 500)
    assert ("www-authenticate" in answer.headers) is (kind is UnauthorizedError)
    assert ("retry-after" in answer.headers) is (kind is UnavailableError)
    if kind is UnavailableError:
        assert answer.headers["retry-after"] == str(body.retry_after_seconds)


@every_operation
async def test_a_defect_is_500_and_tells_nothing(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.failure = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await ask(client, method, path)
    body = shaped(answer, 500, "internal")
    assert "secret detail" not in answer.text
    assert body.request_id == answer.headers["x-request-id"]
    assert body.request_id in caplog.text
    assert "secret detail" in caplog.text


@every_operation
async def test_an_unknown_sprite_is_404(client: httpx2.AsyncClient, method: str, path: str) -> None:
    if "{name}" in path:
        shaped(await ask(client, method, path), 404, "not_found")


@every_operation
async def test_a_wrong_method_is_405(client: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await client.request("PATCH", filled(path))
    shaped(answer, 405, "method_not_allowed")
    assert method in answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/sprites/", "/v2/sprites", "/v1/sprites/web/nothing", "/docs/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
async def test_an_unknown_route_is_404(client: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    if method == "HEAD":
        assert answer.status_code == 404
    else:
        shaped(answer, 404, "not_found")


@every_body
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{'name': 'a'}",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b"[" * 100_000,
        b'{"name": ' + b"1" * 5000 + b"}",
        b"nil",
    ],
)
async def test_a_body_that_is_no_json_is_400(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, content: bytes
) -> None:
    shaped(await ask(client, method, path, content=content), 400, "invalid")
    assert node.asked == []


@every_body
@pytest.mark.parametrize("content", [b"[]", b"7", b'"text"'])
async def test_a_body_that_is_no_object_is_422(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, content: bytes
) -> None:
    body = shaped(await ask(client, method, path, content=content), 422, "invalid")
    assert body.errors
    assert node.asked == []


@every_needed_body
@pytest.mark.parametrize("content", [b"", b"null"])
async def test_no_body_where_one_is_needed_is_422(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, content: bytes
) -> None:
    body = shaped(await ask(client, method, path, content=content), 422, "invalid")
    assert body.errors
    assert node.asked == []


@every_body
@pytest.mark.parametrize("told", [True, False])
async def test_a_body_over_the_limit_is_413(
    client: httpx2.AsyncClient, node: NodeDouble, method: str, path: str, told: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 4096 + 1):
            yield b" " * 4096

    content = b" " * (MAX_BODY + 1) if told else pieces()
    shaped(await ask(client, method, path, content=content), 413, "too_large")
    assert node.asked == []


async def test_a_body_at_the_limit_is_read(client: httpx2.AsyncClient) -> None:
    body = b'{"name": "web"}'
    answer = await client.post("/v1/sprites", content=body + b" " * (MAX_BODY - len(body)))
    assert answer.status_code == 201


@every_operation
@pytest.mark.parametrize("length", ["-1", "1e3", "", "9" * 40])
async def test_a_length_that_is_none_is_400(app: FastAPI, method: str, path: str, length: str) -> None:
    headers = {**caller_header(), "Content-Length": length}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node") as client:
        answer = await client.request(method, filled(path), headers=headers)
    shaped(answer, 400, "invalid")


async def test_the_request_id_of_the_edge_is_kept_and_a_strange_one_is_not(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v1/sprites", headers={"X-Request-Id": "edge-12345"})
    assert answer.headers["x-request-id"] == "edge-12345"
    answer = await client.get("/v1/sprites", headers={"X-Request-Id": "a b<script>"})
    assert "script" not in answer.headers["x-request-id"]


async def test_liveness_answers_the_supervisor_only(app: FastAPI) -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node") as client:
        assert (await client.get("/v1/health")).json() == {"status": "ok"}
        shaped(await client.get("/v1/health", headers=caller_header()), 404, "not_found")
        shaped(await client.get("/v1/health", headers={"X-Ballpoint-Caller": "{}"}), 404, "not_found")
