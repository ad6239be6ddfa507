"""The lives of volumes, whatever happens: random writes, saves, checkpoints, restores, forks, deletions and evictions.

Processes die between any two steps, hosts are lost, the store refuses, answers late or not at all. A volume that is
read from the store alone is one of its states since it was last saved, and a checkpoint is what it was, for ever.

Hypothesis prints what it takes to see a failure again. `--soak` tries much more often,
BALLPOINT_SHRINK=1 takes its time to find the shortest way to a failure.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import ConflictError, UnavailableError
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import LIST_MAX, Items, Store
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.check import Damage, check
from ballpoint.volume.log.collect import collect
from ballpoint.volume.log.log import read
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.recover import Found, inventory
from ballpoint.volume.sync.upload import Uploads
from tests.volume.log.memory import MemoryStore
from tests.volume.log.stepped import NoPauses
from tests.volume.sync.world import SETTINGS, disk_at, disk_in, snapshot_of

pytestmark = [pytest.mark.host, pytest.mark.slow]

EXAMPLES, SOAK_EXAMPLES = 25, 5000
SHRINK: Final = "BALLPOINT_SHRINK" in os.environ
TEMPLATE: Final = "raw"
SIZE: Final = 4096 * BLOCK_BYTES
# Within and across the pages of a map, and at the disk's end.
PLACES: Final = (0, 3, 1021, 2048, 4090)
VOLUMES_MAX: Final = 4
FAULTS: Final = Faults(refused=0.05, lost=0.05, late=0.05, again=0.05, delay=0.0)

Disk = dict[int, bytes]
T = TypeVar("T")


class Died(BaseException):
    """The process is no more."""


class Clock(NoPauses):
    """The time is the system's, to which the times of files are compared; pauses are over at once."""

    now = SYSTEM_CLOCK.now
    monotonic = SYSTEM_CLOCK.monotonic


CLOCK: Any = Clock()


class Fate:
    """What comes over a process, and when: at one of its steps or requests."""

    def __init__(self) -> None:
        self._left = 0
        self._what: Callable[[], object] | None = None

    @contextmanager
    def coming(self, what: Callable[[], object] | None, after: int) -> Iterator[None]:
        self._what, self._left = what, after
        try:
            yield
        finally:
            self._what = None

    def reach(self, step: str = "") -> None:
        self._left -= 1
        if self._what is not None and self._left <= 0:
            self._what()


def die() -> None:
    raise Died


class FatefulStore:
    """A store before and after each request to which something may come over the process."""

    def __init__(self, inner: Store, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return await self._ask(self._inner.get(key, start, length))

    async def put(self, key: str, data: bytes) -> None:
        await self._ask(self._inner.put(key, data))

    async def create(self, key: str, data: bytes) -> bool:
        return await self._ask(self._inner.create(key, data))

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        return await self._ask(self._inner.list(prefix, after=after, limit=limit))

    async def delete(self, keys: Collection[str]) -> None:
        await self._ask(self._inner.delete(keys))

    async def close(self) -> None:
        await self._inner.close()

    async def _ask(self, request: Awaitable[T]) -> T:
        try:
            return await request
        finally:
            self._fate.reach()


@dataclass
class Life:
    """What a volume must be.

    Attributes:
        disk: as it is here, or was before it was left to the store.
        kept: checkpoints.
        forgotten: checkpoints that were deleted, of which the store need not know yet.
        possible: states of the disk of which the store may have one.
        saved: it was in the store once.
    """

    id: str
    disk: Disk
    possible: list[Disk]
    kept: dict[str, Disk] = field(default_factory=dict)
    forgotten: dict[str, Disk] = field(default_factory=dict)
    saved: bool = False


TROUBLE: Final = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.sampled_from(["dies", "is cancelled", "has no store"]), st.integers(1, 20)),
)


