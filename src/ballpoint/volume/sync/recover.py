"""What volumes a store has: all that a node with an empty data directory needs to know of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from ballpoint.core.errors import BallpointError, ConflictError, CorruptError
from ballpoint.core.tasks import for_each
from ballpoint.store.store import LIST_MAX, Store
from ballpoint.volume.log.commit import Checkpoint
from ballpoint.volume.log.keys import CommitName, parse_member
from ballpoint.volume.log.log import View, read
from ballpoint.volume.record import Kept, Record, settings_hash

LINEAGES: Final = "lineages/"
# Logs that are read at once: each is some small requests, one after the other.
AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Found:
    """A volume, as its log says.

    Attributes:
        volume, lineage: their names in the store.
        head: the newest commit: the disk is as it was after that.
        put_id: of that commit.
        time: of that commit, in milliseconds since 1970 by its writer's clock.
        image: digest of the standard image below the disk.
        size: apparent size of the disk in bytes.
        settings: of the sprite.
        checkpoints: oldest first.
        next: number of the checkpoint that is asked for next.
        trashed: when it was put into the trash, in milliseconds since 1970; None: it is not there.
        bare: its log has begun, and no disk has come into it: its host was lost in the first seconds of its life.
    """

    volume: UUID
    lineage: UUID
    head: CommitName
    put_id: bytes
    time: int
    image: str
    size: int
    settings: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    next: int
    trashed: int | None
    bare: bool

    def record(self) -> Record:
        """What a node keeps of it that has not fetched the disk."""
        checkpoints = tuple(
            Kept(
                id=each.id,
                time=each.time,
                comment=each.comment,
                auto=each.auto,
                image=each.image,
                sequence=None,
                durable=True,
            )
            for each in self.checkpoints
        )
        return Record(
            volume=self.volume,
            lineage=self.lineage,
            size=self.size,
            image=self.image,
            # Of a seal that nobody followed up, too: its writer has written nothing.
            epoch=self.head.epoch,
            number=self.head.number,
            snapshot_time=self.time,
            settings=settings_hash(self.settings),
            checkpoints=checkpoints,
            next=self.next,
        )


@dataclass(frozen=True)
class Unreadable:
    """A volume that cannot be recovered as it is.

    Attributes:
        key: of the object that says that there is one.
        error: what is wrong, with the object's key: damage, or a later version's format.
    """

    key: str
    error: BallpointError


async def inventory(store: Store) -> AsyncIterator[Found | Unreadable]:
    """All volumes of a store, by the order of their lineages, whatever is wrong with some of them.

    Those that are closed for good, and those of which nothing was ever committed, are none. It takes one request for a
    thousand volumes, and three or more for each, 64 volumes at once.

    Raises:
        UnavailableError: the store, in a way that it may repair.
    """
    after = ""
    while page := await store.list(LINEAGES, after=after):
        found: dict[str, Found | Unreadable] = {}

        async def look(key: str, found: dict[str, Found | Unreadable] = found) -> None:
            try:
                volume = await _look(store, key)
            except (CorruptError, ConflictError) as error:
                found[key] = Unreadable(key, error)
            else:
                if volume is not None:
                    found[key] = volume

        await for_each((item.key for item in page), look, at_once=AT_ONCE)
        for item in page:
            if item.key in found:
                yield found[item.key]
        if len(page) < LIST_MAX:
            break
        after = page[-1].key


async def _look(store: Store, key: str) -> Found | None:
    member = parse_member(key)
    view = await read(store, member.volume)
    if view is None or view.dead:
        return None
    if view.lineage != member.lineage:
        raise CorruptError(
            f"{key} says that volume {member.volume} is of lineage {member.lineage}, and its log that it is of"
            f" {view.lineage}",
            hint="somebody else has written into this place",
        )
    return _found(view)


async def find(store: Store, volume: UUID) -> Found | None:
    """A volume, as its log says; None where it has none, is closed for good, or has no disk yet.

    Raises:
        CorruptError, ConflictError, UnavailableError: as `read`.
    """
    view = await read(store, volume)
    found = None if view is None or view.dead else _found(view)
    return None if found is None or found.bare else found


def _found(view: View) -> Found | None:
    if view.state is None:
        return None
    return Found(
        volume=view.head.volume,
        lineage=view.lineage,
        head=view.head,
        put_id=view.put_id,
        time=view.time,
        image=view.state.image,
        size=view.state.size,
        settings=view.settings,
        checkpoints=view.state.checkpoints,
        next=view.state.next,
        trashed=view.trashed,
        # A fork begins with a map of its source's, which is in a pack of that.
        bare=view.disk == CommitName(view.head.volume, 1, 1) and view.state.root.volume == view.head.volume,
    )
