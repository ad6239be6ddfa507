"""A token of one organization gets 404 for everything of another's, whatever it asks and by whatever way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ballpoint.agent.files.routes import FileRoutes
from ballpoint.agent.ports.proxy import ProxyRoutes
from ballpoint.agent.ports.watch import WatchRoutes
from ballpoint.agent.server import Route, Routes
from ballpoint.agent.services.routes import ServiceRoutes
from ballpoint.agent.sessions.exec import ExecRoutes
from ballpoint.core import ids
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node

# With what a request to an agent would do something.
QUERIES = {
    ("POST", "/exec"): "?cmd=true", ("GET", "/fs/read"): "?path=/etc/hostname", ("PUT", "/fs/write"): "?path=/tmp/x",
    ("GET", "/fs/list"): "?path=/", ("DELETE", "/fs/delete"): "?path=/tmp/x",
}  # fmt: skip


class Table(Routes):
    """Notes what an agent serves, which is not in the document of the control API."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        nobody: Any = None
        ExecRoutes(nobody, nobody).add_to(self)
        FileRoutes(nobody).add_to(self)
        ProxyRoutes(nobody).add_to(self)
        WatchRoutes(nobody).add_to(self)
        ServiceRoutes(nobody).add_to(self)

    def add(self, method: str, path: str, route: Route) -> None:
        self.requests.append((method, path.replace("*", "1") + QUERIES.get((method, path), "")))


SOCKETS = ["/exec?cmd=true", "/exec/1", "/control", "/proxy", "/ports/watch", "/fs/watch"]


@pytest.fixture(scope="module")
def stranger(node: TestNode) -> str:
    """A token of another organization."""

    async def make() -> str:
        registry = await Registry.open(url_of(node.config.registry_file))
        try:
            return (await registry.create_token("strangers", "of the test"))[1]
        finally:
            await registry.close()

    return asyncio.run(make())


@pytest.fixture(scope="module")
def name(node: TestNode) -> Iterator[str]:
    made = f"t-{ids.new_instance_id()}"
    sprite = node.client().create_sprite(made)
    assert shell(sprite, "echo secret > file")[0] == 0
    assert "complete" in node.api("POST", f"/v1/sprites/{made}/checkpoint").text
    yield made
    node.api("DELETE", f"/v1/sprites/{made}")


def requests(node: TestNode, name: str) -> list[tuple[str, str]]:
    """Every request that names a sprite."""
    document = node.api("GET", "/openapi.json").json()
    found = []
    for path, methods in document["paths"].items():
        if "{name}" in path:
            filled = path.replace("{name}", name).replace("{checkpoint}", "v0")
            found += [(method.upper(), filled) for method in methods]
    return [*found, *((method, f"/v1/sprites/{name}{path}") for method, path in Table().requests)]


def test_every_request(node: TestNode, name: str, stranger: str) -> None:
    asked = requests(node, name)
    assert len(asked) > 50
    for method, path in asked:
        body = {"name": "x", "path": "/", "signal": "TERM"} if method in ("POST", "PUT") else None
        answers = [
            httpx2.request(
                method, node.url + target, headers={"Authorization": f"Bearer {stranger}"}, timeout=60, json=body
            )
            for target in (path, path.replace(name, "never-was"))
        ]
        assert [answer.status_code for answer in answers] == [404, 404], (method, path, answers[0].text)
        theirs, nobodys = (answer.text.replace(name, "").replace("never-was", "") for answer in answers)
        assert theirs == nobodys, (method, path)
    assert shell(node.client().get_sprite(name), "cat file; ls /tmp/x 2>&1 | wc -l")[1].startswith("secret\n")


@pytest.mark.parametrize("path", SOCKETS)
def test_every_websocket(node: TestNode, name: str, stranger: str, path: str) -> None:
    with (
        pytest.raises(InvalidStatus) as caught,
        connect(
            f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{name}{path}",
            additional_headers={"Authorization": f"Bearer {stranger}"},
            proxy=None,
        ),
    ):
        pass
    assert caught.value.response.status_code == 404


def test_listings_and_names(node: TestNode, name: str, stranger: str) -> None:
    headers = {"Authorization": f"Bearer {stranger}"}
    page = httpx2.get(f"{node.url}/v1/sprites", headers=headers, timeout=60).json()
    assert (page["sprites"], page["running"], page["warm"], page["cold"]) == ([], 0, 0, 0)
    watched = {**headers, "Accept": "application/x-ndjson"}
    with (
        suppress(httpx2.ReadTimeout),
        httpx2.stream("GET", f"{node.url}/v1/sprites", headers=watched, timeout=2) as them,
    ):
        for line in them.iter_lines():
            assert name not in line
    assert name not in httpx2.get(f"{node.url}/v1/organization", headers=headers, timeout=60).text
    # A name is an organization's own.
    made = httpx2.post(f"{node.url}/v1/sprites", headers=headers, json={"name": name}, timeout=60)
    assert made.status_code == 201
    assert made.json()["id"] != node.api("GET", f"/v1/sprites/{name}").json()["id"]
    assert httpx2.delete(f"{node.url}/v1/sprites/{name}", headers=headers, timeout=60).status_code == 204
    assert node.api("GET", f"/v1/sprites/{name}").status_code == 200
