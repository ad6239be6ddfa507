from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.world import World


@pytest.fixture(scope="session")
def shared_world() -> Iterator[World]:
    world = World()
    try:
        yield world
        before, traceback, after = world.edge.log.read_text().partition("Traceback")
        assert not traceback, before[-300:] + traceback + after[:3000]
    finally:
        world.close()


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """A node, its servers and an edge, as good as new."""
    shared_world.reset()
    yield shared_world
    assert shared_world.edge.process.poll() is None, shared_world.edge.log.read_text()[-4000:]
