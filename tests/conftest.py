"""Fixtures every room may use."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ballpoint.image import archive
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.store.directory import DirectoryStore
from tests.support.host import traces
from tests.support.nodes import CACHE, TestNode

_LOG_LINES, _LOG_BYTES = 150, 1 << 20
_ANSWERED = re.compile(r" edge \S+ GET \S+ 200 ")

# A machine that others use, too, may take its time over any example: what a test finds is no matter of that.
settings.register_profile("ballpoint", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ballpoint")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="let the tests that search at random go on for long")


@pytest.fixture
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether a test that searches at random shall go on for long."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the nodes of a test that failed said last, in its report."""
    report = yield
    if report.failed:
        nodes = [each for each in getattr(item, "funcargs", {}).values() if isinstance(each, TestNode)]
        for log in sorted({each.log for each in nodes}):
            report.sections.append((f"the end of {log}", last_lines(log)))
    return report


def last_lines(log: Path) -> str:
    """The last of a file's lines that tell something, but no more of it than a report can bear."""
    if not log.exists():
        return "(nothing)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
        # A test that waits asks many times, and what happened meanwhile would be pushed out by what it was answered.
        return "\n".join([line for line in lines if not _ANSWERED.search(line)][-_LOG_LINES:])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake in one layer should not cost the time of all layers. A search for long has no end."""
    if config.getoption("soak"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)
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
def kept_image(slim_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of images of a store that has that one.

    A link to it, as `images` of another store in a directory, spares a node to put the image there, which takes its
    time and its room.
    """
    place = tmp_path_factory.mktemp("kept")

    async def keep() -> None:
        store = DirectoryStore(place)
        await archive.keep(store, slim_image)
        await store.close()

    asyncio.run(keep())
    return place / "images"


@pytest.fixture(scope="session")
def node(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    """A running node for tests that do not harm it."""
    made = TestNode(tmp_path_factory.mktemp("node") / "data", ["--edges", "2"])
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
