"""A few changed blocks go into the commit itself: one request, and no pack."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from ballpoint.volume.log.blob import BLOCK_BYTES
from ballpoint.volume.log.changes import INLINE_MAX
from ballpoint.volume.log.keys import packs_prefix
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.keeper import Keeper
from ballpoint.volume.sync.upload import Uploads
from tests.volume.log.memory import MemoryStore
from tests.volume.sync.disks import compressible, incompressible
from tests.volume.sync.world import disk_at, disk_in, keeper_of, settled, sync

pytestmark = pytest.mark.host


def write(image: Path, blocks: dict[int, bytes]) -> None:
    with image.open("r+b") as file:
        for number, content in blocks.items():
            file.seek(number * BLOCK_BYTES)
            file.write(content)


async def cost(keeper: Keeper, store: MemoryStore) -> Counter[str]:
    """What a save changes in the store: how many requests of each kind."""
    before = Counter(store.calls)
    await sync(keeper)
    return Counter({kind: count for kind, count in (store.calls - before).items() if kind in ("put", "create")})


@pytest.mark.parametrize("content", [incompressible, compressible])
async def test_few_blocks_are_in_the_commit_and_more_in_a_pack(
    pool: VolumePool, volume_id: str, uploads: Uploads, content: object
) -> None:
    assert callable(content)
    store, image, chance = MemoryStore(), pool.directory(volume_id) / "disk.img", random.Random(1)
    keeper = keeper_of(pool, volume_id, store, uploads)
    await settled(keeper)

    def packs() -> set[str]:
        return {key for key in store.data if key.startswith(packs_prefix(UUID(volume_id)))}

    before = packs()
    few, many = 3, INLINE_MAX // BLOCK_BYTES + 1
    write(image, {100 + number: content(chance) for number in range(few)})
    assert await cost(keeper, store) == Counter(create=1)
    assert packs() == before
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)

    write(image, {200 + number: content(chance) for number in range(many)})
    told = await cost(keeper, store)
    if content is incompressible:
        assert told["create"] == 1 and told["put"] == len(packs() - before) > 0
    else:  # what counts is what they take in the store
        assert told == Counter(create=1) and packs() == before
    assert await disk_in(store, UUID(volume_id)) == disk_at(image)

    # A commit that names everything names no block that is in another commit, which may go.
    await keeper.checkpoint(None, comment="", auto=False, frozen=None)
    await sync(keeper)
    assert packs() > before
    for expected in (None, "v0"):
        assert await disk_in(store, UUID(volume_id), expected) == disk_at(image)
