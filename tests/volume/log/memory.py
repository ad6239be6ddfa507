"""A store in memory, that counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ballpoint.core.errors import InvalidError
from ballpoint.store.store import LIST_MAX, Items
from tests.volume.log.stepped import Objects


class MemoryStore:
    """Attributes:
    calls: how many of each kind were made.
    """

    def __init__(self) -> None:
        self.objects = Objects()
        self.calls: Counter[str] = Counter()

    @property
    def data(self) -> dict[str, bytes]:
        return self.objects.data

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.calls["get"] += 1
        if start > 0 and start >= len(self.data.get(key, bytes(start + 1))):
            raise InvalidError(f"{key} has no byte at {start}")
        return self.objects.get(key, start, length)

    async def put(self, key: str, data: bytes) -> None:
        self.calls["put"] += 1
        self.objects.put(key, data)

    async def create(self, key: str, data: bytes) -> bool:
        self.calls["create"] += 1
        return self.objects.create(key, data)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        self.calls["list"] += 1
        return self.objects.list(prefix, after, limit)

    async def delete(self, keys: Collection[str]) -> None:
        self.calls["delete"] += 1
        self.objects.delete(keys)

    async def close(self) -> None:
        pass
