"""A second file that follows a disk in use: for disks written at random, which snapshots that share blocks would ruin.

Each snapshot by FICLONE makes the next write to every block take a new place: a disk written at random falls apart into
hundreds of thousands of extents, and each clone of it stops its writers for seconds. Here nothing is shared. The kernel
notes what is written (host/blocktrace.py); that is copied while the disk is in use, again and again, and only what is
left at the end while it is frozen. Then the copy is the disk as it was at that moment. Whoever wants to keep it clones
the copy, which nobody waits for.

The copy takes as much of the pool as the disk. It is worth nothing after the death of its node, which takes the notes
along: then the disk is compared with its map as after a crash of the host.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Self

from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem
from ballpoint.host.blocktrace import UNIT, BlockTrace
from ballpoint.volume.changed import BLOCK, Blocks, told_apart, united

_PIECE = 1 << 20
_ZEROS = memoryview(bytes(_PIECE))
# What is copied at most while the disk is frozen, where its writers let that be reached: some tens of milliseconds.
_ENOUGH = 8 << 20
# So much is written out at a time: whoever syncs a file of the pool waits for what of the copy is being written.
_WRITTEN_OUT = 32 << 20
_ROUNDS = 6


class Mirror:
    """A disk's copy, and which blocks of it have changed. One thread at a time may use it.

    `approach`, then freeze, `arrive`, thaw: now the copy is the disk at the freeze, and stays so until the next
    `approach`. `changed` says what to store, and `settle` that it is stored.
    """

    def __init__(self, trace: BlockTrace, device: str, image: int, copy: int) -> None:
        """Begin to follow. Nothing is copied yet.

        Args:
            device: the disk's loop device.
            image, copy: descriptors of the file behind it, and of an empty one that shares nothing with it; the
                caller owns them.
        """
        self._image, self._copy = image, copy
        self._size = os.fstat(image).st_size
        os.ftruncate(copy, self._size)
        self._notes = trace.note(device, self._size)
        self._buffer = memoryview(bytearray(_PIECE))
        self._whole = True
        self._anything = True
        self._changed = bytearray(-(-self._size // BLOCK))
        self._dirty = 0
        self._ended = threading.Event()

    def end(self) -> None:
        """Let a copy that is being made go no further: `approach` and `arrive` fail from now on. For any thread."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether `end` was called: what failed since may have failed by that."""
        return self._ended.is_set()

    def close(self) -> None:
        """Follow no more. Idempotent."""
        self._notes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def approach(self) -> None:
        """Copy what was written, until little is left or writers are as fast as this; the disk stays in use.

        The first time, and where the notes are incomplete, it copies the whole disk. Writers wait for 15 to 45 ms
        each time round. Write back the file system's dirty data first (syncfs): what is not in the image is not copied.
        """
        before = None
        for _ in range(_ROUNDS):
            os.fdatasync(self._image)  # else the freeze waits for it, and the writers with it
            written = self._notes.take()
            if written is None or self._whole:
                self._anything = True
                written = [range(-(-self._size // UNIT))]
            copied = self._carry(written)
            self._write_out(_ENOUGH)
            if copied <= _ENOUGH or (before is not None and copied > before / 2):
                return
            before = copied

    def arrive(self) -> None:
        """Copy the rest, while the file system is frozen. What is trimmed meanwhile may be in the copy still, or not.

        Raises:
            UnavailableError: what was written is not known, so the whole disk must be copied: thaw, and `approach`.
        """
        written = self._notes.take()
        if written is None or self._whole:
            self._whole = True
            raise UnavailableError("what was written to the disk is not known", hint="it is copied anew")
        self._carry(written)

    def disturbed(self) -> bool:
        """Whether something was written since the last `arrive` began: then the disk was not frozen all the time."""
        return self._notes.pending()

    def written(self) -> bool:
        """Whether something was written since the last `arrive` began, besides the superblock, which thawing writes."""
        return self._notes.pending(but=0)

    @property
    def complete(self) -> bool:
        """Whether `changed` tells anything: not where the whole disk was copied since the last `settle`."""
        return not self._anything

    def changed(self) -> Blocks:
        """Blocks of the copy that may differ from what it was at the last `settle`; from zeros, before the first.

        Call it after `arrive`.
        """
        differing = _runs(self._changed)
        pieces = ((each.start * BLOCK, min(each.stop * BLOCK, self._size)) for each in differing)
        extents = _Extents(self._copy)
        filled = ((start, end) for piece in pieces for start, end, data in extents.of(*piece) if data)
        count = len(self._changed)
        return told_apart(count, differing, united(count, filled))

    def settle(self) -> None:
        """What `changed` said is stored. Call it before the next `approach`."""
        self._changed = bytearray(len(self._changed))
        self._anything = False

    def _carry(self, written: Iterable[range]) -> int:
        """Copy runs of units; returns how many bytes had to be read."""
        self._whole = True  # after an error half-way, what was taken is in neither the notes nor the copy
        copied, extents = 0, _Extents(self._image)
        for run in written:
            start, end = run.start * UNIT, min(run.stop * UNIT, self._size)
            first, last = start // BLOCK, -(-end // BLOCK)
            self._changed[first:last] = b"\x01" * (last - first)
            if end - start <= BLOCK:
                copied += self._copy_bytes(start, end)
                continue
            for at, to, data in extents.of(start, end):
                if data:
                    copied += self._copy_bytes(at, to)
                else:
                    filesystem.punch_hole(self._copy, at, to - at)
        self._whole = False
        return copied

    def _copy_bytes(self, start: int, end: int) -> int:
        """Copy a piece, in which zeros become a hole; returns its length."""
        # Not copy_file_range(2): XFS lets both files share the blocks then.
        at = start
        while at < end:
            if self.ended:
                raise UnavailableError("the disk is followed no more")
            length = os.preadv(self._image, [self._buffer[: end - at]], at)
            if not length:
                raise OSError(errno.EIO, "the image of a disk ends before its end")
            piece = self._buffer[:length]
            if piece == _ZEROS[:length]:
                filesystem.punch_hole(self._copy, at, length)
            else:
                length = os.pwrite(self._copy, piece, at)
                self._dirty += length
                self._write_out(_WRITTEN_OUT)
            at += length
        return end - start

    def _write_out(self, most: int) -> None:
        """Have less than `most` bytes of the copy in memory only."""
        if self._dirty >= most:
            os.fdatasync(self._copy)
            self._dirty = 0


def _runs(marks: bytes | bytearray) -> tuple[range, ...]:
    """Where the marks are 1, and not 0."""
    found = []
    start = marks.find(1)
    while start >= 0:
        end = marks.find(0, start)
        found.append(range(start, end if end >= 0 else len(marks)))
        start = marks.find(1, found[-1].stop)
    return tuple(found)


class _Extents:
    """Where a file has data, and where holes, asked for piece after piece.

    Each answer of the kernel is used as far as it reaches: SEEK_HOLE goes through all extents up to the next hole, of
    which a disk that is written at random has hundreds of thousands, and holds its writers up meanwhile.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = self._end = 0
        self._is_data = False

    def of(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """All from `start` to `end`, in pieces: (start, end) in bytes, and whether there is data."""
        while start < end:
            if not self._start <= start < self._end:
                self._look(start)
            to = min(self._end, end)
            yield start, to, self._is_data
            start = to

    def _look(self, start: int) -> None:
        data = self._data_from(start)
        self._is_data = data == start
        self._start, self._end = start, os.lseek(self._fd, start, os.SEEK_HOLE) if self._is_data else data

    def _data_from(self, start: int) -> int:
        try:
            return os.lseek(self._fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is none up to its end
                return sys.maxsize
            raise
