"""How much a store has, and how much of it somebody would ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from ballpoint.core.errors import ConflictError, CorruptError
from ballpoint.store.store import LIST_MAX, Store
from ballpoint.volume.log.keys import commits_prefix, packs_prefix, parse_pack
from ballpoint.volume.log.log import View, missing, read
from ballpoint.volume.log.mapped import PackGoneError
from ballpoint.volume.log.reach import Reach
from ballpoint.volume.log.survey import lineages, members, volumes


@dataclass
class Stats:
    """What is in a store.

    Attributes:
        lineages: with members.
        volumes: that are not closed for good, of which `trashed` are in the trash.
        unreadable: volumes that are damaged or of a later version; all packs of their lineages count as reachable.
        closed: volumes that are closed for good; unborn: members without a log.
        checkpoints: of all volumes.
        commits: objects; commit_bytes: their bytes.
        packs: objects; pack_bytes: their bytes.
        reachable: of these, the bytes of packs of which something is reached; the others are garbage, or on their way.
    """

    lineages: int = 0
    volumes: int = 0
    trashed: int = 0
    unreadable: int = 0
    closed: int = 0
    unborn: int = 0
    checkpoints: int = 0
    commits: int = 0
    commit_bytes: int = 0
    packs: int = 0
    pack_bytes: int = 0
    reachable: int = 0

    @property
    def garbage(self) -> int:
        """Bytes of packs of which nothing is reached: to be collected once their upload is closed."""
        return self.pack_bytes - self.reachable


async def stats(store: Store) -> Stats:
    """Count what is in a store. It changes nothing, and may run while volumes are written: then it is about right.

    Raises:
        CorruptError: something in the place of lineages or volumes is not Ballpoint's.
        UnavailableError: the store does not answer.
    """
    counted = Stats()
    known: set[UUID] = set()
    async for lineage in lineages(store):
        counted.lineages += 1
        names = [name.volume for name in await members(store, lineage)]
        known.update(names)
        reach = Reach(store)
        unreadable = {volume for volume in names if not await _reach(store, volume, reach, counted)}
        for volume in names:
            await _count(store, volume, None if unreadable else reach, counted)
        counted.unreadable += len(unreadable)
    async for volume in volumes(store):
        if volume not in known:
            await _reach(store, volume, reach := Reach(store), counted)
            await _count(store, volume, reach, counted)
    return counted


async def _reach(store: Store, volume: UUID, reach: Reach, counted: Stats) -> bool:
    """Count a volume, and add what it reaches. False: that is not known."""
    try:
        view = await _added(store, volume, reach)
    except (CorruptError, ConflictError):
        return False
    if view is None:
        counted.unborn += 1
    elif view.state is None:
        counted.closed += 1
    else:
        counted.volumes += 1
        counted.trashed += view.trashed is not None
        counted.checkpoints += len(view.state.checkpoints)
    return True


async def _added(store: Store, volume: UUID, reach: Reach) -> View | None:
    while (view := await read(store, volume)) is not None:
        try:
            await reach.add_volume(view)
            return view
        except PackGoneError as gone:
            error = await missing(store, view, gone.pack, f"volume {volume}")
            if isinstance(error, CorruptError):
                raise error from gone
    return None


async def _count(store: Store, volume: UUID, reach: Reach | None, counted: Stats) -> None:
    """Count a volume's objects.

    Args:
        reach: of its lineage; None: not known.
    """
    async for _, size in _sizes(store, commits_prefix(volume)):
        counted.commits += 1
        counted.commit_bytes += size
    async for key, size in _sizes(store, packs_prefix(volume)):
        counted.packs += 1
        counted.pack_bytes += size
        if reach is None or parse_pack(key) in reach:
            counted.reachable += size


async def _sizes(store: Store, prefix: str) -> AsyncIterator[tuple[str, int]]:
    after = ""
    while page := await store.list(prefix, after=after):
        for item in page:
            yield item.key, item.size
        after = page[-1].key
        if len(page) < LIST_MAX:
            break
