"""The images a node uses: recorded for the other nodes of the host, and removed when none uses them any more.

Those that its sprites are on are put into the store, and fetched from there by a host that lacks them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.image import archive
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.uses import Uses
from ballpoint.node.disks import Disks
from ballpoint.registry.registry import Registry
from ballpoint.store.store import Store

log = logging.getLogger(__name__)

_ROUND_SECONDS = 3600.0
# While the store does not answer, or another process of the host is at it.
_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_LEAST_PRIORITY = 19


class Images:
    """Keeps a node's record of use true; nothing of it is done while a sprite is made.

    Args:
        store: of the node. Where that is in its own data directory, no image is put into it: what takes the host's
            images takes that store.
    """

    def __init__(self, config: NodeConfig, registry: Registry, store: Store, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._registry = registry
        self._store = store
        self._clock = clock
        self._catalogue = Catalogue(config.cache)
        self._uses = Uses(config.cache)
        self._used: set[str] = set()
        # Of these, what the store has.
        self._stored: set[str] = set()
        self._another = asyncio.Event()
        # What checkpoints are on; the pool is opened later than this.
        self.of_checkpoints: Callable[[], set[str]] = set

    async def current(self) -> Image:
        """What new sprites get, recorded as used before it is.

        Raises:
            NotFoundError: it was not built.
        """
        digests = await self._of_sprites()
        return await asyncio.to_thread(
            self._uses.current, self._config.node_id, self._config.data, self._config.image, digests
        )

    async def ensure(self, digest: str) -> None:
        """See that the host has an image that a sprite is about to be started on: fetch it where it has not.

        Raises:
            NotFoundError: the store has none of that name, either.
            CorruptError: it is damaged there.
            UnavailableError: the store does not answer, or this host has no room for it.
        """
        while not self._catalogue.has(digest):
            log.info("fetching the image %s from the store", digest)
            if await archive.fetch(self._store, self._catalogue, digest) is None:
                await self._clock.sleep(_LOOK_SECONDS)
        if digest not in self._used:
            self._used.add(digest)
            self._another.set()

    def needed(self, digest: str) -> None:
        """A disk comes into the store that is on an image: see that this is there, too. It may have gone as garbage."""
        self._stored.discard(digest)
        self._another.set()

    async def keep(self) -> None:
        """Put the images that sprites are on into the store, at the least priority, once and whenever there are more.

        Those that are in it are looked at once by each process of the node and for each new disk, and cost nothing
        more.
        """
        if self._config.store is None:
            return
        self._used |= {digest for digest in await self._of_sprites() if self._catalogue.has(digest)}
        with ThreadPoolExecutor(1, "images", initializer=_step_back) as threads:
            while True:
                self._another.clear()
                away = False
                for digest in self._used - self._stored:
                    try:
                        put = await archive.keep(self._store, self._catalogue.find(digest), threads=threads)
                    except UnavailableError as error:
                        log.warning("the image %s is not in the store yet: %s", digest, error)
                        away = True
                        continue
                    except (BallpointError, OSError) as error:
                        log.error("the image %s is not put into the store: %s", digest, error)
                    else:
                        if put:
                            log.info("the image %s is in the store; %d bytes were put", digest, put)
                    self._stored.add(digest)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._another.wait(), _RETRY_SECONDS if away else None)

    async def run(self, disks: Disks) -> None:
        """Round after round, let go of images that no sprite is on any more, and remove what no node needs."""
        while True:
            try:
                await self.tidy(disks)
            except (BallpointError, OSError) as error:
                log.error("old images are not removed: %s", error)
            await self._clock.sleep(_ROUND_SECONDS)

    async def tidy(self, disks: Disks) -> list[Image]:
        """One round. Returns the images removed."""
        digests = {*await self._used_here(), disks.image.digest}
        await asyncio.to_thread(disks.keep_images, digests)
        await asyncio.to_thread(self._uses.record, self._config.node_id, self._config.data, digests)
        removed = await asyncio.to_thread(self._uses.prune)
        for image in removed:
            log.info("removed the image %s (%s of %s), which nobody uses", image.digest, image.recipe, image.built_at)
        return removed

    async def close(self) -> None:
        """Record what the node's sprites are on, which is all that it uses from now on."""
        digests = await self._used_here()
        await asyncio.to_thread(self._uses.record, self._config.node_id, self._config.data, digests)

    async def _used_here(self) -> set[str]:
        return {*await self._of_sprites(), *await asyncio.to_thread(self.of_checkpoints)}

    async def _of_sprites(self) -> set[str]:
        return {sprite.image_digest for sprite in await self._registry.all_sprites()}


def _step_back() -> None:
    """Let whatever else wants the processor have it; on Linux, a thread has a priority of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
