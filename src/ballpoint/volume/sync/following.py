"""One disk in use and the copy that follows it (`volume/tracked.py`), with all that belongs to the two."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from ballpoint.core import ids
from ballpoint.core.errors import InternalError, UnavailableError
from ballpoint.host import filesystem, loop
from ballpoint.host.blocktrace import BlockTrace
from ballpoint.host.files import remove_file
from ballpoint.volume.log.blob import BLOCK_BYTES, describe_all
from ballpoint.volume.pool import AttachedVolume
from ballpoint.volume.sync.source import Source
from ballpoint.volume.tracked import Mirror

T = TypeVar("T")

_NAME: Final = "copy.img"
# As of the disk itself: see `filesystem.set_cowextsize`.
_COW_BYTES: Final = 4096
# At each freeze so many blocks are compared, of those that had data before; and so many are looked at for that, as
# most of a disk are holes.
_SAMPLES: Final = 4
_TRIES: Final = 4096


def remove_copy(directory: Path) -> None:
    """Remove what a process left that followed the disk in `directory`. Idempotent."""
    remove_file(directory / _NAME)


class MissedError(InternalError):
    """A write was not noted, or not copied: neither the notes nor the copy are to be believed."""


class Following:
    """A disk that is followed. Its calls block, for as long as copying takes; any thread may make them (`run`).

    As long as it exists the disk's loop device stays what it is: another disk under its number would be taken for it.

    Attributes:
        device: of the disk.
        path: of the copy.
    """

    def __init__(self, trace: BlockTrace, disk: AttachedVolume, directory: Path) -> None:
        """
        Raises:
            UnavailableError: the disk is not the one in `directory`, or its writes cannot be noted.
        """
        self._directory = directory
        self._one = threading.Lock()
        self._source: Source | None = None
        self._samples: list[int] = []
        self.device = disk.device
        self.path = directory / _NAME
        with ExitStack() as stack:
            self._held = os.open(disk.device, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._held)
            self._image = os.open(directory / "disk.img", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._image)
            if loop.backing_of(disk.device) != loop.identity(directory / "disk.img"):
                raise UnavailableError(f"{disk.device} is not the disk in {directory} any more")
            remove_copy(directory)
            self._copy = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            stack.callback(remove_copy, directory)
            stack.callback(os.close, self._copy)
            filesystem.set_cowextsize(self._copy, _COW_BYTES)
            self._mirror = Mirror(trace, disk.device, self._image, self._copy)
            stack.callback(self._mirror.close)
            self._thread = ThreadPoolExecutor(1, "follow")
            self._owned = stack.pop_all()

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` in this disk's own thread: copies take long, and others wait for the threads of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def ended(self) -> bool:
        """As of its `Mirror`."""
        return self._mirror.ended

    def end(self) -> None:
        """Let a copy that is being made go no further, and nothing be copied any more. Does not block; idempotent."""
        self._mirror.end()

    def close(self) -> None:
        """Follow no more, and remove the copy. Idempotent."""
        self.end()
        with self._one:
            self._owned.close()
            self._held = -1
        self._thread.shutdown(wait=False, cancel_futures=True)

    def unmounted(self) -> bool:
        """Whether nobody can write to the disk any more."""
        try:
            os.close(os.open(self.device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    def approach(self) -> None:
        """Copy what was written, while the disk is in use. Whoever reads the copy's last state goes on reading that."""
        with self._one:
            self._require_open()
            self._preserve()
            self._mirror.approach()
            self._choose()

    def arrive(self) -> bool:
        """Make the copy the disk as it is, while that is frozen, or unmounted.

        Returns:
            False where it is not: `approach` again.

        Raises:
            MissedError: what was noted is not all that was written.
        """
        with self._one:
            self._require_open()
            self._preserve()
            try:
                self._mirror.arrive()
            except UnavailableError:
                return False
            differing = self._differing()
            if self._mirror.disturbed():
                return False
            if differing:
                raise MissedError(f"{describe_all(differing)} was written unnoticed, and not copied")
            return True

    def written(self) -> bool:
        """Whether the disk may have been written since the last `arrive`, as far as it has been written out."""
        if not self._one.acquire(blocking=False):
            return True  # the copy is being brought up
        try:
            return self._held < 0 or self._mirror.written()
        finally:
            self._one.release()

    def changed(self) -> frozenset[int] | None:
        """Blocks that may differ from what the copy was at the last `settle`; None: any may. After `arrive`."""
        with self._one:
            self._require_open()
            if not self._mirror.complete:
                return None
            found = self._mirror.changed()
            return frozenset(block for run in (*found.data, *found.holes) for block in run)

    def settle(self) -> None:
        """What `changed` said is remembered. Before the next `approach`."""
        self._mirror.settle()

    def flush(self) -> None:
        """Make the disk's image at least as new as the copy, also after a crash of the host."""
        with self._one:
            self._require_open()
            os.fdatasync(self._image)

    def source(self) -> Source:
        """What reads the copy's state, and goes on to read it when the copy changes. The caller closes it."""
        self._source = Source(os.dup(self._copy))
        return self._source

    def _preserve(self) -> None:
        source, self._source = self._source, None
        if source is None or source.closed:
            return
        kept = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            filesystem.ficlone(self._copy, kept)
        except OSError:
            os.close(kept)
            self._source = source
            raise
        source.move(kept)

    def _choose(self) -> None:
        """Choose some blocks with data, each as probable as any other, while nobody waits for it."""
        count = -(-os.fstat(self._image).st_size // BLOCK_BYTES)
        tried = (ids.random_below(count) for _ in range(_TRIES))
        self._samples = sorted(islice(filter(self._has_data, tried), _SAMPLES))

    def _has_data(self, block: int) -> bool:
        try:
            return os.lseek(self._image, block * BLOCK_BYTES, os.SEEK_DATA) < (block + 1) * BLOCK_BYTES
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no data from there on
                return False
            raise

    def _differing(self) -> list[int]:
        """Those chosen that differ: what was written and not noted would be missing in the store for ever."""
        return [
            block
            for block in self._samples
            if os.pread(self._image, BLOCK_BYTES, block * BLOCK_BYTES)
            != os.pread(self._copy, BLOCK_BYTES, block * BLOCK_BYTES)
        ]

    def _require_open(self) -> None:
        if self._held < 0:
            raise UnavailableError(f"the disk at {self.device} is not followed any more")
