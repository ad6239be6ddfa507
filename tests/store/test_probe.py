"""A store in which two writers can win, or a reader is told wrong, is refused at start."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import InvalidError, NotFoundError, UnavailableError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.probe import probe
from ballpoint.store.store import LIST_MAX, Items, Store
from ballpoint.store.url import open_store
from tests.store import servers
from tests.volume.log.memory import MemoryStore


async def test_what_works_is_taken_and_left_as_it_was(store: Store) -> None:
    await store.create("volumes/v/commits/1", b"data")
    await asyncio.gather(probe(store), probe(store))
    assert [item.key for item in await store.list("")] == ["volumes/v/commits/1"]


async def test_a_server_that_ignores_conditions_is_refused_and_left_as_it_was(rclone: str) -> None:
    store = open_store(servers.store_url(rclone, ids.new_uuid()))
    with pytest.raises(InvalidError, match="created again") as caught:
        await probe(store)
    assert caught.value.hint
    assert await store.list("") == []


class TwoWinners(DirectoryStore):
    """Looks, and then makes: whoever comes in between wins, too."""

    async def create(self, key: str, data: bytes) -> bool:
        try:
            await self.get(key)
            return False
        except NotFoundError:
            await super().create(key, data)
            return True


class Repeating(DirectoryStore):
    """Holds its own racers apart, and forgets what was made before."""

    async def create(self, key: str, data: bytes) -> bool:
        made = await super().create(key, data)
        return made or data == b"second"


class Replacing(DirectoryStore):
    """Refuses the second, and keeps it."""

    async def create(self, key: str, data: bytes) -> bool:
        made = await super().create(key, data)
        if not made and data == b"second":
            await self.delete([key])
            await super().create(key, data)
        return made


class WrongWinner(DirectoryStore):
    """Tells one of the racers, and takes the bytes of another."""

    async def create(self, key: str, data: bytes) -> bool:
        return await super().create(key, b"another's" if data.startswith(b"racer") else data)


class Stale(DirectoryStore):
    """Lists as it was one listing ago."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._before: dict[str, Items] = {}

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        now = await super().list(prefix, after=after)
        before, self._before[prefix] = self._before.get(prefix, []), now
        return (now if prefix.count("/") == 2 else before)[:limit]


class Undead(DirectoryStore):
    """Lists what was deleted; forgets it when it is deleted again, as the probe does at its end."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._deleted: set[str] = set()

    async def delete(self, keys: Collection[str]) -> None:
        if len(keys) == 1:
            self._deleted.update(keys)
        else:
            await super().delete(keys)


class Unordered(DirectoryStore):
    """Takes the case of letters for nothing."""

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        return sorted(await super().list(prefix, after=after), key=lambda item: item.key.lower())[:limit]


class FromTheStart(DirectoryStore):
    """Takes no notice of where a listing is to go on."""

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        return await super().list(prefix, limit=limit)


class Whole(DirectoryStore):
    """Takes no notice of ranges."""

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return await super().get(key)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TwoWinners, "were told that they did"),
        (WrongWinner, "another than the one"),
        (Repeating, "created again"),
        (Replacing, "was replaced"),
        (Stale, "does not show at once"),
        (Undead, "shows what was deleted"),
        (Unordered, "not in the order"),
        (FromTheStart, "does not go on"),
        (Whole, "part of an object"),
    ],
)
async def test_what_a_store_must_not_do(kind: type[DirectoryStore], reason: str, directory: Path) -> None:
    store = kind(directory)
    with pytest.raises(InvalidError, match=reason) as caught:
        await probe(store)
    assert caught.value.hint
    await store.close()
    plain = DirectoryStore(directory)
    assert await plain.list("") == []
    await plain.close()


async def test_a_store_that_does_not_answer_is_not_called_bad(directory: Path) -> None:
    store = FaultyStore(DirectoryStore(directory), Faults(), seed=1)
    store.out = True
    with pytest.raises(UnavailableError):
        await probe(store)
    await store.close()


async def test_a_store_that_is_too_slow_is_not_waited_for() -> None:
    store = FaultyStore(MemoryStore(), Faults(latency=(0.05, 0.05)), seed=1)
    with pytest.raises(UnavailableError, match="could not be tried within"):
        await probe(store, seconds=0.2)
    assert await store.list("") == []
    await store.close()
