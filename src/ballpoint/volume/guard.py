"""The guard over a pool's space: writers stop before the pool is full, because a full pool loses data silently.

An ext4 above a loop device above a full XFS accepts writes and loses them when it writes back. So below the soft mark
deleted blocks are given back, and below the hard mark the volumes that still grow are frozen: their writers wait, lose
nothing, and go on when there is room again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.volume.freezer import Freezer
from ballpoint.volume.pool import AttachedVolume, VolumePool

_TRIM_EVERY_SECONDS = 30.0
# What a quiet volume's journal writes now and then is no growth.
_GROWTH = 1 << 20


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


class PoolGuard:
    """Looks at the pool's space at each `tick`; one thread at a time uses it."""

    def __init__(self, pool: VolumePool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._pool = pool
        self._clock = clock
        self._freezer = Freezer()
        self._freezer.start()
        self._sizes: dict[str, int] = {}
        self._trimmed = -_TRIM_EVERY_SECONDS
        self.frozen: set[str] = set()

    def tick(self, attached: Iterable[AttachedVolume]) -> list[Notice]:
        """Compare space and marks, and act. Call it several times a second while volumes are attached."""
        volumes = {volume.id: volume for volume in attached}
        grown = self._growth(volumes)
        usage = self._pool.usage(len(volumes))
        if usage.free < usage.soft:
            self._trim(volumes)
            usage = self._pool.usage(len(volumes))
        if usage.free < usage.hard:
            return self._freeze(volumes, grown)
        if self.frozen and usage.free >= usage.soft:
            return [self._thaw(volume_id, "the pool has room again") for volume_id in sorted(self.frozen)]
        return []

    def release(self, volume_id: str) -> None:
        """Thaw a volume that is about to be detached: a frozen writer cannot even be killed. Idempotent."""
        if volume_id in self.frozen:
            self._thaw(volume_id, "it is being stopped")
        self._sizes.pop(volume_id, None)

    def close(self) -> None:
        """Thaw everything and end. Idempotent."""
        self._freezer.close()
        self.frozen.clear()

    def _growth(self, volumes: dict[str, AttachedVolume]) -> dict[str, int]:
        sizes = {volume.id: volume.allocated() for volume in volumes.values()}
        grown = {name: size - self._sizes.get(name, size) for name, size in sizes.items()}
        self._sizes = sizes
        return grown

    def _trim(self, volumes: dict[str, AttachedVolume]) -> None:
        now = self._clock.monotonic()
        if now - self._trimmed < _TRIM_EVERY_SECONDS:
            return
        self._trimmed = now
        for volume in volumes.values():
            if volume.id not in self.frozen:
                volume.trim()

    def _freeze(self, volumes: dict[str, AttachedVolume], grown: dict[str, int]) -> list[Notice]:
        notices = []
        for volume_id in sorted(grown, key=lambda name: -grown[name]):
            if grown[volume_id] >= _GROWTH and volume_id not in self.frozen:
                with volumes[volume_id].opened() as root:
                    self._freezer.freeze(volume_id, root)
                self.frozen.add(volume_id)
                notices.append(Notice(volume_id, "frozen", "the pool is full; its writers wait"))
        return notices

    def _thaw(self, volume_id: str, cause: str) -> Notice:
        self._freezer.thaw(volume_id)
        self.frozen.discard(volume_id)
        return Notice(volume_id, "thawed", cause)
