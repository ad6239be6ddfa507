"""The yardstick of a disk that comes back: the same packs read and unpacked, neither hashed nor written.

A program, too, so that it shares no interpreter with what stands before a store: `python -m bench.packs URL VOLUME`
prints how many bytes are in the packs, then for each line that comes how many seconds it took to read and unpack them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from uuid import UUID

import zstandard

from ballpoint.core.tasks import for_each
from ballpoint.store.store import Store, list_all
from ballpoint.store.url import open_store
from ballpoint.volume.log.blob import PLAIN, Piece
from ballpoint.volume.log.keys import PackName, packs_prefix, parse_pack
from ballpoint.volume.log.pack import PACK_BYTES, decode_pack, stored_range
from ballpoint.volume.sync.hydrate import AT_ONCE
from ballpoint.volume.sync.reads import READ_MAX

Packs = dict[PackName, list[Piece]]

_SECONDS = 600.0
# As many bytes in flight as hydration has.
_AT_ONCE = AT_ONCE * READ_MAX // PACK_BYTES


async def packs_of(store: Store, volume: UUID) -> Packs:
    """The blocks in the packs of a volume. Reads them all."""
    packs: Packs = {}

    async def look(name: PackName) -> None:
        pack = decode_pack(await store.get(name.key), name)
        if pieces := [entry.piece for entry in pack.entries if entry.kind == "block"]:
            packs[name] = pieces

    names = [parse_pack(item.key) for item in await list_all(store, packs_prefix(volume))]
    await for_each(names, look, at_once=_AT_ONCE)
    return packs


def stored(packs: Packs) -> int:
    """Bytes of the blocks, as they are stored."""
    return sum(piece.length for pieces in packs.values() for piece in pieces)


async def plain(store: Store, packs: Packs) -> None:
    """Read whole packs and unpack what is in them."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:

        async def read(name: PackName) -> None:
            data = await store.get(name.key)
            await asyncio.get_running_loop().run_in_executor(threads, _unpack, data, packs[name])

        await for_each(packs, read, at_once=_AT_ONCE)


def _unpack(data: bytes, pieces: list[Piece]) -> None:
    view, decompressor = memoryview(data), zstandard.ZstdDecompressor()
    for piece in pieces:
        start, length = stored_range(piece)
        if piece.flags != PLAIN:
            decompressor.decompress(view[start : start + length])


@asynccontextmanager
async def reading(url: str, volume: UUID) -> AsyncIterator[tuple[int, Callable[[], Awaitable[float]]]]:
    """The program, for the volume of a store. Yields the bytes of its packs, and what reads them once: its seconds."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.packs", url, str(volume),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None
    asking, answers = program.stdin, program.stdout

    async def told() -> str:
        async with asyncio.timeout(_SECONDS):
            if line := await answers.readline():
                return line.decode()
        raise RuntimeError("the yardstick that reads packs has ended")

    async def once() -> float:
        asking.write(b"\n")
        return float(await told())

    try:
        yield int(await told()), once
    finally:
        asking.close()
        await program.wait()


async def _main(url: str, volume: UUID) -> None:
    store = open_store(url)
    try:
        packs = await packs_of(store, volume)
        print(stored(packs), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            started = perf_counter()
            await plain(store, packs)
            print(perf_counter() - started, flush=True)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], UUID(sys.argv[2])))
