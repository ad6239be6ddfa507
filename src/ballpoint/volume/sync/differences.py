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
from ballpoint.volume.changed import Blocks, changed
from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.log import View
from ballpoint.volume.log.mapped import load_map, load_pages
from ballpoint.volume.sync.local import Local, Snapshot
from ballpoint.volume.sync.source import Source
from ballpoint.volume.sync.upload import Place, Upload, differing, present, unknown

log = logging.getLogger(__name__)

# Of the blocks that the diff calls unchanged, so many are compared all the same.
_SAMPLES: Final = 8


async def differences(
    store: Store, local: Local, view: View, snapshot: Snapshot, upload: Upload, *, inline: bool
) -> list[tuple[int, Place]]:
    """The blocks of a snapshot that are not as the log has them, and where they are from now on.

    Args:
        view: of the log.
        upload: gets their content.
        inline: leave them where they are few enough to go into the commit itself.
    """
    logged, base = local.logged_in(view), local.valid_base(view)
    with ExitStack() as stack:
        new = stack.enter_context(local.opened(snapshot))
        if logged is not None and logged in snapshot.since:
            return await upload.blocks(partial(present, new), sorted(snapshot.since[logged]), inline=inline)
        if base is not None and snapshot.sequence is not None:
            old = stack.enter_context(local.opened(Snapshot(base)))
            found = await asyncio.to_thread(_compared, old, new)
            if await asyncio.to_thread(_sampled, new, old, found):
                return await upload.blocks(partial(differing, new, old), _numbers(found), inline=inline)
            log.error("volume %s: a changed block was called unchanged; all are looked at", local.volume_id)
        # Nothing is known of the disk's difference from the log, so every block is compared with the map.
        disk = await load_map(store, view)
        await load_pages(store, view, disk, (page * PAGE_BLOCKS for page in disk.pages))
        here = set(_numbers(await asyncio.to_thread(_compared, None, new)))
        there = {change.block for page in (*disk.pages, *disk.dirty()) for change in disk.page(page)}

        def known(block: int) -> bytes | None:
            place = disk[block]
            return None if place is None else place.piece.hash

        return await upload.blocks(partial(unknown, new, known), sorted(here | there), inline=inline)


def _compared(old: Source | None, new: Source) -> Blocks:
    def look(fd: int) -> Blocks:
        return changed(None, fd) if old is None else old.steady(lambda former: changed(former, fd))

    return new.steady(look)


def _numbers(blocks: Blocks) -> Iterator[int]:
    return chain.from_iterable(_runs(blocks))


def _runs(blocks: Blocks) -> list[range]:
    return sorted((*blocks.data, *blocks.holes), key=lambda run: run.start)


def _sampled(new: Source, old: Source, found: Blocks) -> bool:
    """Compare some blocks that are called unchanged: whether they are."""
    runs = _runs(found)
    starts = [run.start for run in runs]
    for _ in range(_SAMPLES):
        if (block := new.steady(_random_block)) is None:
            continue
        position = bisect_right(starts, block) - 1
        if position >= 0 and block in runs[position]:
            continue
        if differing(new, old, [block]).blocks:
            return False
    return True


def _random_block(fd: int) -> int | None:
    """A block with data; None where there is none behind a random place."""
    try:
        return os.lseek(fd, ids.random_below(os.fstat(fd).st_size), os.SEEK_DATA) // BLOCK_BYTES
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
