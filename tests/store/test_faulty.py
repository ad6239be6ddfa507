"""A store that fails on purpose does what it says, and the same again by the same seed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ballpoint.core.errors import NotFoundError, UnavailableError
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import UnknownOutcomeError
from tests.support.waiting import eventually_async


async def fates(directory: Path, faults: Faults, seed: int, count: int = 200) -> tuple[list[str], set[str]]:
    """What each of many creates was told, and which objects are there then."""
    store = FaultyStore(DirectoryStore(directory), faults, seed)
    told = []
    for number in range(count):
        try:
            told.append(str(await store.create(f"k/{number:03}", b"")))
        except UnavailableError as error:
            told.append(type(error).__name__)
    await store.close()
    plain = DirectoryStore(directory)
    there = {item.key for item in await plain.list("")}
    await plain.close()
    return told, there


async def test_a_seed_is_a_schedule(tmp_path: Path) -> None:
    faults = Faults(refused=0.1, lost=0.3, again=0.1, delay=0.0)
    first = await fates(tmp_path / "first", faults, seed=7)
    assert await fates(tmp_path / "second", faults, seed=7) == first
    assert await fates(tmp_path / "third", faults, seed=8) != first


async def test_a_lost_answer_says_nothing_about_the_change(directory: Path) -> None:
    told, there = await fates(directory, Faults(lost=0.5), seed=1)
    lost = {f"k/{number:03}" for number, said in enumerate(told) if said == "UnknownOutcomeError"}
    assert lost & there and lost - there
    assert {f"k/{number:03}" for number in range(len(told))} - lost <= there


async def test_what_is_refused_is_not_made(directory: Path) -> None:
    told, there = await fates(directory, Faults(refused=0.5), seed=1)
    assert {f"k/{number:03}" for number, said in enumerate(told) if said == "True"} == there
    assert "UnavailableError" in told


class HeldClock:
    """One whose pauses end when the test says so, however long they were."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds:
            await self.over.wait()


async def test_what_is_late_comes_later(directory: Path) -> None:
    clock = HeldClock()
    store = FaultyStore(DirectoryStore(directory), Faults(late=1.0), 1, clock=clock)  # type: ignore[arg-type]
    with pytest.raises(UnknownOutcomeError):
        await store.create("key", b"late")
    with pytest.raises(NotFoundError):
        await store.get("key")
    clock.over.set()

    async def there() -> bool:
        return [item.key for item in await store.list("")] == ["key"]

    await eventually_async(there)
    await store.close()


async def test_what_comes_again_changes_nothing_but_brings_back_what_was_deleted(directory: Path) -> None:
    clock = HeldClock()
    store = FaultyStore(DirectoryStore(directory), Faults(again=1.0), 1, clock=clock)  # type: ignore[arg-type]
    assert await store.create("key", b"data")
    store.faults = Faults()
    await store.delete(["key"])
    assert await store.list("") == []
    clock.over.set()

    async def there() -> bool:
        return [item.key for item in await store.list("")] == ["key"]

    await eventually_async(there)
    assert await store.get("key") == b"data"
    await store.close()


async def test_an_outage_ends(directory: Path) -> None:
    store = FaultyStore(DirectoryStore(directory), Faults(), seed=1)
    store.out = True
    for call in (store.get("key"), store.list(""), store.create("key", b""), store.put("key", b""), store.delete([])):
        with pytest.raises(UnavailableError):
            await call
    store.out = False
    assert await store.create("key", b"")
    assert store.calls == {"get": 1, "list": 1, "create": 2, "put": 1, "delete": 1}
    await store.close()


async def test_a_narrow_wire_is_shared(directory: Path) -> None:
    asked: list[float] = []

    class Clock:
        async def sleep(self, seconds: float) -> None:
            asked.append(seconds)

    store = FaultyStore(DirectoryStore(directory), Faults(bandwidth=1000.0), 1, clock=Clock())  # type: ignore[arg-type]
    await asyncio.gather(*(store.put(f"k{n}", bytes(500)) for n in range(4)))
    assert sum(asked) == pytest.approx(2.0)
    await store.close()
