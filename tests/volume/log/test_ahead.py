"""A long log is read in few rounds of requests, and is the same log."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.log import View, Writer, read
from tests.volume.log.memory import MemoryStore

VOLUME, LINEAGE = UUID(int=1), UUID(int=2)
COMMITS = 60


class RoundsStore(MemoryStore):
    """A store whose answers to all that is asked at one time come together."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[asyncio.Future[None]] = []

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.asked.append(asyncio.get_running_loop().create_future())
        await self.asked[-1]
        return await super().get(key, start, length)

    async def read(self) -> tuple[View | None, int]:
        """The log, and how many rounds of requests it took."""
        reading, rounds = asyncio.create_task(read(self, VOLUME)), 0
        while not reading.done():
            for _ in range(20):
                await asyncio.sleep(0)
            waiting, self.asked = self.asked, []
            for each in waiting:
                each.set_result(None)
            rounds += bool(waiting)
        return await reading, rounds


@pytest.fixture
def store() -> RoundsStore:
    return RoundsStore()


async def long_log(store: RoundsStore) -> Writer:
    writer = await found(store, VOLUME, LINEAGE, image="none", size=0, settings={}, writer="w")
    assert writer is not None
    for number in range(COMMITS):
        await writer.commit("settings", settings={"number": number})
    return writer


async def test_a_long_log_is_read_in_few_rounds(store: RoundsStore) -> None:
    writer = await long_log(store)
    view, rounds = await store.read()
    assert view == writer.view
    assert rounds < COMMITS / 4


async def test_a_commit_that_is_lost_is_named(store: RoundsStore) -> None:
    await long_log(store)
    lost = CommitName(VOLUME, 1, COMMITS // 2)
    del store.data[lost.key]
    with pytest.raises(CorruptError, match=lost.key):
        await store.read()


async def test_of_a_log_that_its_newest_commit_closes_nothing_else_is_read(store: RoundsStore) -> None:
    writer = await long_log(store)
    await writer.commit("delete")
    store.calls.clear()
    view, rounds = await store.read()
    assert view is not None
    assert view.dead
    assert rounds == store.calls["get"] == 1
