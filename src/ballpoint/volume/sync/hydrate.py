"""An image of a disk, filled from the store: read by few large requests at a time, each block checked, holes kept.

Nothing is written down of how far it came: whoever is interrupted begins anew, with an empty file in staging/, and
gives the image its name once it is whole.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from uuid import UUID

from ballpoint.core import steps
from ballpoint.core.errors import CorruptError, InvalidError, NotFoundError
from ballpoint.core.tasks import for_each
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, Inline, Reference, decode_block, describe_all
from ballpoint.volume.log.changes import PAGE_BLOCKS
from ballpoint.volume.log.commit import State
from ballpoint.volume.log.envelope import BODY_START, damaged
from ballpoint.volume.log.keys import PackName
from ballpoint.volume.log.log import OutdatedError, View, read
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.mapped import PackGoneError, load_map, load_pages, open_map, stored_inline
from ballpoint.volume.sync.reads import Read, plan

# In flight: 128 MiB with reads of 2 MiB. Where packs are small, they wait for the wire's latency together.
AT_ONCE: Final = 64
# Blocks that are written by one call: half the time of one call each.
_RUN: Final = 8
# The disk writes out while more is read, and not all of it at the end.
_FLUSH_BYTES: Final = 64 * 1024 * 1024


_FILLED = steps.declare("fetch: a part is filled")


class Filled(NamedTuple):
    """How far an image is, in bytes of the disk that are no holes."""

    done: int
    total: int


Progress = Callable[[Filled], None]


async def hydrate(
    store: Store, volume: UUID, target: int, *, checkpoint: str | None = None, progress: Progress | None = None
) -> View:
    """Fill `target` with a volume's disk as its log has it, or with one of its checkpoints. Durable when it returns.

    It takes at most 128 MiB for what was read, and about 60 bytes for each block that is no hole (8 MB for 8 GB). Where
    it fails or is cancelled, what is in `target` is of no use.

    Args:
        target: descriptor of a file that is open for writing; what it has is replaced.
        checkpoint: id of one; None: the disk.
        progress: is told before anything is read, with 0 done, and after each request; what it raises ends it.

    Returns:
        What the log was: the disk is the one after the commit `head`.

    Raises:
        NotFoundError: the volume has no log, is closed for good, or has no such checkpoint.
        CorruptError: something is lost or damaged; it names the object and the blocks.
        ConflictError: something was made by a later version.
        UnavailableError: the store, in a way that it may repair.
        OSError: `target` cannot be written to.
    """
    gone: set[PackName] = set()
    while True:
        view, state = await _read(store, volume)
        try:
            disk = await _map(store, view, state, checkpoint)
            await fill(store, view, disk, target, progress=progress, gone=gone)
        except OutdatedError:
            continue
        except PackGoneError as missing:
            # Blocks may have been moved into another pack since; what the log still names after this is lost.
            gone.add(missing.pack)
            continue
        return view


async def fill(
    store: Store,
    view: View,
    disk: Map,
    target: int,
    *,
    progress: Progress | None = None,
    gone: set[PackName] | None = None,
) -> None:
    """Fill `target` with the disk that a map describes; as `hydrate`, for whoever has the map.

    Args:
        view: whose map it is: its commits have the blocks that are inline.
        disk: with all its pages.
        gone: packs that are known not to be there.

    Raises:
        PackGoneError: a pack is not there: the log has gone on, or it is lost.
        CorruptError, UnavailableError, OSError: as `hydrate`.
    """
    assert view.state is not None
    todo = await asyncio.to_thread(plan, disk)
    for pack in gone or ():
        if lost := todo.of(pack):
            raise CorruptError(
                f"{pack.key} is not there; {describe_all(lost)} cannot be read", hint="look at the store and its copies"
            )
    if todo.end * BLOCK_BYTES > view.state.size + BLOCK_BYTES - 1:
        raise damaged(view.head.key, f"the map has block {todo.end - 1}, of a disk of {view.state.size} bytes")
    meter = _Meter(todo.blocks, progress)
    async with _opened(target, view.state.size) as image:
        if todo.inline:
            await image.run(lambda: image.put_inline(todo.inline, stored_inline(view)))
            meter.add(len(todo.inline))

        async def fetch(part: Read) -> None:
            data = await _get(store, part)
            await image.run(lambda: image.put(part, data))
            meter.add(len(part))
            steps.reach(_FILLED)
            if meter.is_flush_due():
                await image.flush()

        await for_each(todo.reads, fetch, at_once=AT_ONCE)
        await image.flush()


async def _read(store: Store, volume: UUID) -> tuple[View, State]:
    view = await read(store, volume)
    if view is None or view.dead or view.state is None:
        raise NotFoundError(f"the store has no volume {volume}", hint="it was deleted, or never saved")
    return view, view.state


async def _map(store: Store, view: View, state: State, checkpoint: str | None) -> Map:
    if checkpoint is None:
        disk = await load_map(store, view)
    else:
        disk = await open_map(store, view, _root(view, state, checkpoint))
    await load_pages(store, view, disk, (number * PAGE_BLOCKS for number in disk.pages))
    return disk


def _root(view: View, state: State, checkpoint: str) -> Reference:
    for each in state.checkpoints:
        if each.id == checkpoint:
            return each.root
    raise NotFoundError(f"volume {view.head.volume} has no checkpoint {checkpoint[:80]!r} in the store")


async def _get(store: Store, part: Read) -> bytes:
    try:
        return await store.get(part.pack.key, BODY_START + part.start, part.length)
    except NotFoundError as error:
        raise PackGoneError(part.pack) from error
    except InvalidError as error:
        raise damaged(
            part.pack.key, f"it ends before byte {part.start} of its body; {describe_all(part.blocks())} cannot be read"
        ) from error


class _Meter:
    """How far an image is."""

    def __init__(self, blocks: int, progress: Progress | None) -> None:
        self._total, self._done, self._flushed = blocks * BLOCK_BYTES, 0, 0
        self._progress = progress
        self.add(0)

    def add(self, blocks: int) -> None:
        self._done += blocks * BLOCK_BYTES
        if self._progress is not None:
            self._progress(Filled(self._done, self._total))

    def is_flush_due(self) -> bool:
        """Whether enough was written since this was last true."""
        if self._done - self._flushed < _FLUSH_BYTES:
            return False
        self._flushed = self._done
        return True


@asynccontextmanager
async def _opened(target: int, size: int) -> AsyncIterator[_Image]:
    """`target` as an image of holes, of `size` bytes, until its threads have ended."""
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hydrate")
    # It waits for the disk, and what is flushed early must not wait behind all that was read.
    flusher = ThreadPoolExecutor(1, "hydrate-flush")
    # Of its own, so that a thread that is still at work when the caller is cancelled once more writes to no other file.
    fd = os.dup(target)

    def end() -> None:
        threads.shutdown(cancel_futures=True)
        flusher.shutdown(cancel_futures=True)
        os.close(fd)

    try:
        image = _Image(fd, size, threads, flusher)
        await image.run(image.clear)
        yield image
    finally:
        await asyncio.get_running_loop().run_in_executor(None, end)


class _Image:
    """A file that threads write blocks into. `run` and `flush` are for the event loop, the others for what it runs."""

    def __init__(self, fd: int, size: int, threads: ThreadPoolExecutor, flusher: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._size = size
        self._threads = threads
        self._flusher = flusher

    async def run(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def flush(self) -> None:
        """Make durable what has been written."""
        await asyncio.get_running_loop().run_in_executor(self._flusher, os.fdatasync, self._fd)

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self._size)

    def put_inline(self, blocks: list[tuple[int, Inline]], stored: Callable[[Inline], bytes]) -> None:
        """Check and write blocks that are in commits."""
        for block, place in blocks:
            self._write(_Run(block, [decode_block(stored(place), place, block)]))

    def put(self, part: Read, data: bytes) -> None:
        """Check and write the blocks of one request.

        Raises:
            CorruptError: some are not what was written; it names all of them.
        """
        view = memoryview(data)
        bad: dict[int, CorruptError] = {}
        run = _Run(0, [])
        for block, piece in part:
            start = piece.offset - part.start
            try:
                content = decode_block(view[start : start + piece.length], Reference.to(part.pack, piece), block)
            except CorruptError as error:
                bad[block] = error
                continue
            if block != run.end or len(run.contents) == _RUN:
                self._write(run)
                run = _Run(block, [])
            run.contents.append(content)
        self._write(run)
        if len(bad) == 1:
            raise next(iter(bad.values()))
        if bad:
            raise damaged(
                part.pack.key, f"{len(bad)} of its blobs are not what was written; {describe_all(bad)} cannot be read"
            )

    def _write(self, run: _Run) -> None:
        position = run.first * BLOCK_BYTES
        left = [memoryview(content) for content in run.contents]
        if (beyond := run.end * BLOCK_BYTES - self._size) > 0:
            left[-1] = left[-1][:-beyond]
        while left:
            written = os.pwritev(self._fd, left, position)
            position += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]


class _Run(NamedTuple):
    """Blocks that lie side by side."""

    first: int
    contents: list[bytes]

    @property
    def end(self) -> int:
        """The number after the last of them."""
        return self.first + len(self.contents)
