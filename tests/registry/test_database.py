"""The database's file: private, and an honest error when it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballpoint.core.errors import BallpointError, CorruptError, UnavailableError
from ballpoint.registry import database
from ballpoint.registry.registry import Registry

from .world import add, other_writer, url_of


async def test_only_its_owner_reads_the_files(registry: Registry, org: str, file: Path) -> None:
    await add(registry, org, "web", environment={"SECRET": "s3cret"})
    modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    assert file.name in modes
    assert set(modes.values()) == {0o600}


async def test_a_file_that_was_open_to_all_is_closed(file: Path) -> None:
    await (await Registry.open(url_of(file))).close()
    file.chmod(0o644)
    await (await Registry.open(url_of(file))).close()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_nothing_but_the_file_is_left_at_the_end(file: Path) -> None:
    await (await Registry.open(url_of(file))).close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


async def test_a_database_locked_for_long_is_unavailable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.01)
    registry = await Registry.open(url_of(file))
    with other_writer(file):
        with pytest.raises(UnavailableError, match="locked"):
            await registry.create_token("acme", "")
        with pytest.raises(UnavailableError, match="locked"):
            await Registry.open(url_of(file))
    assert await registry.tokens() == []
    await registry.create_token("acme", "")
    await registry.close()


async def test_a_directory_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await Registry.open(url_of(tmp_path / "missing" / "registry.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to have a head" * 100, b"SQLite format 3\0" * 300]
)
async def test_a_file_that_is_no_database_is_corrupt_and_left_alone(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        await Registry.open(url_of(file))
    assert caught.value.hint
    assert file.read_bytes() == content


async def test_a_damaged_database_is_never_read_as_an_empty_one(file: Path) -> None:
    registry = await Registry.open(url_of(file))
    org_id = (await registry.create_token("acme", ""))[0].org_id
    for number in range(200):
        await add(registry, org_id, f"n{number}", environment={"A": "x" * 500})
    await registry.close()
    whole = bytearray(file.read_bytes())
    page = int.from_bytes(whole[16:18], "big")
    whole[page * 2 :] = b"\xa5" * (len(whole) - page * 2)
    file.write_bytes(whole)
    with pytest.raises(BallpointError) as caught:
        registry = await Registry.open(url_of(file))
        try:
            await registry.all_sprites()
        finally:
            await registry.close()
    assert isinstance(caught.value, CorruptError)


async def test_a_failed_transaction_changes_nothing(registry: Registry, org: str) -> None:
    sprite = await add(registry, org, "web")
    with pytest.raises(Exception, match="not JSON serializable"):
        await registry.add_event(sprite.id, "tick", "", {"no JSON": object()})
    assert await registry.events(sprite.id) == []
    await registry.add_event(sprite.id, "tick", "")
