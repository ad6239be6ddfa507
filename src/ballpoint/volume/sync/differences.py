"""Which blocks of a snapshot the log does not have yet."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Final

from ballpoint.core import ids
from ballpoint.store.store import Store
from ballpoint.volume import snapshots
from ballpoint.volume.changed import Blocks, changed
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.log import View
from ballpoint.volume.log.mapped import load_map, load_pages
from ballpoint.volume.sync.local import Local
from ballpoint.volume.sync.upload import Place, Upload, differing, unknown

log = logging.getLogger(__name__)

# Of the blocks that the diff calls unchanged, so many are compared all the same.
_SAMPLES: Final = 8


async def differences(
    store: Store, local: Local, view: View, sequence: int, upload: Upload, *, inline: bool
) -> list[tuple[int, Place]]:
    """The blocks of a snapshot that are not as the log has them, and where they are from now on.

    Args:
        view: of the log.
        sequence: of the snapshot.
        upload: gets their content.
        inline: leave them where they are few enough to go into the commit itself.
    """
    base = local.valid_base(view)
    with ExitStack() as stack:
        new = stack.enter_context(snapshots.opened(local.directory, sequence))
        if base is not None:
            old = stack.enter_context(snapshots.opened(local.directory, base))
            found = await asyncio.to_thread(changed, old, new)
            if await asyncio.to_thread(_sampled, new, old, found):
                return await upload.blocks(partial(differing, new, old), _numbers(found), inline=inline)
            log.error("volume %s: a changed block was called unchanged; all are looked at", local.volume_id)
        # Nothing is known of the disk's difference from the log, so every block is compared with the map.
        disk = await load_map(store, view)
        await load_pages(store, view, disk, (page * PAGE_BLOCKS for page in disk.pages))
        here = set(_numbers(await asyncio.to_thread(changed, None, new)))
        there = {change.block for page in (*disk.pages, *disk.dirty()) for change in disk.page(page)}

        def known(block: int) -> bytes | None:
            place = disk[block]
            return None if place is None else place.piece.hash

        return await upload.blocks(partial(unknown, new, known), sorted(here | there), inline=inline)


def _numbers(blocks: Blocks) -> Iterator[int]:
    return chain.from_iterable(_runs(blocks))


def _runs(blocks: Blocks) -> list[range]:
    return sorted((*blocks.data, *blocks.holes), key=lambda run: run.start)


def _sampled(new: int, old: int, found: Blocks) -> bool:
    """Compare some blocks that are called unchanged: whether they are."""
    size = os.fstat(new).st_size
    runs = _runs(found)
    starts = [run.start for run in runs]
    for _ in range(_SAMPLES):
        try:
            block = os.lseek(new, ids.random_below(size), os.SEEK_DATA) // BLOCK_BYTES
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no data behind that place
                continue
            raise
        position = bisect_right(starts, block) - 1
        if position >= 0 and block in runs[position]:
            continue
        if differing(new, old, [block]).blocks:
            return False
    return True
