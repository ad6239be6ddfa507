"""Every store that the suite knows, each behind the same fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import Store
from ballpoint.store.url import open_store
from tests.store import servers


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test at a time: whatever comes after these tests must not find them."""
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "objects"


def opened(name: str, request: pytest.FixtureRequest, directory: Path) -> Store:
    """An empty store of that name."""
    if name == "directory":
        return DirectoryStore(directory)
    return open_store(servers.store_url(request.getfixturevalue(name), ids.new_uuid()))


@pytest.fixture(params=["directory", "seaweedfs", "moto"])
async def store(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Store]:
    made = opened(request.param, request, directory)
    yield made
    await made.close()


@pytest.fixture(params=["directory", "moto"])
async def byte_ordered(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Store]:
    """Stores that do not list directory by directory, as SeaweedFS does."""
    made = opened(request.param, request, directory)
    yield made
    await made.close()
