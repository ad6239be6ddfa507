"""Blocks of a snapshot into packs, and packs into the store: read, compared, hashed and compressed in threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Final

from ballpoint.core import steps
from ballpoint.core.errors import BallpointError
from ballpoint.core.tasks import Tasks
from ballpoint.core.threads import ended
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, Blob, Reference, encode_blob, hash_of
from ballpoint.volume.log.changes import INLINE_MAX
from ballpoint.volume.log.commit import Closed
from ballpoint.volume.log.pack import PackBuilder
from ballpoint.volume.log.packing import Packing
from ballpoint.volume.sync.source import Source

# A thread's turn: handing one to it costs as much as compressing a block.
_CHUNK_BLOCKS: Final = 32
# Full packs that wait for the store, of all volumes together: 8 MiB each.
_PACKS: Final = 6
_NICE: Final = 10
_ZEROS: Final = bytes(BLOCK_BYTES)

_STORED = steps.declare("sync: a pack is stored")

Place = Reference | Blob | None


@dataclass
class Found:
    """What reading some blocks gave.

    Attributes:
        blocks: those that differ from what is known, with their content; None: it is a hole.
        cpu_seconds: what that took.
    """

    blocks: list[tuple[int, Blob | None]]
    cpu_seconds: float = 0.0


class Uploads:
    """What all uploads of a node share: threads that sprites' own work comes before, and bounded memory."""

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads or os.cpu_count() or 1
        self.executor = ThreadPoolExecutor(self.threads, "upload", initializer=_be_nice)
        self.packs = asyncio.Semaphore(_PACKS)

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)


class Upload(Packing):
    """The packs of one commit, some stored at once. `finish` must have returned before the commit names them.

    Args:
        new_pack: makes the next pack of the volume.

    Attributes:
        bytes_stored: of the packs that are stored.
        cpu_seconds: what reading, comparing, hashing and compressing took.
    """

    def __init__(self, shared: Uploads, store: Store, new_pack: Callable[[], PackBuilder]) -> None:
        super().__init__(store, new_pack)
        self._shared = shared
        self._puts = Tasks()
        self._storing: list[asyncio.Task[None]] = []
        self._refused: BallpointError | None = None
        self.bytes_stored = 0
        self.cpu_seconds = 0.0

    async def blocks(
        self, look: Callable[[Sequence[int]], Found], blocks: Iterable[int], *, inline: bool
    ) -> list[tuple[int, Place]]:
        """Read blocks, and put those that differ into packs.

        Args:
            look: reads some blocks; called in threads.
            blocks: their numbers, rising.
            inline: leave them where they are few enough to go into the commit itself.

        Returns:
            The blocks that differ, by rising numbers, with where they are.
        """
        places: list[tuple[int, Place]] = []
        held = 0
        # An error here ends no generator by itself, only some time later.
        async with aclosing(self._in_order(look, blocks)) as in_order:
            async for found in in_order:
                self.cpu_seconds += found.cpu_seconds
                for block, blob in found.blocks:
                    if blob is None or inline:
                        places.append((block, blob))
                        held += len(blob.stored) if blob is not None else 0
                    else:
                        places.append((block, await self.add(blob, "block")))
                if inline and held > INLINE_MAX:
                    inline = False
                    places = [
                        (block, await self.add(place, "block") if isinstance(place, Blob) else place)
                        for block, place in places
                    ]
        return places

    async def finish(self) -> Closed | None:
        """Wait until all packs are stored.

        Returns:
            Up to which pack all are; None where there are none.

        Raises:
            UnavailableError: the store does not take them; what it has taken is garbage from the next commit on.
        """
        await self.flush()
        await asyncio.gather(*self._storing)
        self._check()
        return self.closed

    async def cancel(self) -> None:
        """Stop storing; what is stored already is garbage from the next commit on. Idempotent."""
        await self._puts.close()

    async def _send(self, pack: PackBuilder) -> None:
        await self._shared.packs.acquire()
        put = self._puts.start(self._put(pack), f"put {pack.name.key}")
        # Not in the task itself: one that is cancelled before its first step does nothing at all.
        put.add_done_callback(lambda _: self._shared.packs.release())
        self._storing.append(put)
        self._check()

    def _check(self) -> None:
        if self._refused is not None:
            raise self._refused

    async def _put(self, pack: PackBuilder) -> None:
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._shared.executor, pack.close)
            await self._store.put(pack.name.key, data)
            steps.reach(_STORED)
            self.bytes_stored += len(data)
        except BallpointError as error:
            self._refused = error

    async def _in_order(
        self, look: Callable[[Sequence[int]], Found], blocks: Iterable[int]
    ) -> AsyncGenerator[Found, None]:
        """What `look` gives, a chunk of blocks at a time, while threads work on the next ones."""
        numbers = iter(blocks)
        under_way: deque[Future[Found]] = deque()
        try:
            while True:
                while len(under_way) <= self._shared.threads and (chunk := list(islice(numbers, _CHUNK_BLOCKS))):
                    under_way.append(self._shared.executor.submit(look, chunk))
                if not under_way:
                    return
                yield await asyncio.shield(asyncio.wrap_future(under_way[0]))
                under_way.popleft()
        finally:
            # The threads read from descriptors that are closed when this ends.
            for each in under_way:
                each.cancel()
            await ended(map(asyncio.wrap_future, under_way))


def present(new: Source, blocks: Sequence[int]) -> Found:
    """All of `blocks`, whatever was known of them."""
    return unknown(new, lambda block: b"", blocks)


def differing(new: Source, old: Source, blocks: Sequence[int]) -> Found:
    """Those of `blocks` that differ between two images."""
    found, began = Found([]), time.thread_time()
    for block in blocks:
        content = new.block(block)
        if content == old.block(block):
            continue
        found.blocks.append((block, encode_blob(content) if content != _ZEROS else None))
    found.cpu_seconds = time.thread_time() - began
    return found


def unknown(new: Source, known: Callable[[int], bytes | None], blocks: Sequence[int]) -> Found:
    """Those of `blocks` that are not what the map says.

    Args:
        known: the hash that the map has of a block; None: it is a hole.
    """
    found, began = Found([]), time.thread_time()
    for block in blocks:
        content = new.block(block)
        digest = None if content == _ZEROS else hash_of(content)
        if digest == known(block):
            continue
        found.blocks.append((block, encode_blob(content) if digest is not None else None))
    found.cpu_seconds = time.thread_time() - began
    return found


def _be_nice() -> None:
    # A thread of Linux has a priority of its own (setpriority(2), NOTES).
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
