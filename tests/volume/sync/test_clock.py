"""A node's clock that jumps, or stands: what is kept does not depend on it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.sync.world import Scribbler, disk_at, disk_in, sync

_DAY = 86_400.0
_YEARS = 10 * 365 * _DAY


class Jumping:
    """A clock whose time of day is whatever the test says; only its seconds since the start go on."""

    def __init__(self) -> None:
        self.seconds = SYSTEM_CLOCK.now().timestamp()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.mark.host
@pytest.mark.parametrize("jump", [-_YEARS, -_DAY, 0.0, _DAY, _YEARS])
async def test_ids_stay_unique_and_states_whole(
    pool: VolumePool, volume_id: str, uploads: Uploads, tmp_path: Path, jump: float
) -> None:
    clock, store = Jumping(), DirectoryStore(tmp_path / "store")
    image = pool.directory(volume_id) / "disk.img"
    scribbler = Scribbler(image, 7)
    states: dict[str, dict[int, bytes]] = {}
    for life in range(2):
        keeper = Keeper.open(pool, volume_id, store=store, uploads=uploads, writer=f"life {life}", clock=clock)
        for auto in (True, False, True):
            scribbler.write()
            kept = await keeper.checkpoint(None, comment="", auto=auto, frozen=None)
            assert kept.id not in states
            states[kept.id] = disk_at(image)
            clock.seconds += jump
            scribbler.write()
            await sync(keeper)
            assert await disk_in(store, UUID(volume_id)) == disk_at(image)
            clock.seconds -= jump
    assert [each.id for each in keeper.record.checkpoints] == [*states]
    for checkpoint_id, state in states.items():
        assert await disk_in(store, UUID(volume_id), checkpoint_id) == state
