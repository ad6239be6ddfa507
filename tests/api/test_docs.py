"""The page at /docs and the guide in the repository, walked against the OpenAPI document."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from ballpoint.api.bodies import (
    Checkpoint,
    CreateSprite,
    Disk,
    NewCheckpoint,
    NewFork,
    Privileges,
    Progress,
    Sprite,
    UpdateSprite,
)
from ballpoint.api.docs_page import render_docs
from ballpoint.api.errors import ErrorBody

VOID = {"meta"}
GUIDE = Path(__file__).parents[2] / "docs" / "api.md"


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture
async def answer(app: FastAPI) -> httpx2.Response:
    """The page as the edge asks for it on behalf of nobody."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node") as client:
        return await client.get("/docs", headers={"X-Ballpoint-Caller": "{}"})


async def test_the_page_stands_alone(answer: httpx2.Response) -> None:
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "form", "object", "base"})
    assert page.attributes <= {"id", "href", "class", "lang", "charset", "name", "content"}
    assert "url(" not in answer.text
    assert "@import" not in answer.text


async def test_every_link_leads_somewhere(answer: httpx2.Response) -> None:
    page = Page(answer.text)
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link.startswith("#")} <= {f"#{name}" for name in page.ids}
    assert [link for link in page.links if not link.startswith("#")] == ["/openapi.json"]


async def test_the_page_shows_the_whole_document(answer: httpx2.Response, app: FastAPI) -> None:
    page = Page(answer.text)
    document = app.openapi()
    for path, methods in document["paths"].items():
        assert path in page.text
        for operation in methods.values():
            assert operation["operationId"] in page.ids
            for paragraph in operation["description"].split("\n\n"):
                assert paragraph.replace("`", "") in page.text
            for parameter in operation.get("parameters", []):
                assert parameter["name"] in page.text
    for name, schema in document["components"]["schemas"].items():
        assert f"body-{name}" in page.ids
        for key in schema["properties"]:
            assert key in page.text


def test_text_of_the_document_cannot_become_markup(app: FastAPI) -> None:
    evil = "<script>alert(1)</script>&\"'"
    operation: dict[str, Any] = {
        "tags": [evil],
        "operationId": evil,
        "description": evil,
        "parameters": [{"name": evil, "in": evil, "schema": {"type": evil, "default": evil}, "description": evil}],
        "responses": {evil: {"description": evil, "content": {evil: {"schema": {"enum": [evil]}}}}},
    }
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "paths": {evil: {"get": operation}},
        "components": {"schemas": {evil: {"properties": {evil: {"$ref": f"#/components/schemas/{evil}"}}}}},
    }
    page = Page(render_docs(document))
    assert "script" not in page.tags
    assert evil in page.text


async def test_the_document_is_public_and_asks_for_a_token(app: FastAPI) -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://node") as client:
        document = (await client.get("/openapi.json", headers={"X-Ballpoint-Caller": "{}"})).json()
        assert (await client.get("/openapi.json")).status_code == 401
    assert document["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document == app.openapi()


def test_every_operation_documents_its_errors(app: FastAPI) -> None:
    for methods in app.openapi()["paths"].values():
        for operation in methods.values():
            assert operation["operationId"]
            errors = {status: one for status, one in operation["responses"].items() if not status.startswith("2")}
            assert {"401", "500", "503", "default"} <= set(errors)
            for one in errors.values():
                reference = one["content"]["application/json"]["schema"]["$ref"]
                assert reference == "#/components/schemas/ErrorBody"


def test_the_guide_names_every_route_and_key(app: FastAPI) -> None:
    guide = GUIDE.read_text()
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in guide
    bodies = (CreateSprite, UpdateSprite, Sprite, Privileges, NewCheckpoint, Checkpoint, Progress, NewFork, Disk)
    for body in (*bodies, ErrorBody):
        for name, field in body.model_fields.items():
            assert f"`{field.alias or name}`" in guide
