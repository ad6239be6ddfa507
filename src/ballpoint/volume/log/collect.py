"""Garbage: packs that nobody will ask for again, volumes long in the trash, and what was begun and given up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import FencedError, NotFoundError
from ballpoint.core.tasks import for_each
from ballpoint.store.settle import create_settled
from ballpoint.store.store import LIST_MAX, Store, list_all
from ballpoint.volume.log.changes import Changes
from ballpoint.volume.log.commit import Closed, Commit, encode_commit
from ballpoint.volume.log.keys import (
    CommitName,
    MemberName,
    PackName,
    commits_prefix,
    members_prefix,
    packs_prefix,
    parse_member,
    parse_pack,
)
from ballpoint.volume.log.log import OutdatedError, Writer, milliseconds, missing, read, trim
from ballpoint.volume.log.mapped import PackGoneError
from ballpoint.volume.log.member import Member, decode_member
from ballpoint.volume.log.reach import Reach

ABANDON_SECONDS: Final = 7 * 86400.0
RETENTION_SECONDS: Final = 86400.0

_AT_ONCE: Final = 8
# So many are deleted by one call at most, which bounds its memory; the next call goes on.
_CANDIDATES_MAX: Final = 100_000

_LOOKED = steps.declare("collect: the first pass is done")
_CLOSED = steps.declare("collect: a volume is closed for good")
_DELETED = steps.declare("collect: packs are deleted")
_TRIMMED = steps.declare("collect: the log of a closed volume is trimmed")
_REMOVED = steps.declare("collect: a member is deleted")


@dataclass
class Collected:
    """What one call did.

    Attributes:
        packs: how many were deleted; size: their bytes.
        deleted: volumes whose time in the trash was over.
        abandoned: volumes whose log was never begun, and never will be.
        removed: members of volumes that are closed for good and have no packs any more.
        more: whether there was more garbage than one call deletes.
    """

    packs: int = 0
    size: int = 0
    deleted: int = 0
    abandoned: int = 0
    removed: int = 0
    more: bool = False


async def collect(
    store: Store,
    lineage: UUID,
    *,
    writer: str,
    retention: float = RETENTION_SECONDS,
    abandon: float = ABANDON_SECONDS,
    clock: Clock = SYSTEM_CLOCK,
) -> Collected:
    """Delete a lineage's garbage, in two passes (docs/volume-format.md). Many may do it at once; a crash leaves some.

    Nothing depends on clocks but when a volume leaves the trash, and when one that was never begun is given up.

    Args:
        writer: who this is, for people.
        retention: how long a volume stays in the trash, in seconds.
        abandon: how long after its member was made a volume's log may still be begun, in seconds. Too little costs
            whoever is about to begin it a new volume; no data.

    Raises:
        CorruptError: something of the lineage is lost or damaged. What it reaches is not known, so no pack is deleted.
        UnavailableError: the store does not answer; what was done is done.
    """
    return await _Collection(store, lineage, writer, clock).run(retention, abandon)


async def delete(store: Store, volume: UUID, *, writer: str, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Close a volume for good that is in the trash; its writer, if it has one, is fenced.

    Returns:
        Whether it was closed by us. False: it has no log, is closed, or is not in the trash (any more).

    Raises:
        UnknownOutcomeError: it may be closed now, or later; call again.
    """
    view = await read(store, volume)
    if view is None or view.trashed is None:
        return False  # so that nobody is fenced in vain
    taken = await Writer.take_over(store, volume, writer=writer, clock=clock)
    if taken is None or taken.view.trashed is None:
        return False
    await taken.commit("delete")
    return True


class _Seen(NamedTuple):
    """What is kept of a member's view: its changes may be large, and there may be many."""

    head: CommitName
    closed: Closed
    dead: bool
    trashed: int | None


