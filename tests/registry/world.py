"""What the registry's tests have in common."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ballpoint.core import ids
from ballpoint.core.types import Caller
from ballpoint.registry.records import Sprite
from ballpoint.registry.registry import Registry


class StandingClock:
    """A clock that goes on only by `pass_by`."""

    def __init__(self) -> None:
        self._now = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._now.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.pass_by(seconds)

    def pass_by(self, seconds: float) -> datetime:
        """Let time go by. Returns the new time."""
        self._now += timedelta(seconds=seconds)
        return self._now


async def add(registry: Registry, org_id: str, name: str, **given: Any) -> Sprite:
    """Record a sprite with values of no consequence, but for those `given`."""
    values: dict[str, Any] = {
        "sprite_id": f"sprite-{ids.new_uuid()}",
        "volume_id": ids.new_uuid(),
        "image_digest": "blake3-00",
        "environment": {},
        "labels": [],
        "config": {},
        "url_settings": {},
    }
    caller = Caller(org_id=org_id, org="unused: it is the organization's row that names it", token_id="t1")
    sprite = registry.new_sprite(caller, name, **{**values, **given})
    await registry.create_sprite(sprite, "by token t1")
    return await registry.sprite_by_id(sprite.id)


async def names(registry: Registry, org_id: str, **query: Any) -> list[str]:
    """Names of the sprites on a page."""
    return [sprite.name for sprite in (await registry.list_sprites(org_id, **query))[0]]


@contextmanager
def other_writer(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process in the midst of a write, as seen from here: a connection that holds SQLite's lock for writing."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("ROLLBACK")
    finally:
        connection.close()
