"""Every store that the suite knows, each behind the same fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import Store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture(params=["directory"])
async def store(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Store]:
    made = DirectoryStore(directory)
    yield made
    await made.close()
