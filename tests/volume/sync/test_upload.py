"""Packs on their way into the store, when that refuses them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from uuid import UUID

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import UnavailableError
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, PLAIN, Blob, hash_of
from ballpoint.volume.log.keys import PackName
from ballpoint.volume.log.pack import PACK_BYTES, PackBuilder
from ballpoint.volume.sync.upload import Found, Upload, Uploads
from tests.volume.log.memory import MemoryStore

# More than are under way at once: the last ones are begun when the first have been refused.
_PACKS = 8
_BLOCKS = range(_PACKS * PACK_BYTES // BLOCK_BYTES)
_CONTENT = os.urandom(BLOCK_BYTES)
_BLOB = Blob(_CONTENT, PLAIN, hash_of(_CONTENT))


def look(blocks: Sequence[int]) -> Found:
    return Found([(block, _BLOB) for block in blocks])


class HoldingStore(MemoryStore):
    """A store that does not answer while it `holds`."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = True
        self.asked = asyncio.Event()

    async def put(self, key: str, data: bytes) -> None:
        self.asked.set()
        if self.holds:
            await asyncio.Event().wait()
        await super().put(key, data)


class Volume:
    """Uploads of one volume, one after the other."""

    def __init__(self, uploads: Uploads, store: Store) -> None:
        self._uploads = uploads
        self._store = store
        self._count = 0

    def _new_pack(self) -> PackBuilder:
        self._count += 1
        return PackBuilder(PackName(UUID(int=1), 1, self._count, ids.new_put_id()), UUID(int=2))

    async def upload(self) -> None:
        upload = Upload(self._uploads, self._store, self._new_pack)
        try:
            await upload.blocks(look, _BLOCKS, inline=False)
            await upload.finish()
        finally:
            await upload.cancel()


async def test_uploads_that_were_refused_keep_nobody_from_uploading_later(uploads: Uploads) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory, Faults(), 1)
    volume = Volume(uploads, store)
    store.out = True
    for _ in range(10):  # more than there are packs under way at once
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(volume.upload(), 60)
    store.out = False
    await asyncio.wait_for(volume.upload(), 60)
    assert memory.calls["put"] >= _PACKS


async def test_an_upload_that_is_cancelled_keeps_nobody_from_uploading_later(uploads: Uploads) -> None:
    store = HoldingStore()
    volume = Volume(uploads, store)
    for _ in range(3):
        store.asked.clear()
        uploading = asyncio.ensure_future(volume.upload())
        await store.asked.wait()
        uploading.cancel()
        await asyncio.wait([uploading])
    store.holds = False
    await asyncio.wait_for(volume.upload(), 60)


async def test_an_upload_that_failed_reads_no_more(uploads: Uploads) -> None:
    """What it reads from is closed then."""
    loop = asyncio.get_running_loop()
    second, go_on = threading.Event(), threading.Event()
    reading: set[int] = set()

    def slow(blocks: Sequence[int]) -> Found:
        reading.add(blocks[0])
        if blocks[0]:
            second.set()
            assert go_on.wait(60)
        else:
            assert second.wait(60)
        reading.discard(blocks[0])
        return look(blocks)

    def refuse() -> PackBuilder:
        loop.call_soon(go_on.set)
        raise UnavailableError("no pack")

    with pytest.raises(UnavailableError):
        await Upload(uploads, MemoryStore(), refuse).blocks(slow, _BLOCKS, inline=False)
    assert not reading
