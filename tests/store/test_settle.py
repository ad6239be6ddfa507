"""Creating for certain, over a store that loses answers, delays changes and repeats them."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.store import directory as directory_module
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.settle import create_settled
from ballpoint.store.store import UnknownOutcomeError
from tests.support.seeds import fresh_seed

KEYS, RACERS = 25, 6


class NoPauses:
    """A clock of pauses that only let others go on."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_of_many_one_is_told_that_it_was_first(directory: Path) -> None:
    seed = fresh_seed()
    faults = Faults(refused=0.1, lost=0.2, late=0.2, again=0.1, delay=0.02)
    plain = DirectoryStore(directory)
    worlds = [FaultyStore(DirectoryStore(directory), faults, seed + n) for n in range(RACERS)]
    for number in range(KEYS):
        key = f"log/{number:03}"
        attempts = [
            create_settled(world, key, f"of racer {n}".encode(), clock=NoPauses())  # type: ignore[arg-type]
            for n, world in enumerate(worlds)
        ]
        told = await asyncio.gather(*attempts)
        assert told.count(True) == 1
        assert await plain.get(key) == f"of racer {told.index(True)}".encode()
    for world in worlds:
        await world.close()
    await plain.close()


async def test_what_was_told_stays_true(directory: Path) -> None:
    """Asked again with the same bytes, also after an answer that never came, everyone is told the same."""
    seed = fresh_seed()
    store = FaultyStore(DirectoryStore(directory), Faults(lost=0.4, late=0.2, delay=0.01), seed)
    chance = random.Random(seed)
    for number in range(KEYS):
        said: dict[int, bool] = {}
        for racer in [chance.randrange(3) for _ in range(9)]:
            ours = await create_settled(store, f"k/{number}", bytes([racer]), clock=NoPauses())  # type: ignore[arg-type]
            assert said.setdefault(racer, ours) == ours
    await store.close()


async def test_what_was_deleted_since_is_not_made_by_one_who_comes_late(directory: Path) -> None:
    store = DirectoryStore(directory)
    assert await create_settled(store, "key", b"first")

    class Trimming(DirectoryStore):
        """Deletes the object between the answer that it exists and the look at it."""

        async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            await self.delete([key])
            return await super().get(key, start, length)

    late = Trimming(directory)
    assert not await create_settled(late, "key", b"second")
    for each in (store, late):
        await each.close()


async def test_an_outage_leaves_it_open_and_a_second_call_settles_it(directory: Path) -> None:
    store = FaultyStore(DirectoryStore(directory), Faults(), seed=1)
    store.out = True
    with pytest.raises(UnknownOutcomeError):
        await create_settled(store, "key", b"data", seconds=0.2)
    store.out = False
    assert await create_settled(store, "key", b"data")
    await store.close()


async def test_what_is_seen_is_not_taken_for_durable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails after the object has its name, and before that is durable."""
    store = DirectoryStore(directory)
    await store.create("log/1", b"before")
    durable: list[Path] = []
    failures = iter([True])

    def fsync_directory(path: Path) -> None:
        if next(failures, False):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        durable.append(path)

    monkeypatch.setattr(directory_module, "fsync_directory", fsync_directory)
    assert await create_settled(store, "log/2", b"data")
    assert durable == [directory / "log"]
    await store.close()


async def test_a_change_whose_disk_failed_may_have_been_made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(directory)
    await store.create("log/1", b"before")

    def fsync_directory(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(directory_module, "fsync_directory", fsync_directory)
    with pytest.raises(UnknownOutcomeError):
        await store.create("log/2", b"data")
    assert await store.get("log/2") == b"data"
    await store.close()


async def test_what_exists_and_cannot_be_seen_is_not_taken_for_anothers(directory: Path) -> None:
    """Its own first attempt was made; the answer was lost, and the look fails once."""
    store = DirectoryStore(directory)
    await store.create("key", b"data")

    class Blind(DirectoryStore):
        blind = True

        async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if self.blind:
                self.blind = False
                raise UnavailableError("not now")
            return await super().get(key, start, length)

    blind = Blind(directory)
    assert await create_settled(blind, "key", b"data")
    for each in (store, blind):
        await each.close()
