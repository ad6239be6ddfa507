"""The database's file: private, and an honest error when it cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from ballpoint.core.errors import BallpointError, CorruptError, NotFoundError, UnavailableError
from ballpoint.host.changes import Changes
from ballpoint.registry import database
from ballpoint.registry.database import Database, changes_of, url_of
from ballpoint.registry.registry import Registry

from .world import add, other_writer


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


async def test_nothing_but_the_file_and_its_counts_is_left_at_the_end(file: Path) -> None:
    await (await Registry.open(url_of(file))).close()
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, changes_of(file).name]


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
    assert [event.kind for event in await registry.events(sprite.id)] == ["created"]
    await registry.add_event(sprite.id, "tick", "")


class Readings:
    """Counts how often the database is really read."""

    def __init__(self, opened: Database) -> None:
        self.database = opened
        self.count = 0

    def _read(self, connection: Connection) -> int:
        self.count += 1
        return int(connection.execute(text("SELECT count(*) FROM sprites")).scalar_one())

    async def recall(self, key: str = "sprites") -> int:
        return await self.database.recall(key, self._read)


@pytest.fixture
async def readings(registry: Registry, file: Path) -> AsyncIterator[Readings]:
    """A database that sees another's writes as those of a stranger."""
    opened = Database.open(url_of(file))
    yield Readings(opened)
    opened.close()


async def test_what_has_not_changed_is_read_once(readings: Readings) -> None:
    assert [await readings.recall() for _ in range(3)] == [0, 0, 0]
    assert readings.count == 1
    await readings.recall("another")
    assert readings.count == 2


async def test_every_commit_is_seen_at_once(readings: Readings, registry: Registry, org: str) -> None:
    for number in range(20):
        assert await readings.recall() == number
        await add(registry, org, f"n{number}")
        assert await readings.recall() == number + 1


async def test_its_own_commits_are_seen_at_once(readings: Readings) -> None:
    await readings.recall()
    made = text("INSERT INTO organizations VALUES ('o', 'o', 0)")
    await readings.database.run(lambda connection: connection.execute(made))
    await readings.recall()
    assert readings.count == 2


async def test_a_write_under_way_neither_shows_nor_holds_up(readings: Readings, file: Path) -> None:
    with other_writer(file) as writer:
        writer.execute("INSERT INTO organizations VALUES ('o', 'o', 0)")
        assert [await readings.recall() for _ in range(2)] == [0, 0]
    assert readings.count == 1


async def test_a_commit_during_the_reading_is_not_missed(readings: Readings, registry: Registry, org: str) -> None:
    """The reading is of before, and comes back after the commit."""
    loop = asyncio.get_running_loop()

    def slow(connection: Connection) -> int:
        found = readings._read(connection)
        asyncio.run_coroutine_threadsafe(add(registry, org, "web"), loop).result()
        return found

    assert await readings.database.recall("sprites", slow) == 0
    assert await readings.recall() == 1


async def test_errors_are_not_remembered(registry: Registry, org: str) -> None:
    with pytest.raises(NotFoundError):
        await registry.sprite_id(org, "web")
    sprite = await add(registry, org, "web")
    assert await registry.sprite_id(org, "web") == sprite.id
    await registry.delete_sprite(sprite.id, "")
    with pytest.raises(NotFoundError):
        await registry.sprite_id(org, "web")


async def test_no_more_is_remembered_than_there_is_room_for(
    readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_REMEMBERED_MAX", 10)
    for number in range(100):
        await readings.recall(f"n{number}")
    assert len(readings.database._remembered) <= 10
    assert readings.count == 100


async def test_every_change_is_counted_whoever_makes_it(file: Path) -> None:
    registry = await Registry.open(url_of(file))
    counts = Changes(changes_of(file), counts=False)
    looks = [counts.look()]
    _, text = await registry.create_token("acme", "")
    looks.append(counts.look())
    caller = await registry.authenticate(text)
    assert counts.look() == looks[-1]
    other = await Registry.open(url_of(file))
    looks.append(counts.look())
    await other.revoke_token(caller.token_id)
    looks.append(counts.look())
    assert len(set(looks)) == len(looks)
    assert counts.settled
    assert not await registry.revoke_token("nobody")
    assert counts.settled
    await other.close()
    await registry.close()


async def test_a_change_is_begun_before_it_can_be_seen_and_ended_after(file: Path) -> None:
    opened = await asyncio.to_thread(Database.open, url_of(file))
    counts = Changes(changes_of(file), counts=False)
    assert counts.settled
    within = await opened.run(lambda _: (counts.settled, counts.look()))
    assert within[0] is False
    assert counts.settled
    assert counts.look() != within[1]
    assert await opened.read(lambda _: counts.settled)
    await asyncio.to_thread(opened.close)
