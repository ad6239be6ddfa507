"""Garbage leaves the store some time after it became that, and by itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from ballpoint.core.metrics import Metrics
from ballpoint.node.durable.collecting import SOON_SECONDS, Collector
from ballpoint.store.store import list_all
from ballpoint.volume.log.collect import RETENTION_SECONDS
from ballpoint.volume.log.keys import packs_prefix
from tests.volume.log.memory import MemoryStore
from tests.volume.sync.disks import KnownDisk, compressible


@dataclass
class HandClock:
    """Time that goes on when it is told to."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Compactions:
    asked: list[UUID] = field(default_factory=list)

    async def compact(self, lineage: UUID) -> None:
        self.asked.append(lineage)


async def test_what_nobody_needs_goes_after_a_while_and_not_before() -> None:
    store, clock, compactions = MemoryStore(), HandClock(), Compactions()
    disk = await KnownDisk.found(store, uuid4(), uuid4())
    await disk.write({1: compressible(random.Random(1))})
    await disk.checkpoint("v0")
    await disk.write({1: compressible(random.Random(2))})
    await disk.checkpoint("v1")
    name, lineage = disk.writer.view.head.volume, disk.writer.view.lineage
    before = await list_all(store, packs_prefix(name))
    await disk.forget("v0")

    collector = Collector(compactions, store, "node", Metrics(), clock)
    collector.later(lineage)
    await collector.tick()
    assert await list_all(store, packs_prefix(name)) and not compactions.asked
    clock.seconds += SOON_SECONDS
    await collector.tick()
    assert compactions.asked == [lineage]
    assert len(await list_all(store, packs_prefix(name))) < len(before)


async def test_a_volume_in_the_trash_goes_when_its_time_is_over_whoever_put_it_there() -> None:
    store, clock = MemoryStore(), HandClock()
    disk = await KnownDisk.found(store, uuid4(), uuid4())
    await disk.write({1: compressible(random.Random(1))})
    await disk.writer.commit("trash")
    name = disk.writer.view.head.volume
    clock.seconds = disk.writer.view.time / 1000 - clock.now().timestamp()
    collector = Collector(
        Compactions(), store, "node", Metrics(), clock
    )  # of a later process, that knows nothing of it
    for hour in range(int(RETENTION_SECONDS // 3600)):
        await collector.tick()
        assert await list_all(store, packs_prefix(name)), hour
        clock.seconds += 3600
    for _ in range(48):
        clock.seconds += 3600
        await collector.tick()
    assert await list_all(store, packs_prefix(name)) == []


async def test_what_this_node_destroyed_goes_within_the_hour_after_its_time_in_the_trash() -> None:
    store, clock = MemoryStore(), HandClock()
    disk = await KnownDisk.found(store, uuid4(), uuid4())
    await disk.write({1: compressible(random.Random(1))})
    name, lineage = disk.writer.view.head.volume, disk.writer.view.lineage
    collector = Collector(Compactions(), store, "node", Metrics(), clock)
    await disk.writer.commit("trash")
    clock.seconds = disk.writer.view.time / 1000 - clock.now().timestamp()
    collector.destroyed(lineage)
    clock.seconds += RETENTION_SECONDS
    await collector.tick()
    assert await list_all(store, packs_prefix(name))
    for _ in range(60):
        clock.seconds += 60
        await collector.tick()
    assert await list_all(store, packs_prefix(name)) == []
