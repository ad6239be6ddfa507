"""Which blocks of a snapshot the log does not have yet."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, chain
from typing import Final

from ballpoint.core import ids
from ballpoint.core.errors import CorruptError
from ballpoint.store.store import Store
from ballpoint.volume.changed import Blocks, changed
from ballpoint.volume.log.blob import BLOCK_BYTES, Inline, Reference, describe_all, hash_of
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.log import View
from ballpoint.volume.log.mapped import load_map, load_pages, load_places
from ballpoint.volume.sync.local import Local, Snapshot
from ballpoint.volume.sync.source import Source
from ballpoint.volume.sync.upload import Place, Upload, differing, present, unknown

# Of the blocks that are called unchanged, so many are compared with the log all the same.
_SAMPLES: Final = 32
_ZEROS: Final = hash_of(bytes(BLOCK_BYTES))


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
            numbers = sorted(snapshot.since[logged])
            if not local.is_sample_due() or await _is_as_logged(
                store, local, view, new, _without(await asyncio.to_thread(_allocated, new), numbers)
            ):
                return await upload.blocks(partial(present, new), numbers, inline=inline)
        elif base is not None and snapshot.sequence is not None:
            old = stack.enter_context(local.opened(Snapshot(base)))
            found = await asyncio.to_thread(_compared, old, new)
            if not local.is_sample_due() or await _is_as_logged(store, local, view, new, found.same):
                return await upload.blocks(partial(differing, new, old), _numbers(found), inline=inline)
        # Nothing is known of the disk's difference from the log, so every block is compared with the map.
        disk = await load_map(store, view)
        await load_pages(store, view, disk, (page * PAGE_BLOCKS for page in disk.pages))
        here = set(_numbers(await asyncio.to_thread(_compared, None, new)))
        there = {change.block for page in (*disk.pages, *disk.dirty()) for change in disk.page(page)}

        def known(block: int) -> bytes | None:
            return _hash(disk[block])

        return await upload.blocks(partial(unknown, new, known), sorted(here | there), inline=inline)


def _compared(old: Source | None, new: Source) -> Blocks:
    def look(fd: int) -> Blocks:
        return changed(None, fd) if old is None else old.steady(lambda former: changed(former, fd))

    return new.steady(look)


def _allocated(new: Source) -> tuple[range, ...]:
    return new.steady(lambda fd: changed(None, fd)).data


def _numbers(blocks: Blocks) -> Iterator[int]:
    runs: list[range] = sorted((*blocks.data, *blocks.holes), key=lambda run: run.start)
    return chain.from_iterable(runs)


def _without(runs: Iterable[range], blocks: Sequence[int]) -> list[range]:
    """What is left of `runs` without some blocks; both rising."""
    left = []
    for run in runs:
        since = run.start
        for block in blocks[bisect_left(blocks, run.start) : bisect_left(blocks, run.stop)]:
            if since < block:
                left.append(range(since, block))
            since = block + 1
        if since < run.stop:
            left.append(range(since, run.stop))
    return left


async def _is_as_logged(store: Store, local: Local, view: View, new: Source, same: Sequence[range]) -> bool:
    """Compare some blocks that are believed to be in the log with what that has of them; whether they are as there.

    What else finds out which blocks differ asks this node alone. Whatever it misses is missing in the store for ever.
    """
    blocks = _some(same)
    try:
        places = await load_places(store, view, blocks)
    except CorruptError as error:
        # It says nothing of this disk, and what is new of that is saved all the same.
        local.alarm(str(error))
        return True
    differs = await asyncio.to_thread(unknown, new, lambda block: _hash(places[block]), blocks)
    if not differs.blocks:
        return True
    local.alarm(
        f"{describe_all(block for block, _ in differs.blocks)} had changed unnoticed, and was not in the store:"
        " now all of the disk is compared with it"
    )
    return False


def _some(runs: Sequence[range]) -> list[int]:
    """Some blocks of `runs`, each as probable as any other; of one page of the map, as each costs a request."""
    ends = list(accumulate(map(len, runs)))
    if not ends:
        return []
    chosen = ids.random_below(ends[-1])
    position = bisect_right(ends, chosen)
    page = (runs[position].stop - (ends[position] - chosen)) // PAGE_BLOCKS
    first, last = page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS
    blocks = [block for run in runs for block in range(max(run.start, first), min(run.stop, last))]
    return sorted(blocks.pop(ids.random_below(len(blocks))) for _ in range(min(_SAMPLES, len(blocks))))


def _hash(place: Reference | Inline | None) -> bytes | None:
    return None if place is None or place.piece.hash == _ZEROS else place.piece.hash
