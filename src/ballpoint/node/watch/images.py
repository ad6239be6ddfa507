"""The images a node uses: recorded for the other nodes of the host, and removed when none uses them any more."""

from __future__ import annotations

import asyncio
import logging

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError
from ballpoint.image.catalogue import Image
from ballpoint.image.uses import Uses
from ballpoint.node.disks import Disks
from ballpoint.registry.registry import Registry

log = logging.getLogger(__name__)

_ROUND_SECONDS = 3600.0


class Images:
    """Keeps a node's record of use true; nothing of it is done while a sprite is made."""

    def __init__(self, config: NodeConfig, registry: Registry, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._registry = registry
        self._clock = clock
        self._uses = Uses(config.cache)

    async def current(self) -> Image:
        """What new sprites get, recorded as used before it is.

        Raises:
            NotFoundError: it was not built.
        """
        digests = await self._of_sprites()
        return await asyncio.to_thread(
            self._uses.current, self._config.node_id, self._config.data, self._config.image, digests
        )

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
        digests = {*await self._of_sprites(), disks.image.digest}
        await asyncio.to_thread(disks.keep_images, digests)
        await asyncio.to_thread(self._uses.record, self._config.node_id, self._config.data, digests)
        removed = await asyncio.to_thread(self._uses.prune)
        for image in removed:
            log.info("removed the image %s (%s of %s), which nobody uses", image.digest, image.recipe, image.built_at)
        return removed

    async def close(self) -> None:
        """Record what the node's sprites are on, which is all that it uses from now on."""
        digests = await self._of_sprites()
        await asyncio.to_thread(self._uses.record, self._config.node_id, self._config.data, digests)

    async def _of_sprites(self) -> set[str]:
        return {sprite.image_digest for sprite in await self._registry.all_sprites()}
