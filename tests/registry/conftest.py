"""A registry in an empty directory, on a clock that stands until it is told to go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry

from .world import StandingClock


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The database's file, which does not exist yet."""
    return tmp_path / "registry.db"


@pytest.fixture
async def registry(file: Path, clock: StandingClock) -> AsyncIterator[Registry]:
    opened = await Registry.open(url_of(file), clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def org(registry: Registry) -> str:
    """The id of an organization."""
    return (await registry.create_token("acme", "of the test"))[0].org_id
