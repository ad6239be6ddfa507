"""Start-up is recovery: what an earlier node process left is adopted, finished or removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from ballpoint.core.errors import BallpointError, CorruptError, NotFoundError
from ballpoint.node.disks import Disks
from ballpoint.node.lifecycle.instances import Instances
from ballpoint.node.lifecycle.running import IDLE_TIMEOUT, Running
from ballpoint.node.node import Node
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import read_record

log = logging.getLogger(__name__)


async def recover(node: Node, instances: Instances, disks: Disks) -> None:
    """Bring registry, instances and volumes together. Idempotent; nothing else may use them meanwhile.

    An instance is adopted if it answers, was claimed for a sprite of the registry, and runs over the disk that is the
    sprite's now; a restore has two instances for a moment. Every other one is removed. Then no sprite is called running
    that is not, half-made and half-destroyed ones are finished, and volumes of no sprite are destroyed,
    or kept aside where they have been saved once.

    Raises:
        ConflictError: a running sprite's volume was made by a later version.
    """
    sprites = {sprite.id: sprite for sprite in await node.registry.all_sprites()}
    said: dict[str, bytes] = {}
    for instance_id in sorted(instances.known()):
        instance = await instances.adopt(instance_id)
        if instance is None:
            await _remove(instance_id, partial(instances.clean, instance_id), disks.pool)
            continue
        sprite = sprites.get(str(instance.runtime.note.get("sprite")))
        volume = None
        if sprite is not None and sprite.state in ("running", "warm") and instance.runtime.phase == "running":
            try:
                await asyncio.to_thread(disks.pool.meta, sprite.volume_id)  # one of a later version is left as it is
                volume = await asyncio.to_thread(disks.pool.adopt, sprite.volume_id)
            except (NotFoundError, CorruptError) as error:
                log.error("%s is stopped: %s", sprite.name, error)  # its next start takes it from the store
            # Versions without checkpoints noted no disk; they had one only.
            if volume is not None and instance.runtime.note.get("disk", volume.inode) != volume.inode:
                volume.release()
                volume = None
        if sprite is None or volume is None:
            if sprite is not None:
                said[sprite.id] = instance.runtime.logs()
            await _remove(instance_id, partial(instances.end, instance), disks.pool)
            continue
        timeout = sprite.config.get(IDLE_TIMEOUT)
        running = Running(sprite.id, instance, volume, org_id=sprite.org_id, idle_timeout=timeout)
        # What the kernel says: the node may have died before it had written down what it had done.
        running.warm = instance.runtime.frozen
        running.recorded = "warm" if running.warm else "running"
        if running.warm != (sprite.state == "warm"):
            cause = "found so when the node started again"
            await node.registry.set_state(sprite.id, running.recorded, kind=running.recorded, cause=cause)
        node.running[sprite.id] = running
        node.starter.watch(running)
        log.info("adopted %s in instance %s", sprite.name, instance_id)

    for sprite in sprites.values():
        if sprite.state == "creating":
            await node.finish_removal(sprite, "the node ended while it was being created")
        elif sprite.state == "deleting":
            await node.finish_removal(sprite, "the node ended while it was being destroyed")
        elif sprite.state != "cold" and sprite.id not in node.running:
            cause = "its instance ended with the node"
            await node.registry.set_state(sprite.id, "cold", kind="stopped", cause=cause)
            await asyncio.to_thread(node.logbook.add, sprite.id, said.get(sprite.id, b""), cause)

    await _mend_images(node, disks.pool)

    known = {sprite.volume_id for sprite in await node.registry.all_sprites()}
    for volume_id in await asyncio.to_thread(disks.pool.volumes):
        if volume_id not in known:
            try:
                await asyncio.to_thread(_let_go, disks.pool, volume_id)
            except BallpointError as error:
                log.error("volume %s of no sprite stays: %s", volume_id, error)


async def _mend_images(node: Node, pool: VolumePool) -> None:
    """See that each sprite is on the image of its disk: a restore to another one may have been cut off in between."""
    sprites = await node.registry.all_sprites()
    images = await asyncio.to_thread(lambda: {sprite.id: pool.image_of(sprite.volume_id) for sprite in sprites})
    for sprite in sprites:
        image = images[sprite.id]
        if image is not None and image != sprite.image_digest and sprite.id not in node.running:
            log.warning("%s is on the image %s, as its disk is, and not on %s", sprite.name, image, sprite.image_digest)
            await node.registry.update_sprite(sprite.id, image_digest=image)


async def _remove(instance_id: str, work: Callable[[], Awaitable[None]], pool: VolumePool) -> None:
    """Remove an instance by `work`; what does not end stays until the next start, and no sprite waits for it."""
    try:
        return await work()
    except BallpointError as error:
        log.warning("instance %s does not end, and all disks are thawed for it: %s", instance_id, error)
    await asyncio.to_thread(pool.thaw_all)
    try:
        await work()
    except BallpointError as error:
        log.error("what is left of instance %s stays until the next start: %s", instance_id, error)


def _let_go(pool: VolumePool, volume_id: str) -> None:
    """Remove a volume of no sprite, or keep it aside where it had been one's: then the registry has lost that."""
    try:
        lived = read_record(pool.directory(volume_id)).epoch > 0
    except NotFoundError:
        lived = False
    except BallpointError:
        lived = True  # whatever it was, it was worth a record
    if not lived:
        pool.destroy(volume_id)
        return
    aside = pool.put_aside(volume_id)
    log.error("volume %s has been a sprite's, and the registry knows none: it is kept in %s", volume_id, aside)