class Lives(RuleBasedStateMachine):
    """Some volumes of a node, and what becomes of them."""

    pool: VolumePool

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._truth = MemoryStore()
        self._seed = seed
        self._fate = Fate()
        self._patched = mock.patch.object(steps, "reach", self._fate.reach)
        self._patched.start()
        self._lives: dict[str, Life] = {}
        self._trashed: set[UUID] = set()
        self._connect()
        self._start()
        self._create()

    def _connect(self) -> None:
        self._faulty = FaultyStore(self._truth, FAULTS, self._seed, CLOCK)
        self._store = FatefulStore(self._faulty, self._fate)

    def _start(self) -> None:
        """Begin a process."""
        self._keepers: dict[str, Keeper] = {}
        self._threads = ThreadPoolExecutor(4)
        self._loop.set_default_executor(self._threads)
        self._uploads = Uploads(2)

    def _end(self) -> None:
        """Wait for what the threads of a process that is no more have begun."""
        self._threads.shutdown()
        self._uploads.executor.shutdown()

    def _create(self) -> None:
        volume_id = ids.new_uuid()
        self.pool.create(volume_id, template=TEMPLATE, meta={"image": "digest"})
        self._lives[volume_id] = Life(volume_id, {}, [{}])

    def _keeper(self, life: Life) -> Keeper:
        if life.id not in self._keepers:
            self._keepers[life.id] = Keeper.open(
                self.pool, life.id, store=self._store, uploads=self._uploads, writer="test", clock=CLOCK
            )
        return self._keepers[life.id]

    def _do(self, trouble: tuple[str, int] | None, work: Callable[[], Awaitable[Any]]) -> bool:
        """Do something, unless something comes over it; whether it was done."""
        kind, after = trouble or ("", 0)
        task = self._loop.create_task(self._run(work))
        # Whoever waits for a store that does not answer gives up.
        what: dict[str, Callable[[], object]] = {"dies": die, "is cancelled": task.cancel, "has no store": task.cancel}
        self._faulty.out = kind == "has no store"
        try:
            with self._fate.coming(what.get(kind), after):
                self._loop.run_until_complete(task)
            return True
        except (UnavailableError, asyncio.CancelledError):
            return False
        except Died:
            pass
        except BaseExceptionGroup as errors:
            if errors.split(Died)[1] is not None:
                raise
        finally:
            self._faulty.out = False
        self._end()
        self._start()
        return False

    @staticmethod
    async def _run(work: Callable[[], Awaitable[Any]]) -> None:
        await work()

    def _some(self, number: int, *, local: bool | None = None) -> Life | None:
        """One of the volumes."""
        found = [each for each in self._lives.values() if local is None or self.pool.is_local(each.id) == local]
        return found[number % len(found)] if found else None

    # ---- what may happen ----

    @rule(which=st.integers(0, 9), place=st.sampled_from(PLACES), count=st.integers(1, 6), content=st.integers(0, 8))
    def write(self, which: int, place: int, count: int, content: int) -> None:
        if (life := self._some(which, local=True)) is None:
            return
        chance = random.Random(content)
        for block in range(place, place + count):
            old = life.disk.get(block, bytes(BLOCK_BYTES))
            match content % 4:
                case 0:
                    self._write(life, block, bytes(BLOCK_BYTES))
                case 1:
                    self._write(life, block, old[:8192] + chance.randbytes(4096) + old[12288:])
                case _:
                    self._write(life, block, chance.randbytes(BLOCK_BYTES))

    @rule(which=st.integers(0, 9))
    def write_back(self, which: int) -> None:
        """What was changed since the last save is as it was, without any restore."""
        if (life := self._some(which, local=True)) is None:
            return
        saved = life.possible[0]
        for block in life.disk.keys() | saved.keys():
            if life.disk.get(block) != saved.get(block):
                self._write(life, block, saved.get(block, bytes(BLOCK_BYTES)))

    def _write(self, life: Life, block: int, content: bytes) -> None:
        with (self.pool.directory(life.id) / "disk.img").open("r+b") as file:
            file.seek(block * BLOCK_BYTES)
            file.write(content)
        life.disk.pop(block, None)
        if any(content):
            life.disk[block] = content

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def save(self, which: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        life.possible.append(dict(life.disk))
        if self._do(trouble, lambda: self._keeper(life).sync(lambda: None, SETTINGS)):
            life.possible, life.saved = [dict(life.disk)], True

    @rule(which=st.integers(0, 9), auto=st.booleans(), trouble=TROUBLE)
    def checkpoint(self, which: int, auto: bool, trouble: tuple[str, int] | None) -> None:
        if (life := self._some(which, local=True)) is None:
            return
        life.possible.append(dict(life.disk))
        before = life.kept.keys()
        done = self._do(trouble, lambda: self._keeper(life).checkpoint(None, comment="", auto=auto, frozen=None))
        new = {each.id for each in self._keeper(life).record.checkpoints} - before
        assert len(new) == 1 or (not new and not done)
        life.kept.update({name: dict(life.disk) for name in new})

    @rule(which=st.integers(0, 9), number=st.integers(0, 9), trouble=TROUBLE)
    def restore(self, which: int, number: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        if not life.kept:
            return
        name = list(life.kept)[number % len(life.kept)]
        wanted = life.kept[name]
        life.possible += [dict(life.disk), wanted]

        async def restored() -> None:
            keeper = self._keeper(life)
            await keeper.fetch()
            async with keeper.staged(name) as image:
                await keeper.replace_disk(name, image)

        done = self._do(trouble, restored)
        if done or (self.pool.is_local(life.id) and self._here(life) == wanted):
            life.disk = dict(wanted)

    @rule(which=st.integers(0, 9), number=st.integers(0, 9), trouble=TROUBLE)
    def fork(self, which: int, number: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        if not life.kept or len(self._lives) >= VOLUMES_MAX:
            return
        name, made = list(life.kept)[number % len(life.kept)], ids.new_uuid()
        done = self._do(trouble, lambda: self._keeper(life).fork(name, made))
        assert not done or made in self.pool.volumes()
        if made in self.pool.volumes():
            # One that is saved without its source begins with a disk of holes.
            self._lives[made] = Life(made, dict(life.kept[name]), [{}, life.kept[name]])

    @rule(which=st.integers(0, 9), number=st.integers(0, 9), trouble=TROUBLE)
    def forget(self, which: int, number: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        if not life.kept:
            return
        name = list(life.kept)[number % len(life.kept)]
        if name == self._keeper(life).record.restored:
            with pytest.raises(ConflictError):
                self._do(trouble, lambda: self._keeper(life).forget(name))
            return
        done = self._do(trouble, lambda: self._keeper(life).forget(name))
        left = {each.id for each in self._keeper(life).record.checkpoints}
        assert name not in left or not done
        if name not in left:
            life.forgotten[name] = life.kept.pop(name)

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def destroy(self, which: int, trouble: tuple[str, int] | None) -> None:
        # No precondition: how many there are hangs on the time, and which rules there are must not.
        if len(self._lives) < 2:
            return
        life = self._some(which)
        assert life is not None
        if not self._do(trouble, lambda: self._keeper(life).trash()):
            return
        volume = self._keeper(life).record.volume
        if self._loop.run_until_complete(read(self._truth, volume)) is not None:
            self._trashed.add(volume)
        self.pool.destroy(life.id)
        del self._lives[life.id], self._keepers[life.id]

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def evict(self, which: int, trouble: tuple[str, int] | None) -> None:
        if (life := self._some(which, local=True)) is not None:
            self._do(trouble, lambda: self._keeper(life).evict(SETTINGS))

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def evict_checkpoints(self, which: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        self._do(trouble, lambda: self._keeper(life).evict_checkpoints())

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def fetch(self, which: int, trouble: tuple[str, int] | None) -> None:
        if (life := self._some(which, local=False)) is not None:
            self._do(trouble, lambda: self._keeper(life).fetch())

    @rule(which=st.integers(0, 9), trouble=TROUBLE)
    def compact(self, which: int, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        self._do(trouble, lambda: self._keeper(life).compact(SETTINGS))

    @rule(which=st.integers(0, 9), at_once=st.booleans(), trouble=TROUBLE)
    def collect_garbage(self, which: int, at_once: bool, trouble: tuple[str, int] | None) -> None:
        life = self._some(which)
        assert life is not None
        lineage = self._keeper(life).record.lineage
        retention = 0.0 if at_once else 86400.0
        self._do(trouble, lambda: collect(self._store, lineage, writer="test", retention=retention, clock=CLOCK))

    @rule()
    def die(self) -> None:
        self._end()
        self._start()

    @rule()
    def lose_the_host(self) -> None:
        """What is in the store comes back, and nothing else; what was on its way is not."""
        self._end()
        self._loop.run_until_complete(self._faulty.close())
        records = [(self._keeper(life).record, life) for life in self._lives.values()]
        before = {record.volume: life for record, life in records}
        durable = {record.volume: {each.id for each in record.checkpoints if each.durable} for record, _ in records}
        for volume_id in self._lives:
            self.pool.destroy(volume_id)
        self._connect()
        self._start()
        self._lives = {}
        self._loop.run_until_complete(self._recover(before))
        found = {UUID(name): life.kept.keys() for name, life in self._lives.items()}
        assert {volume for volume, life in before.items() if life.saved or durable[volume]} <= found.keys()
        assert all(durable[volume] <= names for volume, names in found.items())
        if not self._lives:
            self._create()

    async def _recover(self, before: dict[UUID, Life]) -> None:
        async for found in inventory(self._truth):
            assert isinstance(found, Found)
            if found.trashed is not None:
                continue
            former = before[found.volume]
            disk = await disk_in(self._truth, found.volume)
            assert disk in former.possible
            kept = {each.id: await disk_in(self._truth, found.volume, each.id) for each in found.checkpoints}
            known = former.kept | former.forgotten
            assert all(known[name] == content for name, content in kept.items())
            name = str(found.volume)
            self.pool.place(name, meta={"image": found.image}, record=found.record())
            self._lives[name] = Life(name, dict(disk), [disk], kept, saved=True)

    # ---- what must be ----

    def _here(self, life: Life) -> Disk:
        return disk_at(self.pool.directory(life.id) / "disk.img")

    @invariant()
    def nothing_is_lost(self) -> None:
        for life in self._lives.values():
            if self.pool.is_local(life.id):
                assert self._here(life) == life.disk
            record = self._keeper(life).record
            assert {each.id for each in record.checkpoints} == life.kept.keys()
            for kept in record.checkpoints:
                if kept.sequence is not None:
                    assert disk_at(snapshot_of(self.pool, life.id, kept.sequence)) == life.kept[kept.id]
            self._loop.run_until_complete(self._is_in_store(life))

    async def _is_in_store(self, life: Life) -> None:
        record = self._keeper(life).record
        view = await read(self._truth, record.volume)
        if view is None or view.state is None:
            assert not life.saved
            return
        assert await disk_in(self._truth, record.volume) in life.possible
        for kept in record.checkpoints:
            if kept.durable:
                assert await disk_in(self._truth, record.volume, kept.id) == life.kept[kept.id]

    def teardown(self) -> None:
        if not hasattr(self, "_loop"):
            return
        try:
            self._faulty.faults = Faults()
            self._loop.run_until_complete(self._all_comes_right())
        finally:
            self._end()
            self._patched.stop()
            self._loop.run_until_complete(self._faulty.close())
            self._loop.close()
            for volume_id in self.pool.volumes():
                self.pool.destroy(volume_id)

    async def _all_comes_right(self) -> None:
        """Once the store is well, everything is saved, and nothing is left over."""
        lineages = set()
        # A fork may wait for its source.
        waiting = list(self._lives.values())
        for _ in range(2 * len(waiting)):
            waiting = [life for life in waiting if not await self._is_saved(life)]
        assert not waiting
        for life in self._lives.values():
            record = self._keeper(life).record
            lineages.add(record.lineage)
            assert not record.pending
            assert await disk_in(self._truth, record.volume) == life.disk
            for name, content in life.kept.items():
                assert await disk_in(self._truth, record.volume, name) == content
            found = {int(each.stem) for each in (self.pool.directory(life.id) / "snapshots").glob("*.img")}
            assert found == record.snapshots
        for volume in self._trashed:
            view = await read(self._truth, volume)
            assert view is not None and (view.dead or view.trashed is not None)
        for lineage in lineages:
            await collect(self._store, lineage, writer="test", clock=CLOCK)
        damages: list[Damage] = []
        await check(self._truth, damages.append, whole=True)
        assert damages == []

    async def _is_saved(self, life: Life) -> bool:
        try:
            await self._keeper(life).sync(lambda: None, SETTINGS)
        except UnavailableError:
            return False
        return True


@pytest.mark.timeout(7200)
def test_whatever_happens_nothing_is_lost(pool: VolumePool, soak: bool) -> None:
    with (pool.root / "templates" / f"{TEMPLATE}.img").open("wb") as file:
        file.truncate(SIZE)
    run_state_machine_as_test(
        type("OfThisPool", (Lives,), {"pool": pool}),
        settings=settings(
            max_examples=SOAK_EXAMPLES if soak else EXAMPLES,
            stateful_step_count=40,
            print_blob=True,
            phases=tuple(Phase) if SHRINK else (Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
