"""What every row works with: nodes, yardsticks, and what the host says of both."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from tests.support.host import traces
from tests.support.nodes import TestNode

from ballpoint.host import process
from ballpoint.host.cgroup import Hierarchies
from bench.client import Client
from bench.yardsticks import Containers

_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.002
_STOP_TRIES = 5
# Blanks count as ready when their number has stood still for so many looks.
_STEADY_LOOKS = 5
_LOOP_CTL_REMOVE = 0x4C81  # include/uapi/linux/loop.h
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Context:
    """One run of the benchmark.

    Attributes:
        left_behind: what nodes left on the host after they were stopped; should stay empty.
    """

    quick: bool
    work: Path
    containers: Containers
    left_behind: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @asynccontextmanager
    async def node(
        self, *, pool: int, pool_gb: int = 40, store: str | None = None, recovers: Bench | bool = False
    ) -> AsyncIterator[Bench]:
        """A node of its own with `pool` blanks standing by; stopped and removed at the end.

        Args:
            store: its URL; None: a directory that goes with the node.
            recovers: a former node of the same store, whose sprites it brings back before it starts; True: those of
                the store, whoever made them.
        """
        home = self.work / f"node-{next(self._numbers)}"
        options = ["--pool", str(pool), "--pool-max", str(max(pool, 1)), "--pool-gb", str(pool_gb)]
        options += ["--edges", "0"]  # as a node has it that is told nothing
        options += ["--store", store] if store is not None else []
        node = TestNode(home / "data", options)
        try:
            if isinstance(recovers, Bench):
                # It knows the token that the lost one knew.
                node.token = recovers.node.token
                node.token_file.write_text(node.token)
            if recovers:
                assert store is not None
                await asyncio.to_thread(_recover, node, store)
            await asyncio.to_thread(node.start)
            bench = Bench(node, pool)
            bench.blanks = await bench.ready()
            yield bench
        finally:
            await self._stop(node)
            for kind, names in traces(node.id, node.data).items():
                self.left_behind += [f"{kind}: {name}" for name in names]
            shutil.rmtree(home)

    async def _stop(self, node: TestNode) -> None:
        """Stop it, however long that takes: what was measured stays measured, and what goes wrong here is reported."""
        for _ in range(_STOP_TRIES):
            try:
                await asyncio.to_thread(node.down)
                return
            except subprocess.TimeoutExpired as error:
                self.left_behind.append(f"`down` of a node took more than {error.timeout:g} s; tried again")


class Bench:
    """A node under measurement.

    Attributes:
        blanks: how many stood by when it was new.
    """

    def __init__(self, node: TestNode, pool: int) -> None:
        self.node = node
        self.client = Client(node.url, node.token)
        self._pool = pool
        self.blanks = 0
        self._instances = node.config.run / "instances"
        self.cgroup = Hierarchies.detect().v2 / f"ballpoint-{node.id}"
        self._names = itertools.count()

    @asynccontextmanager
    async def unsaved(self) -> AsyncIterator[None]:
        """Meanwhile no node runs: its sprites run on, and nothing saves their disks."""
        await asyncio.to_thread(self.node.terminate)
        try:
            yield
        finally:
            await asyncio.to_thread(self.node.start)
            self.client = Client(self.node.url, self.node.token)

    def pool(self) -> Path:
        """The volume pool, as the node sees it: it is mounted nowhere else."""
        (node,) = self.node.processes("node")
        return Path(f"/proc/{node}/root{self.node.data}/pool")

    def pool_used(self) -> int:
        """Bytes taken of the pool."""
        found = os.statvfs(self.pool())
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def store(self) -> Path:
        """The directory that is the node's store, where it was given no other."""
        return self.node.data / "store"

    def volume(self, sprite: str) -> Path:
        """The directory of a sprite's volume in the pool."""
        with closing(sqlite3.connect(self.node.config.registry_file)) as registry:
            (volume,) = registry.execute("select volume_id from sprites where name = ?", (sprite,)).fetchone()
        return self.pool() / "volumes" / str(volume)

    async def root(self, sprite: str) -> Path:
        """A running sprite's root directory, as its processes see it."""
        return Path(f"/proc/{await self.process(sprite, 'inner', 'init')}/root")

    async def address(self, sprite: str) -> str:
        """A running sprite's IPv4 address, at which this host reaches it."""
        inside = ["nsenter", "--target", str(await self.process(sprite, "inner/main", "init")), "--net"]
        shown = await asyncio.to_thread(
            process.run, [*inside, "ip", "-json", "-4", "addr", "show", "eth0"], timeout=_READY_SECONDS
        )
        return str(json.loads(shown)[0]["addr_info"][0]["local"])

    def name(self) -> str:
        """A name no sprite of this node had."""
        return f"bench-{next(self._names)}"

    def records(self) -> list[Path]:
        """One file for each instance, blank or claimed."""
        return list(self._instances.glob("*/instance.json"))

    async def ready(self, sprites: int = 0) -> int:
        """Wait until the pool is full beside so many sprites, and nothing is being made or ended any more.

        Returns:
            Instances there are; a node may keep a blank more than it was asked for.
        """
        steady, last = 0, -1
        async with asyncio.timeout(_READY_SECONDS):
            while steady < _STEADY_LOOKS:
                count = sum(1 for _ in os.scandir(self._instances))
                full = count == len(self.records()) and self._pool <= count - sprites <= self._pool + 2
                steady = steady + 1 if full and count == last else 0
                last = count
                await asyncio.sleep(_LOOK_SECONDS)
        return last

    def memory_mb(self) -> float:
        """What only the node's process has."""
        (node,) = self.node.processes("node")
        return private_mb(node)

    def memory(self) -> dict[str, float]:
        """What only its processes have, in MB: of each kind all together."""
        kinds = ("node", "edge")
        return {kind: sum(map(private_mb, self.node.processes(kind))) for kind in kinds}

    async def agent(self, sprite: str) -> int:
        """Pid of a sprite's agent."""
        return await self.process(sprite, "agent", "agent")

    async def process(self, sprite: str, group: str, name: str) -> int:
        """Pid of the first process called `name` in a part of a sprite's cgroup."""
        sprite_id = (await self.client.request("GET", f"/v1/sprites/{sprite}"))["id"]
        for record in self.records():
            if json.loads(record.read_bytes()).get("note", {}).get("sprite") == sprite_id:
                for procs in (self.cgroup / record.parent.name / group).rglob("cgroup.procs"):
                    for pid in map(int, procs.read_text().split()):
                        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                            return pid
        raise RuntimeError(f"{sprite} has no {name}")

    def anchors(self) -> set[int]:
        """Pids of the anchors of all instances: an instance that was lost, or started again, has another."""
        found: set[int] = set()
        for record in self.records():
            for procs in (self.cgroup / record.parent.name).rglob("cgroup.procs"):
                pids = procs.read_text().split()
                found |= {int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "anchor\n"}
        return found

    def cpu(self) -> dict[str, float]:
        """CPU seconds used until now: by the node's processes, its instances, this client, and all of the host."""
        found = {name: 0.0 for name in ("node", "zygote", "edge")}
        for name in found:
            found[name] = sum(map(_cpu_seconds, self.node.processes(name)))
        usage = dict(line.split() for line in (self.cgroup / "cpu.stat").read_text().splitlines())
        found["instances"] = int(usage["usage_usec"]) / 1e6
        found["client"] = _cpu_seconds(os.getpid())
        # proc(5): user nice system idle iowait irq softirq steal
        host = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        found["whole host"] = (sum(host) - host[3] - host[4]) / _TICKS
        return found


