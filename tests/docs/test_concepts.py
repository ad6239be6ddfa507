"""The README and the pages of docs/ that explain a concept, as a user who types what they show, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.core.config import DEFAULT_ORG
from tests.docs.pages import steps
from tests.docs.runner import Ports, User
from tests.docs.test_pages import RUN
from tests.support.host import traces
from tests.support.nodes import TestNode

pytestmark = [pytest.mark.node, pytest.mark.slow]

# What the node of a page is told, as the page says.
OPTIONS = {"lifecycle": ["--idle-seconds", "30"], "tls": ["--front", "https:8443"]}


@pytest.fixture
def local_node(root: None, tmp_path: Path) -> Iterator[TestNode]:
    """A node that calls its organization as `up` does; not started yet."""
    made = TestNode(tmp_path / "data", org=DEFAULT_ORG)
    try:
        yield made
    finally:
        made.down()
    assert traces(made.id, made.data) == dict.fromkeys(traces(made.id, made.data), [])


@pytest.mark.parametrize("name", RUN)
def test_a_page_shows_what_happens(name: str, local_node: TestNode, tmp_path: Path) -> None:
    ports = Ports()
    local_node.options += [ports.here(option) for option in OPTIONS.get(name, [])]
    local_node.start()
    ports.node_is(local_node.url)
    home = tmp_path / "home"
    home.mkdir()
    user = User(home, local_node, ports)
    try:
        todo = steps(RUN[name].read_text())
        for step, after in zip(todo, [*todo[1:], None], strict=True):
            user.do(step, after)
    finally:
        user.close()
