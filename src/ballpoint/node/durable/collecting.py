"""Collecting: what nobody will ask for again is removed from the store, some time after it became so."""

from __future__ import annotations

import logging
from typing import Final, Protocol
from uuid import UUID

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.core.metrics import Metrics
from ballpoint.store.store import Store
from ballpoint.volume.log.collect import RETENTION_SECONDS, collect
from ballpoint.volume.log.survey import lineages

log = logging.getLogger(__name__)

# After something was deleted: others follow soon, as a rule.
SOON_SECONDS: Final = 600.0
_TICK_SECONDS: Final = 30.0
_FIRST_SECONDS: Final = 900.0
_ALL_SECONDS: Final = 86400.0


class Compactor(Protocol):
    async def compact(self, lineage: UUID) -> None:
        """Let the volumes of a lineage that are here give up objects that are mostly garbage."""


class Collector:
    """Removes garbage of the lineages of a node, each when it is due, and of all that its store has once a day."""

    def __init__(
        self, saver: Compactor, store: Store, name: str, metrics: Metrics, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._saver = saver
        self._store = store
        self._name = name
        self._clock = clock
        self._objects = metrics.counter(
            "ballpoint_collected_objects_total", "Objects removed from the store as garbage."
        )
        self._bytes = metrics.counter("ballpoint_collected_bytes_total", "Bytes of these.")
        self._due: dict[UUID, float] = {}
        self._all_due = clock.monotonic() + _FIRST_SECONDS

    def later(self, lineage: UUID, seconds: float = SOON_SECONDS) -> None:
        """Something of a lineage became garbage, or will have been in the trash for long enough in so many seconds."""
        due = self._clock.monotonic() + seconds
        self._due[lineage] = min(due, self._due.get(lineage, due))

    def destroyed(self, lineage: UUID) -> None:
        """A volume of a lineage was put into the trash."""
        self.later(lineage, RETENTION_SECONDS + SOON_SECONDS)

    async def run(self) -> None:
        while True:
            await self.tick()
            await self._clock.sleep(_TICK_SECONDS)

    async def tick(self) -> None:
        """Collect what is due."""
        now = self._clock.monotonic()
        try:
            if now >= self._all_due:
                async for lineage in lineages(self._store):
                    self.later(lineage, 0.0)
                self._all_due = now + _ALL_SECONDS
        except (BallpointError, OSError) as error:
            log.warning("lineages are not looked at: %s", error)
        for lineage in [lineage for lineage, due in self._due.items() if due <= now]:
            del self._due[lineage]
            await self._collect(lineage)

    async def _collect(self, lineage: UUID) -> None:
        try:
            await self._saver.compact(lineage)
            done = await collect(self._store, lineage, writer=self._name, clock=self._clock)
        except (BallpointError, OSError) as error:
            log.warning("garbage of lineage %s stays in the store: %s", lineage, error)
            self.later(lineage)
            return
        self._objects.add(done.packs)
        self._bytes.add(done.size)
        if done.packs or done.deleted:
            log.info(
                "lineage %s: %d objects removed, %d MiB; %d volumes left the trash",
                lineage, done.packs, done.size >> 20, done.deleted,
            )  # fmt: skip
        # What belongs to a volume that this call has closed for good is garbage to the next.
        if done.more or done.deleted or done.abandoned:
            self.later(lineage, 0.0)
