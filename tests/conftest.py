"""Fixtures every room may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.image.catalogue import Catalogue, Image
from tests.support.host import traces
from tests.support.nodes import CACHE, TestNode


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="let the tests that search at random go on for long")


@pytest.fixture
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether a test that searches at random shall go on for long."""
    return bool(pytestconfig.getoption("--soak"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake in one layer should not cost the time of all layers."""
    items.sort(key=lambda item: ("node" in item.keywords, "host" in item.keywords, "slow" in item.keywords))


@pytest.fixture(scope="session")
def root() -> None:
    """A test that changes the host needs root, and says so instead of being skipped."""
    assert os.geteuid() == 0, "this test changes the host and must be run as root"


@pytest.fixture(scope="session")
def slim_image(root: None) -> Image:
    """The image that every test's node uses, built if this host has none yet."""
    return Catalogue(CACHE).ensure("slim", mirror=None, progress=lambda _: None)


@pytest.fixture(scope="session")
def node(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    """A running node for tests that do not harm it."""
    made = TestNode(tmp_path_factory.mktemp("node") / "data")
    made.start()
    try:
        yield made
    finally:
        made.down()
    assert traces(made.id, made.data) == dict.fromkeys(traces(made.id, made.data), [])


@pytest.fixture
def own_node(root: None, tmp_path: Path) -> Iterator[TestNode]:
    """A node of the test's own, to be killed and started; not started yet."""
    made = TestNode(tmp_path / "data")
    try:
        yield made
    finally:
        made.down()
    assert traces(made.id, made.data) == dict.fromkeys(traces(made.id, made.data), [])
