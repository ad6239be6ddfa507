"""The guard over a pool's space: writers stop before the pool is full, because a full pool loses data silently.

An ext4 above a loop device above a full XFS accepts writes and loses them when it writes back. So below the soft mark
deleted blocks are given back, and below the hard mark the volumes that still grow are frozen: their writers wait, lose
nothing, and go on when there is room again.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, process
from ballpoint.volume.freezer import DEADLINE_SECONDS, Freezer, stuck
from ballpoint.volume.pool import AttachedVolume, PoolUsage, VolumePool
from ballpoint.volume.trimmer import Trimmer

log = logging.getLogger(__name__)

_TRIM_EVERY_SECONDS = 30.0
# What a quiet volume's journal writes now and then is no growth.
_GROWTH = 1 << 20
# Documentation/block/stat.rst: sectors written, which are 512 bytes whatever the device's own are.
_STAT_SECTORS_WRITTEN = 6
_POOL_ITSELF = ""
# Thawing is done at once, unless the kernel holds a disk.
_THAW_SECONDS = 5.0


@dataclass(frozen=True)
class Notice:
    """Something the guard did.

    Attributes:
        kind: `frozen` or `thawed`.
        cause: as a short sentence.
    """

    volume_id: str
    kind: Literal["frozen", "thawed"]
    cause: str


@dataclass(frozen=True)
class _Size:
    """Bytes a volume takes of the pool, and bytes ever written to its device."""

    allocated: int
    written: int


class PoolGuard:
    """Looks at the pool's space at each `tick`; one thread at a time uses it.

    Attributes:
        frozen: the volumes whose writers wait, by id.
        trimmer: gives blocks of deleted files back while the guard goes on looking.
    """

    def __init__(self, pool: VolumePool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._pool = pool
        self._clock = clock
        self._freezer = Freezer()
        self._freezer.start()
        # What each volume was when the pool last had room: growth below the hard mark adds up, however slow it is.
        self._sizes: dict[str, _Size] = {}
        self._trimmed: dict[str, float] = {}
        self.trimmer = Trimmer()
        self.frozen: dict[str, AttachedVolume] = {}
        # Volumes whose writers wait for somebody who clones them, and for how many of those.
        self._held: dict[str, AttachedVolume] = {}
        self._holds: Counter[str] = Counter()

    def tick(self, attached: Iterable[AttachedVolume]) -> list[Notice]:
        """Compare space and marks, and act. Call it several times a second while volumes are attached.

        A volume that cannot be frozen, thawed or trimmed keeps no other from it. One that the kernel holds on the way
        counts as frozen: it will be.

        Returns:
            What was done, in order.

        Raises:
            UnavailableError: nothing was done, and something failed; the next call tries it again.
        """
        volumes = {volume.id: volume for volume in attached}
        usage = self._pool.usage(len(volumes))
        notices: list[Notice] = []
        failures: list[str] = []
        if usage.free >= usage.resume:
            notices += self._thaw([each for each in self.frozen.values() if each.id not in self._held], failures)
            wanted = []
        else:
            # Again at each tick: the freezer thaws at its deadline, and when it dies.
            wanted = list(self.frozen.values())
        if usage.free >= usage.soft:
            self._sizes.clear()
        else:
            wanted += self._growing(volumes, usage)
            notices += self._freeze([each for each in wanted if each.id not in self._held], failures)
            self._trim(volumes, usage)
        if trouble := self.trimmer.trouble():
            failures.append(trouble)
        if failures and not notices:
            raise UnavailableError("; ".join(failures))
        return notices

    def release(self, volume_id: str) -> None:
        """Let go of a volume that is about to be detached; a frozen writer could not even be killed. Idempotent.

        Raises:
            UnavailableError: the kernel holds it.
        """
        if volume_id in self._held:
            self._holds[volume_id] = 1
            self.let_go(self._held[volume_id])
        if volume_id in self.frozen:
            failures: list[str] = []
            self._thaw([self.frozen[volume_id]], failures)
            if failures:
                raise UnavailableError(failures[0])
        self.trimmer.stop(volume_id)
        self._sizes.pop(volume_id, None)
        self._trimmed.pop(volume_id, None)

    def hold(self, volume: AttachedVolume) -> None:
        """Stop a volume's writers whatever room there is, until as many `let_go`; then its disk can be cloned clean.

        Raises:
            UnavailableError: it cannot be frozen in time; its writers go on.
        """
        if self._held.get(volume.id) is volume:
            self._holds[volume.id] += 1
            return
        self.trimmer.stop(volume.id)
        if volume.id not in self.frozen:
            with volume.opened() as root:
                outcome = self._freezer.freeze({volume.id: root})
            if volume.id not in outcome.done:
                self._freezer.thaw([volume.id])
                why = outcome.failed.get(volume.id, "it is not frozen in time")
                raise UnavailableError(f"the disk cannot be stopped for a checkpoint: {why}", hint="try again")
        self._held[volume.id] = volume
        self._holds[volume.id] = 1

    def let_go(self, volume: AttachedVolume) -> None:
        """End what `hold` began; where the pool is full its writers go on waiting. Nothing, once it was released."""
        if self._held.get(volume.id) is not volume:
            return
        self._holds[volume.id] -= 1
        if self._holds[volume.id]:
            return
        del self._held[volume.id]
        if volume.id not in self.frozen:
            try:
                self._freezer.thaw([volume.id])
            finally:
                _thaw_here(volume)

    def close(self) -> None:
        """Thaw everything and end; a disk that the kernel holds is thawed when it lets go. Idempotent."""
        self._freezer.close()
        try:
            self.trimmer.stop()
        except UnavailableError as error:
            log.error("%s", error)
        threads = {
            name: threading.Thread(target=_thaw_at_last, args=(volume, [*stuck]), daemon=True)
            for name, volume in {**self.frozen, **self._held}.items()
        }
        self.frozen.clear()
        self._held.clear()
        deadline = SYSTEM_CLOCK.monotonic() + _THAW_SECONDS
        for thread in threads.values():
            thread.start()
        for name, thread in threads.items():
            thread.join(max(0.0, deadline - SYSTEM_CLOCK.monotonic()))
            if thread.is_alive():
                log.error("volume %s is not thawed within %g s: the kernel holds it", name, _THAW_SECONDS)

    def _growing(self, volumes: dict[str, AttachedVolume], usage: PoolUsage) -> list[AttachedVolume]:
        """The volumes to freeze now, the fastest first; none while there is room."""
        sizes = {volume.id: _size(volume) for volume in volumes.values()}
        now = {name: size for name, size in sizes.items() if size is not None}
        if usage.free >= usage.hard:
            self._sizes = now
            return []
        self._sizes = {name: self._sizes.get(name, size) for name, size in now.items()}

        def growth(name: str) -> int:
            grown = now[name].allocated - self._sizes[name].allocated
            if usage.free < usage.hard // 2:
                # Copying a block that it shared takes room and leaves a file's size as it was.
                grown = max(grown, now[name].written - self._sizes[name].written)
            return grown

        growths = {name: growth(name) for name in now if name not in self.frozen}
        fastest = sorted(growths, key=lambda name: -growths[name])
        unknown = [name for name in sizes if name not in now and name not in self.frozen]
        return [volumes[name] for name in (*unknown, *(name for name in fastest if growths[name] >= _GROWTH))]

    def _trim(self, volumes: dict[str, AttachedVolume], usage: PoolUsage) -> None:
        """Begin to trim what has waited longest, when the one before has ended."""
        if self.trimmer.busy:
            return
        due = [name for name in volumes if name not in self.frozen and name not in self._held]
        if filesystem.free_bytes(self._pool.root) > usage.free:
            due.append(_POOL_ITSELF)  # what is short is room below the pool's image, which holds on to freed blocks
        if not due:
            return
        name = min(due, key=lambda each: self._trimmed.get(each, float("-inf")))
        now = self._clock.monotonic()
        if now - self._trimmed.get(name, float("-inf")) < _TRIM_EVERY_SECONDS:
            return
        self._trimmed[name] = now
        if name == _POOL_ITSELF:
            self.trimmer.start("the pool", self._pool.opened)
        else:
            self.trimmer.start(name, volumes[name].opened)

    def _freeze(self, volumes: list[AttachedVolume], failures: list[str]) -> list[Notice]:
        """Freeze `volumes`, side by side, within one deadline. Returns of which this is news."""
        if not volumes:
            return []
        with ExitStack() as stack:
            roots = {}
            for volume in volumes:
                try:
                    roots[volume.id] = stack.enter_context(volume.opened())
                except OSError as error:
                    failures.append(f"{volume.id}: {error}")
            try:
                outcome = self._freezer.freeze(roots)
            except UnavailableError as error:
                failures.append(error.message)
                return []
        failures += [f"{name}: {why}" for name, why in outcome.failed.items()]
        stopped = [
            volume for volume in volumes if volume.id in outcome.done | outcome.late and volume.id not in self.frozen
        ]
        self.frozen.update({volume.id: volume for volume in stopped})
        return [Notice(volume.id, "frozen", "the pool is full; its writers wait") for volume in stopped]

    def _thaw(self, volumes: list[AttachedVolume], failures: list[str]) -> list[Notice]:
        """Thaw `volumes`, side by side, within one deadline."""
        if not volumes:
            return []
        try:
            outcome = self._freezer.thaw([volume.id for volume in volumes])
        except UnavailableError as error:
            failures.append(error.message)
            return []
        failures += [f"{name}: {why}" for name, why in outcome.failed.items()]
        failures += [f"{name}: it is not thawed in time: the kernel holds it" for name in sorted(outcome.late)]
        notices = []
        for volume in volumes:
            if volume.id in outcome.done:
                try:
                    _thaw_here(volume)
                except OSError as error:
                    failures.append(f"{volume.id}: {error}")
                else:
                    del self.frozen[volume.id]
                    notices.append(Notice(volume.id, "thawed", "the pool has room again"))
        return notices


def _thaw_here(volume: AttachedVolume) -> None:
    """Thaw what a freezer that was killed has left frozen; its successor knows nothing of it."""
    with volume.opened() as root:
        filesystem.fithaw(root)


def _thaw_at_last(volume: AttachedVolume, freezers: list[process.Child]) -> None:
    """Thaw also what one of `freezers` freezes yet, that were killed and end when the kernel lets go of them.

    A freeze that waits for writers holds no lock meanwhile (fs/super.c), so a thaw finds nothing to do then.
    """
    with volume.opened() as root:
        filesystem.fithaw(root)
        for freezer in freezers:
            try:
                freezer.wait(DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                log.error("volume %s may stay frozen: the kernel holds the freezer %d", volume.id, freezer.pid)
            filesystem.fithaw(root)


def _size(volume: AttachedVolume) -> _Size | None:
    """None where that cannot be found out, as of one whose directory is lost: it counts as growing, so none is safe."""
    try:
        return _Size(volume.allocated(), _written(volume))
    except OSError:
        return None


def _written(volume: AttachedVolume) -> int:
    fields = Path("/sys/class/block", Path(volume.device).name, "stat").read_text().split()
    return int(fields[_STAT_SECTORS_WRITTEN]) * 512
