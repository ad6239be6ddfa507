"""Two hosts have a copy of one volume and save it side by side: one goes on, the other is told, nothing is merged."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import FencedError, UnavailableError
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.support.seeds import fresh_seed
from tests.volume.log.memory import MemoryStore
from tests.volume.log.stepped import NoPauses
from tests.volume.sync.world import SETTINGS, Scribbler, disk_at, disk_in

pytestmark = pytest.mark.host

_ROUNDS, _SOAK_ROUNDS, _TURNS = 12, 1000, 6
_SIZE = 4096 * BLOCK_BYTES
_TEMPLATE = "raw"
_FAULTS = Faults(refused=0.05, lost=0.1, late=0.1, again=0.05, delay=0.0)


class Clock(NoPauses):
    """The time is the system's, to which the times of files are compared; pauses are over at once."""

    now = SYSTEM_CLOCK.now
    monotonic = SYSTEM_CLOCK.monotonic


CLOCK: Any = Clock()

Disk = dict[int, bytes]


class Host:
    """One that has the volume.

    Attributes:
        states: of its disk, of which the store may have one.
        saved: what it was told last that the store has.
        fenced: it was told that the volume is another's.
    """

    def __init__(self, pool: VolumePool, volume_id: str, truth: MemoryStore, uploads: Uploads, seed: int) -> None:
        self._pool, self._volume_id, self._uploads = pool, volume_id, uploads
        self.store = FaultyStore(truth, _FAULTS, seed, CLOCK)
        self._scribbler = Scribbler(self._image, seed)
        self.states: list[Disk] = [self.disk]
        self.saved: Disk | None = None
        self.fenced = False
        self.start()

    @property
    def _image(self) -> Path:
        return self._pool.directory(self._volume_id) / "disk.img"

    @property
    def disk(self) -> Disk:
        return disk_at(self._image)

    def start(self) -> None:
        """Begin a process."""
        self._keeper = Keeper.open(
            self._pool, self._volume_id, store=self.store, uploads=self._uploads, writer=self._volume_id, clock=CLOCK
        )
        self.fenced = False

    def write(self) -> None:
        self._scribbler.write(2)
        with self._image.open("r+b") as file:
            file.write(ids.new_uuid().encode())  # so that no two states are the same
        self.states.append(self.disk)

    async def save(self) -> bool:
        """Once; whether it was told that all is saved. Who was told that the volume is another's does so no more."""
        if self.fenced:
            return False
        try:
            await self._keeper.sync(lambda: None, SETTINGS)
        except UnavailableError:
            return False
        except FencedError:
            self.fenced = True
            return False
        self.saved = self.disk
        return True

    async def settle(self) -> None:
        """Until it is known how it ends."""
        while not (await self.save() or self.fenced):
            pass


def copied(pool: VolumePool, volume_id: str) -> str:
    """All that the pool has of a volume once more, as another host has it."""
    made = ids.new_uuid()
    target = pool.volumes_directory / made
    subprocess.run(["cp", "--archive", "--reflink=always", pool.directory(volume_id), target], check=True)
    return made


async def race(pool: VolumePool, uploads: Uploads, seed: int) -> None:
    chance = random.Random(seed)
    volume_id, truth = ids.new_uuid(), MemoryStore()
    pool.create(volume_id, template=_TEMPLATE, meta={"image": "digest"})
    first = Host(pool, volume_id, truth, uploads, seed)
    first.write()
    await first.settle()
    first.states, first.saved = [first.disk], None
    hosts = [first, Host(pool, copied(pool, volume_id), truth, uploads, seed + 1)]
    if chance.random() < 0.5:
        first.start()  # so neither has the log open

    async def in_store() -> Disk:
        disk = await disk_in(truth, UUID(volume_id))
        assert any(disk in host.states for host in hosts), "the store has a disk that nobody had"
        return disk

    assert await in_store() == first.disk
    for _ in range(_TURNS):
        for host in hosts:
            host.write()
        if chance.random() < 0.5:
            await asyncio.gather(*(host.save() for host in hosts))
        else:
            await chance.choice(hosts).save()
        if chance.random() < 0.2:
            chance.choice(hosts).start()
        disk = await in_store()
        told = [(host, host.saved) for host in hosts if host.saved is not None]
        assert len(told) <= 1, "both were told that they are saved"
        for host, saved in told:
            assert disk in host.states[host.states.index(saved) :], "what was told to be saved is lost"

    for host in hosts:
        host.store.faults = Faults()
        host.start()
    winners = [host for host in hosts if host.saved is not None]
    for host in chance.sample(hosts, 2):
        await host.settle()
    (winner,) = (host for host in hosts if not host.fenced)
    assert winners in ([], [winner])
    assert await disk_in(truth, UUID(volume_id)) == winner.disk
    for host in hosts:
        await host.store.close()


async def test_of_two_that_race_one_wins_and_the_other_is_told(pool: VolumePool, uploads: Uploads, soak: bool) -> None:
    with (pool.root / "templates" / f"{_TEMPLATE}.img").open("wb") as file:
        file.truncate(_SIZE)
    seed = fresh_seed()
    for number in range(_SOAK_ROUNDS if soak else _ROUNDS):
        try:
            await race(pool, uploads, seed + number)
        except BaseException as error:
            raise AssertionError(f"seed {seed + number}") from error
        for volume_id in pool.volumes():
            pool.destroy(volume_id)