def _recover(node: TestNode, store: str) -> None:
    """Fill a node's directory from a store."""
    command = [*node.program, "recover", "--data", str(node.data), "--store", store, "--pool-gb", "40"]
    process.run(command, timeout=_READY_SECONDS, env=dict(os.environ))


def cpu_sentence(before: dict[str, float], after: dict[str, float], count: int, what: str) -> str:
    """Where CPU time went, for each of `count`."""
    parts = [f"{name} {(after[name] - before[name]) / count * 1000:.1f}" for name in before]
    return f"CPU per {what}, in ms: {', '.join(parts)}"


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # proc(5): utime, stime


def loop_devices() -> list[int]:
    """Numbers of the host's loop devices, whether in use or not."""
    return sorted(int(path.name.removeprefix("loop")) for path in Path("/sys/block").glob("loop*"))


def remove_loop_devices(keep: int) -> None:
    """Remove those nobody uses, from the last on, down to so many: the kernel keeps every device it ever made."""
    with open("/dev/loop-control", "rb") as control:
        for number in reversed(loop_devices()[keep:]):
            try:
                fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise


def available_mb() -> float:
    """MemAvailable of the host."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 1024


def private_mb(pid: int) -> float:
    """Memory that only this process has, and that its end would free."""
    fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(words[1]) for words in fields if words[0].startswith("Private_")) / 1024


async def alternated(
    count: int,
    measures: Mapping[str, Callable[[], Awaitable[float]]],
    after_each: Callable[[], Awaitable[None]] | None = None,
    *,
    warm: int = 2,
) -> dict[str, list[float]]:
    """Run each measure once a round, each round beginning with another, after `warm` rounds that do not count."""
    names = list(measures)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, count):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = await measures[name]()
            if number >= 0:
                samples[name].append(value)
            if after_each is not None:
                await after_each()
    return samples


async def appears(path: Path, seconds: float = 1200.0) -> None:
    """Wait until there is a file."""
    async with asyncio.timeout(seconds):
        while not path.exists():
            await asyncio.sleep(_LOOK_SECONDS)


async def timed(work: Awaitable[object]) -> float:
    """Seconds it takes."""
    started = perf_counter()
    await work
    return perf_counter() - started


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
