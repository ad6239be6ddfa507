"""Where official clients disagree, what serves them all, as far as no other test shows it (docs/clients.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.sdk.table import destroy, new_name
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

# The first release candidate with which sprites-go attaches to a session by its path.
_ATTACHES_BY_PATH = 30


@pytest.fixture(scope="module")
def path(node: TestNode) -> Iterator[str]:
    name = new_name()
    assert node.api("POST", "/v1/sprites", json={"name": name}).status_code == 201
    yield f"/v1/sprites/{name}"
    destroy(node, name)


def test_the_go_client_is_told_a_version_that_attaches_by_path(node: TestNode, path: str) -> None:
    """Where it does not know, it asks by a HEAD of /exec first."""
    for method, part in (("HEAD", "/exec"), ("GET", "")):
        answer = node.api(method, path + part)
        found = re.fullmatch(r"v0\.0\.1-rc(\d+)", answer.headers["sprite-version"])
        assert answer.status_code == 200 and found and int(found[1]) >= _ATTACHES_BY_PATH


def test_services_are_a_bare_array_and_deleting_and_signalling_one_says_nothing(node: TestNode, path: str) -> None:
    assert node.api("GET", f"{path}/services").json() == []
    made = node.api(
        "PUT", f"{path}/services/web?duration=0.5s", json={"cmd": "sleep", "args": ["600"], "httpPort": 8080}
    )
    assert made.status_code == 200 and made.headers["content-type"] == "application/x-ndjson"
    (listed,) = node.api("GET", f"{path}/services").json()
    assert (listed["name"], listed["http_port"]) == ("web", 8080)
    signalled = node.api("POST", f"{path}/services/signal", json={"name": "web", "signal": "CONT"})
    assert (signalled.status_code, signalled.content) == (204, b"")
    deleted = node.api("DELETE", f"{path}/services/web")
    assert (deleted.status_code, deleted.content) == (204, b"")