class _Collection:
    def __init__(self, store: Store, lineage: UUID, writer: str, clock: Clock) -> None:
        self._store = store
        self._lineage = lineage
        self._writer = writer
        self._clock = clock
        self._reach = Reach(store)
        self._one_map = asyncio.Lock()  # so that a page which many maps share is read once
        self._heads: dict[UUID, CommitName] = {}
        self._done = Collected()

    async def run(self, retention: float, abandon: float) -> Collected:
        members = await self._look()
        for volume, seen in members.items():
            if seen is None:
                await self._abandon(volume, abandon)
            elif seen.trashed is not None and seen.trashed + 1000 * retention <= milliseconds(self._clock):
                await self._delete(volume)
        candidates = await self._candidates(members)
        if candidates:
            steps.reach(_LOOKED)
            # What the first pass has read of reaches no candidate: only what came since needs to be read.
            await self._look()
            await self._delete_packs({pack: size for pack, size in candidates.items() if pack not in self._reach})
        return self._done

    async def _look(self) -> dict[UUID, _Seen | None]:
        """One pass: add what is reached. The members that were read, None for one without a log."""
        names = [parse_member(item.key) for item in await list_all(self._store, members_prefix(self._lineage))]
        members: dict[UUID, _Seen | None] = {}

        async def look_at(name: MemberName) -> None:
            if await self._is_as_before(name.volume):
                return
            members[name.volume] = seen = await self._add(name)
            if seen is not None:
                self._heads[name.volume] = seen.head

        await for_each(names, look_at, at_once=_AT_ONCE)
        return members

    async def _is_as_before(self, volume: UUID) -> bool:
        """Whether the log has the head that was read before: then all of it is as it was."""
        if (before := self._heads.get(volume)) is None:
            return False
        return [item.key for item in await self._store.list(commits_prefix(volume), limit=1)] == [before.key]

    async def _add(self, name: MemberName) -> _Seen | None:
        """Add what a member reaches."""
        while True:
            view = await read(self._store, name.volume)
            try:
                async with self._one_map:
                    if view is not None:
                        await self._reach.add_volume(view)
                    elif (member := await self._member(name)) is not None and member.source is not None:
                        await self._reach.add(member.source.root)
                return None if view is None else _Seen(view.head, view.closed, view.dead, view.trashed)
            except PackGoneError as gone:
                if view is None:
                    if await read(self._store, name.volume) is None:
                        # Its source does not reach this pack: a fork that looks again finds that out.
                        return None
                    continue
                error = await missing(self._store, view, gone.pack, f"volume {name.volume}")
                if not isinstance(error, OutdatedError):
                    raise error from gone

    async def _member(self, name: MemberName) -> Member | None:
        try:
            return decode_member(await self._store.get(name.key), name)
        except NotFoundError:
            return None  # removed meanwhile: the volume is closed for good

    async def _abandon(self, volume: UUID, seconds: float) -> None:
        member = await self._member(MemberName(self._lineage, volume))
        if member is None or member.time + 1000 * seconds > milliseconds(self._clock):
            return
        name = CommitName(volume, 1, 1)
        commit = Commit(
            name=name,
            lineage=self._lineage,
            put_id=ids.new_put_id(),
            writer=self._writer,
            time=milliseconds(self._clock),
            previous=None,
            kind="abandoned",
            closed=Closed(0, 0),
            changes=Changes(name),
        )
        if await create_settled(self._store, name.key, encode_commit(commit), clock=self._clock):
            self._done.abandoned += 1

    async def _delete(self, volume: UUID) -> None:
        try:
            if await delete(self._store, volume, writer=self._writer, clock=self._clock):
                self._done.deleted += 1
                steps.reach(_CLOSED)
        except FencedError:
            pass  # somebody else is at it, or its owner took it back

    async def _candidates(self, members: dict[UUID, _Seen | None]) -> dict[PackName, int]:
        """The packs that nothing reaches, of those that are closed, with their sizes."""
        candidates: dict[PackName, int] = {}

        async def look_at(volume: UUID) -> None:
            if (seen := members[volume]) is None:
                return
            after, count = "", 0
            while page := await self._store.list(packs_prefix(volume), after=after):
                for item in page:
                    pack = parse_pack(item.key)
                    if Closed(pack.epoch, pack.upload) <= seen.closed and pack not in self._reach:
                        candidates[pack] = item.size
                after, count = page[-1].key, count + len(page)
                if len(candidates) >= _CANDIDATES_MAX:
                    self._done.more = True
                    return
                if len(page) < LIST_MAX:
                    break
            if seen.dead and not count:
                await self._remove(seen.head)

        await for_each(list(members), look_at, at_once=_AT_ONCE)
        return candidates

    async def _remove(self, head: CommitName) -> None:
        """Remove what is left of a volume that is closed for good, but for what keeps it closed."""
        await trim(self._store, head, {})
        steps.reach(_TRIMMED)
        await self._store.delete([MemberName(self._lineage, head.volume).key])
        steps.reach(_REMOVED)
        self._done.removed += 1

    async def _delete_packs(self, packs: dict[PackName, int]) -> None:
        doomed = list(packs)
        for start in range(0, len(doomed), LIST_MAX):
            batch = doomed[start : start + LIST_MAX]
            await self._store.delete([pack.key for pack in batch])
            steps.reach(_DELETED)
            self._done.packs += len(batch)
            self._done.size += sum(packs[pack] for pack in batch)
