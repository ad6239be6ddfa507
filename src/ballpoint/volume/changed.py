"""Which blocks of a disk differ between two snapshots of it, by where their bytes lie (FIEMAP).

Two files of one file system that map a piece to the same place share it, and hold the same bytes. That is a proof only
while both exist and neither is written: the place of a removed snapshot is given to other data, and a map that was kept
then calls that data the same (half of all changes were missed so). So both maps are asked for here, in one call, and
never stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ballpoint.core.errors import InvalidError
from ballpoint.host import fiemap

BLOCK: Final = 64 * 1024

# The place on the device says nothing about the bytes there.
_UNSURE = fiemap.UNKNOWN | fiemap.DELALLOC | fiemap.ENCODED | fiemap.NOT_ALIGNED


@dataclass(frozen=True)
class Blocks:
    """Blocks of 64 KiB that may differ: ranges of block numbers, rising, none of them empty, no block twice.

    Attributes:
        data: those with bytes to read.
        holes: those that have nothing now: they read as zeros.
        same: the others with bytes to read, which do not differ.
    """

    data: tuple[range, ...] = ()
    holes: tuple[range, ...] = ()
    same: tuple[range, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.data)) + sum(map(len, self.holes))


def changed(old: int | None, new: int) -> Blocks:
    """Blocks that may differ between two snapshots of one disk: none that differs is missing, some may be the same.

    Args:
        old, new: descriptors of two files of one file system, of one size, both complete, which nobody writes from
            before the call until after it. `old` None: everything that is not a hole in `new`.

    Raises:
        InvalidError: the two cannot be compared.
        OSError: the file system gives no map.
    """
    status = os.fstat(new)
    count = -(-status.st_size // BLOCK)
    present = list(fiemap.extents(new))
    allocated = united(count, _with_data(present))
    if old is None:
        return Blocks(data=tuple(allocated))
    before = os.fstat(old)
    if (before.st_dev, before.st_size) != (status.st_dev, status.st_size):
        raise InvalidError("two files are no snapshots of one disk: their size or file system differs")
    differing = united(count, _differing(list(fiemap.extents(old)), present))
    return told_apart(count, differing, allocated)


def told_apart(count: int, differing: Iterable[range], allocated: Iterable[range]) -> Blocks:
    """Blocks that may differ, by whether they have data.

    Args:
        count: blocks of the disk.
        differing, allocated: those that may differ, and those that have data; rising.
    """
    differing, allocated = tuple(differing), tuple(allocated)
    return Blocks(
        data=tuple(_both(differing, allocated)),
        holes=tuple(_both(differing, _gaps(count, allocated))),
        same=tuple(_both(allocated, _gaps(count, differing))),
    )


def united(count: int, pieces: Iterable[tuple[int, int]]) -> list[range]:
    """The blocks, of `count`, that the pieces (start, end), in bytes, touch; rising, and what touches is one."""
    found: list[range] = []
    for start, end in sorted(pieces):
        first, last = start // BLOCK, min(-(-end // BLOCK), count)
        if found and first <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, last))
        elif first < last:
            found.append(range(first, last))
    return found


def _gaps(count: int, blocks: Iterable[range]) -> Iterator[range]:
    """What `blocks`, rising, leave of `count`."""
    since = 0
    for run in blocks:
        if since < run.start:
            yield range(since, run.start)
        since = run.stop
    if since < count:
        yield range(since, count)


def _both(one: Iterable[range], other: Iterable[range]) -> Iterator[range]:
    """What is in both, each rising."""
    rest = iter(other)
    beside = next(rest, None)
    for run in one:
        while beside is not None and beside.stop <= run.start:
            beside = next(rest, None)
        while beside is not None and beside.start < run.stop:
            yield range(max(run.start, beside.start), min(run.stop, beside.stop))
            if beside.stop > run.stop:
                break
            beside = next(rest, None)


def _differing(old: list[fiemap.Extent], new: list[fiemap.Extent]) -> Iterator[tuple[int, int]]:
    """Pieces (start, end), in bytes, that the two maps do not prove to be the same."""
    for at, _, length, flags in (*old, *new):
        if flags & _UNSURE:
            yield at, at + length
    points = sorted([(at, 0, place) for at, place in _places(old)] + [(at, 1, place) for at, place in _places(new)])
    places: list[int | None] = [None, None]
    since = 0
    for at, side, place in points:
        if places[0] != places[1] and at > since:
            yield since, at
        since = at
        places[side] = place


def _with_data(extents: Iterable[fiemap.Extent]) -> Iterator[tuple[int, int]]:
    """Pieces (start, end), in bytes, that are no hole; what touches is one piece."""
    start = end = 0
    for at, _, length, flags in extents:
        if _is_hole(flags):
            continue
        if at != end:
            yield start, end
            start = at
        end = at + length
    yield start, end


def _places(extents: Iterable[fiemap.Extent]) -> Iterator[tuple[int, int | None]]:
    """Points of a file, each with the distance from there to the place on the device of all bytes up to the next point.

    Unlike extents, they do not depend on where a run of bytes is cut. None is a hole.
    """
    end = 0
    place: int | None = None
    for at, physical, length, flags in extents:
        if place is not None and at > end:
            place = None
            yield end, None
        here = None if _is_hole(flags) else physical - at
        if here != place:
            place = here
            yield at, here
        end = at + length
    if place is not None:
        yield end, None


def _is_hole(flags: int) -> bool:
    # Unwritten and delayed is data that has no place yet.
    return bool(flags & fiemap.UNWRITTEN) and not flags & _UNSURE
