"""Garbage of a whole store: of every lineage, and the images that no disk is on."""

from __future__ import annotations

from uuid import UUID

import msgspec

from ballpoint.core.errors import ConflictError, CorruptError
from ballpoint.image.archive import drop, kept_images
from ballpoint.store.store import Store
from ballpoint.volume.log.collect import collect
from ballpoint.volume.log.survey import lineages
from ballpoint.volume.sync.recover import Unreadable, inventory


class Removed(msgspec.Struct):
    """What was removed, and what was not.

    Attributes:
        packs: how many; size: their bytes.
        deleted: disks whose time in the trash was over.
        images: digests; image_bytes: their bytes, as they were stored.
        troubles: why something that may be garbage stays, as sentences.
    """

    packs: int = 0
    size: int = 0
    deleted: int = 0
    images: tuple[str, ...] = ()
    image_bytes: int = 0
    troubles: tuple[str, ...] = ()


async def collect_all(store: Store, *, writer: str, retention: float) -> Removed:
    """Remove a store's garbage. Many may do it at once, beside nodes that write; a crash leaves some.

    Args:
        writer: who this is, for people.
        retention: how long a volume stays in the trash, in seconds.

    Raises:
        UnavailableError: the store does not answer; what was done is done.
    """
    removed = Removed()
    for lineage in [each async for each in lineages(store)]:
        try:
            await _collect(store, lineage, writer, retention, removed)
        except (CorruptError, ConflictError) as error:
            removed.troubles += (f"of lineage {lineage}: {error.message}",)
    unused = set(await kept_images(store))
    # Looked at twice, as a disk may have come meanwhile. A node puts an image that is gone, once it starts again.
    for _ in range(2):
        if unused and not removed.troubles:
            unused -= await _used_images(store, removed)
    if unused and not removed.troubles:
        removed.images = tuple(sorted(unused))
        removed.image_bytes = await drop(store, removed.images)
    return removed


async def _collect(store: Store, lineage: UUID, writer: str, retention: float, removed: Removed) -> None:
    while True:
        done = await collect(store, lineage, writer=writer, retention=retention)
        removed.packs += done.packs
        removed.size += done.size
        removed.deleted += done.deleted
        if not done.more:
            return


async def _used_images(store: Store, removed: Removed) -> set[str]:
    """Digests of the images below all disks and checkpoints, those in the trash among them."""
    used: set[str] = set()
    async for found in inventory(store):
        if isinstance(found, Unreadable):
            removed.troubles += (f"images: {found.error.message}",)
        else:
            used |= {found.image, *(checkpoint.image for checkpoint in found.checkpoints)}
    return used
