"""The checkpoints of a running sprite that can be read inside, below /.sprite/checkpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import for_each
from ballpoint.host import staging
from ballpoint.node.disks import Disks
from ballpoint.node.durable.volumes import Volumes
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node
from ballpoint.volume.readable import mount_readable

log = logging.getLogger(__name__)

_SHOWN: Final = 5
_LOOK_SECONDS: Final = 2.0
_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Readable:
    """A checkpoint to be read inside.

    Attributes:
        id: names its directory.
        image: its disk's, as it was taken from the frozen disk.
        digest: of the standard image it belongs to.
    """

    id: str
    image: Path
    digest: str


class Shown:
    """Shows checkpoints inside running sprites. What is shown outlives this process, as the sprite does."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._settled: dict[str, tuple[str, ...]] = {}
        self._failed: dict[str, dict[str, str]] = {}
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Some sprite's checkpoints have changed: look at once."""
        self._changed.set()

    def failures(self, sprite_id: str) -> dict[str, str]:
        """The checkpoints of a sprite that should be readable inside and are not, and why."""
        return self._failed.get(sprite_id, {})

    async def run(self, node: Node, volumes: Volumes) -> None:
        """Let the newest checkpoints of every running sprite be readable inside, from its start on."""
        while True:
            self._changed.clear()
            await for_each(list(node.running.values()), partial(self._look_at, volumes), at_once=_AT_ONCE)
            living = {running.instance.id for running in node.running.values()}
            self._settled = {name: ids for name, ids in self._settled.items() if name in living}
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()

    async def _look_at(self, volumes: Volumes, running: Running) -> None:
        try:
            keeper = (await volumes.used_by(running)).keeper
            named = [each for each in keeper.record.checkpoints if not each.auto and each.sequence is not None]
            wanted = [Readable(each.id, keeper.image_of(each), each.image) for each in named[-_SHOWN:]]
            ids = tuple(each.id for each in wanted)
            if not running.ending and self._settled.get(running.instance.id, ()) != ids:
                self._failed[running.sprite_id] = await self.show_checkpoints(running, wanted)
                self._settled[running.instance.id] = ids
        except (BallpointError, OSError) as error:
            log.warning("checkpoints of %s are not shown inside: %s", running.sprite_id, error)
        except Exception:  # noqa: BLE001 - told here; what one sprite's agent says must not end this for all
            log.exception("checkpoints of %s are not shown inside", running.sprite_id)

    async def show_checkpoints(self, running: Running, wanted: Sequence[Readable]) -> dict[str, str]:
        """Make `wanted` what can be read inside, no more and no less. Idempotent; a start need not wait for it.

        What goes lets go of its image, at once, or when the last process inside that uses it does; all go with the
        instance. A checkpoint that cannot be shown, or not be taken away, stops no other.

        Returns:
            For each id that is not as it should be, why.

        Raises:
            UnavailableError: the agent does not answer.
        """
        lock = self._locks.setdefault(running.instance.id, asyncio.Lock())
        async with lock:
            runtime = running.instance.runtime
            shown = await runtime.shown()
            failed: dict[str, str] = {}
            for name in shown - {each.id for each in wanted}:
                try:
                    await runtime.hide(name)
                except BallpointError as error:
                    failed[name] = str(error)
            for each in wanted:
                if each.id not in shown:
                    try:
                        await self._show(running, each)
                    except (BallpointError, OSError) as error:
                        failed[each.id] = str(error)
        for name, reason in failed.items():
            log.warning("checkpoint %s of %s cannot be read inside, or still can: %s", name, running.sprite_id, reason)
        return failed

    async def _show(self, running: Running, checkpoint: Readable) -> None:
        image = await asyncio.to_thread(self._disks.image_mount, checkpoint.digest)
        disk = await asyncio.to_thread(mount_readable, checkpoint.image)
        try:
            await running.instance.runtime.show(checkpoint.id, image, disk)
        finally:
            await asyncio.to_thread(staging.close, disk)
