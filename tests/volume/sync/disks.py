"""Disks in a store, beside what they must be; and images, as they are."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from uuid import UUID

from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, encode_blob
from ballpoint.volume.log.commit import Checkpoint
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.mapped import store_map
from ballpoint.volume.log.packing import Packing
from tests.volume.log.disks import Blocks, Disk

ZEROS = bytes(BLOCK_BYTES)
BLOCKS = 4096


class KnownDisk(Disk):
    """A volume and its writer.

    Attributes:
        blocks: what the disk has now, without what is a hole or zeros.
        checkpoints: the same of each checkpoint.
    """

    blocks: Blocks
    checkpoints: dict[str, Blocks]

    @classmethod
    async def found(cls, store: Store, volume: UUID, lineage: UUID, *, size: int = BLOCKS * BLOCK_BYTES) -> KnownDisk:
        """A new volume."""
        writer = await found(store, volume, lineage, image="none", size=size, settings={}, writer="test")
        assert writer is not None
        made = cls(store, writer)
        made.blocks, made.checkpoints = {}, {}
        return made

    async def write(self, blocks: Mapping[int, bytes | None], *, inline: bool = False) -> CommitName:
        for number, content in blocks.items():
            self.blocks.pop(number, None)
            if content is not None and content != ZEROS:
                self.blocks[number] = content
        return await super().write(blocks, inline=inline)

    async def checkpoint(self, id: str) -> Checkpoint:
        self.checkpoints[id] = dict(self.blocks)
        return await super().checkpoint(id)

    async def move(self) -> CommitName:
        """All blocks into new packs, as one does whose packs are mostly dead."""
        packing, disk = Packing(self.store, self.writer.new_pack), Map()
        for number, content in self.blocks.items():
            disk[number] = await packing.add(encode_blob(content), "block")
        root = await store_map(disk, self.writer.view, packing.add)
        await packing.flush()
        return await self.complete("compact", root=root)


def compressible(chance: random.Random) -> bytes:
    """A block that becomes some dozen bytes."""
    return chance.randbytes(16) * (BLOCK_BYTES // 16)


def incompressible(chance: random.Random) -> bytes:
    """A block that is stored as it is."""
    return chance.randbytes(BLOCK_BYTES)


def read_image(fd: int) -> Blocks:
    """The blocks of an image that are no holes."""
    found: Blocks = {}
    size = os.fstat(fd).st_size
    position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: holes up to the end
            break
        end = os.lseek(fd, position, os.SEEK_HOLE)
        for number in range(position // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            found[number] = os.pread(fd, BLOCK_BYTES, number * BLOCK_BYTES)
        position = end
    return found
