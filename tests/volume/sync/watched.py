"""A store in memory that tells what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.volume.log.memory import MemoryStore


class WatchedStore(MemoryStore):
    """A store that can be looked at, and that something may be done to before it answers.

    Attributes:
        before_get: is called before each read.
        lengths: of the parts that were read.
        most: reads that were under way at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_get: Callable[[str], Awaitable[None]] | None = None
        self.lengths: list[int] = []
        self.most = 0
        self._now = 0

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if self.before_get is not None:
                await self.before_get(key)
            await asyncio.sleep(0)
            data = await super().get(key, start, length)
            self.lengths.append(len(data))
            return data
        finally:
            self._now -= 1
