"""Whether all is there that the volumes of a store refer to, and as it was written."""

from __future__ import annotations

import asyncio
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final
from uuid import UUID

from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, NotFoundError
from ballpoint.core.tasks import for_each
from ballpoint.store.store import Store, list_all
from ballpoint.volume.log.blob import Inline, Piece, Reference, decode_blob, decode_block, describe_all
from ballpoint.volume.log.changes import ENTRY, PAGE_BLOCKS
from ballpoint.volume.log.commit import decode_commit
from ballpoint.volume.log.envelope import DIGEST_BYTES
from ballpoint.volume.log.keys import MemberName, PackName, commits_prefix, packs_prefix, parse_commit, parse_pack
from ballpoint.volume.log.log import OutdatedError, View, missing, read
from ballpoint.volume.log.mapped import PackGoneError, fetch
from ballpoint.volume.log.member import decode_member
from ballpoint.volume.log.pack import Pack, decode_pack, stored_range
from ballpoint.volume.log.page import ROOT_LIMIT, describe_page, read_page, read_root
from ballpoint.volume.log.survey import lineages, members, volumes

# Packs that are read whole at a time: of 8 MiB at most.
_AT_ONCE: Final = 4
_PAGES: Final = 16
# A pack's blob in memory: offset, length, flags, hash.
_ROW: Final = ENTRY.size - 4


@dataclass(frozen=True)
class Damage:
    """Something that is lost, damaged, or of a later version.

    Attributes:
        volume: that needs it; None where only its lineage is known.
        checkpoint: of the volume, that needs it; "" is the disk itself, None what is no map.
        key: of the object, or what it begins with where one of a volume's commits is damaged; "" of a foreign one.
        what: the whole sentence: the object, what is wrong with it, and the blocks that cannot be read.
    """

    volume: UUID | None
    checkpoint: str | None
    key: str
    what: str


@dataclass
class Checked:
    """What was looked at.

    Attributes:
        volumes: that are not closed for good; checkpoints: of those.
        unborn: members without a log yet.
        blocks: references to blocks, those of a page once that many maps share.
        packs: that are referred to; whole: of those, read and compared byte by byte; size: bytes of these.
        damages: how many were found.
    """

    volumes: int = 0
    checkpoints: int = 0
    unborn: int = 0
    blocks: int = 0
    packs: int = 0
    whole: int = 0
    size: int = 0
    damages: int = 0


async def check(
    store: Store,
    found: Callable[[Damage], None],
    *,
    lineage: UUID | None = None,
    whole: bool = False,
    sample: float = 0.0,
    seed: int = 0,
) -> Checked:
    """Verify all commits that are needed, the maps of all volumes and checkpoints, and that all they refer to is there.

    It changes nothing, goes on after damage, and may run while volumes are written. It takes 30 bytes of memory for
    each block of the packs of one lineage that are read whole.

    Args:
        found: is told of each damage at once.
        lineage: the one that is looked at; None: all, and volumes whose member is lost.
        whole: also read every pack that is referred to, and check every blob by its hash; and every commit.
        sample: else, the share of packs, 0 to 1, for which that is done.
        seed: which packs these are.

    Raises:
        UnavailableError: the store does not answer.
    """
    checked = Checked()
    told: set[tuple[UUID | None, str | None, str]] = set()

    def tell(damage: Damage) -> None:
        if (which := (damage.volume, damage.checkpoint, damage.what)) not in told:
            told.add(which)
            checked.damages += 1
            found(damage)

    def foreign(error: CorruptError) -> None:
        tell(Damage(None, None, "", error.message))

    chance = random.Random(seed)
    known: set[UUID] = set()
    for each in [lineage] if lineage is not None else [each async for each in lineages(store, foreign)]:
        await _Lineage(store, each, 1.0 if whole else sample, chance, checked, tell).run(whole, known)
    if lineage is None:
        async for volume in volumes(store, foreign):
            if volume not in known:
                await _check_stray(store, volume, tell)
    return checked


async def _check_stray(store: Store, volume: UUID, tell: Callable[[Damage], None]) -> None:
    """Look at a volume that is no member: closed for good, its log never begun, or its member is lost."""
    try:
        view = await read(store, volume)
    except (CorruptError, ConflictError) as error:
        tell(Damage(volume, None, commits_prefix(volume), error.message))
        return
    if view is not None and not view.dead:
        key = MemberName(view.lineage, volume).key
        tell(Damage(volume, None, key, f"{key} is not there; packs that volume {volume} refers to may be collected"))


class _Table:
    """The blobs of a pack that is as it was written."""

    def __init__(self, pack: Pack) -> None:
        self._offsets = array("I", (entry.offset for entry in pack.entries))
        self._rows = b"".join(_row(entry.piece) for entry in pack.entries)

    def __contains__(self, piece: Piece) -> bool:
        at = bisect_left(self._offsets, piece.offset)
        return self._rows[at * _ROW : (at + 1) * _ROW] == _row(piece)


def _row(piece: Piece) -> bytes:
    return ENTRY.pack(0, piece.offset, piece.length, 0, piece.flags, piece.hash)[4:]


@dataclass
class _Known:
    """What is known of a pack.

    Attributes:
        size: of the object.
        table: of one that was read whole and is as it was written.
        damage: what is wrong with it, if it is not: then each blob is looked at by itself.
    """

    size: int
    table: _Table | None = None
    damage: str | None = None


class _Problems:
    """What is wrong with what a map refers to, by object."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str], list[int]] = {}
        self._others: list[tuple[str, str]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Keys of objects, and what is wrong, in whole sentences."""
        yield from self._others
        for (key, what), blocks in self._blocks.items():
            yield key, f"{key} {what}; {describe_all(sorted(blocks))} cannot be read"

    def add(self, key: str, what: str) -> None:
        self._count += 1
        self._others.append((key, f"{key} {what}"))

    def add_error(self, key: str, error: BallpointError) -> None:
        self._count += 1
        self._others.append((key, error.message))

    def add_block(self, key: str, what: str, block: int) -> None:
        self._count += 1
        self._blocks.setdefault((key, what), []).append(block)


class _Lineage:
    def __init__(
        self,
        store: Store,
        lineage: UUID,
        share: float,
        chance: random.Random,
        checked: Checked,
        tell: Callable[[Damage], None],
    ) -> None:
        self._store = store
        self._lineage = lineage
        self._share = share
        self._chance = chance
        self._checked = checked
        self._tell = tell
        self._packs: dict[PackName, _Known | None] = {}  # None: it is not there
        self._sizes: dict[UUID, dict[PackName, int]] = {}
        self._good: set[Reference] = set()  # pages, and roots, below which all is well

    async def run(self, commits: bool, known: set[UUID]) -> None:
        for name in await members(self._store, self._lineage, self._foreign):
            known.add(name.volume)
            await self._member(name)
            await self._volume(name.volume)
            if commits:
                await self._commits(name.volume)

    def _foreign(self, error: CorruptError) -> None:
        self._tell(Damage(None, None, "", error.message))

    async def _member(self, name: MemberName) -> None:
        try:
            decode_member(await self._store.get(name.key), name)
        except NotFoundError:
            pass  # removed meanwhile
        except (CorruptError, ConflictError) as error:
            self._tell(Damage(name.volume, None, name.key, error.message))

    async def _commits(self, volume: UUID) -> None:
        """Look at all commits of a volume; those that a reader needs were found to be whole or not already."""
        for item in await list_all(self._store, commits_prefix(volume)):
            try:
                name = parse_commit(item.key)
                decode_commit(await self._store.get(item.key), name)
            except NotFoundError:
                pass  # trimmed meanwhile
            except (CorruptError, ConflictError) as error:
                self._tell(Damage(volume, None, item.key, error.message))

    async def _volume(self, volume: UUID) -> None:
        while True:
            try:
                view = await read(self._store, volume)
                found = [] if view is None else await self._view(view)
            except OutdatedError:
                continue
            except (CorruptError, ConflictError) as error:
                found = [Damage(volume, None, commits_prefix(volume), error.message)]
                view = None
            break
        for damage in found:
            self._tell(damage)
        if view is None:
            self._checked.unborn += not found
        elif view.state is not None:
            self._checked.volumes += 1
            self._checked.checkpoints += len(view.state.checkpoints)

    async def _view(self, view: View) -> list[Damage]:
        if view.state is None:
            return []
        damages = await self._changes(view)
        for id, root in [("", view.state.root), *((each.id, each.root) for each in view.state.checkpoints)]:
            damages += [Damage(view.head.volume, id, key, what) for key, what in await self._map(view, root)]
        return damages

    async def _changes(self, view: View) -> list[Damage]:
        """Look at the blocks that changed since the newest commit that names everything."""
        problems = _Problems()
        for changes in view.changes:
            await self._know(view, changes.packs)
            for block, place in changes:
                if isinstance(place, Inline):
                    try:
                        decode_block(changes.stored(place.piece), place, block)
                    except CorruptError as error:
                        problems.add_error(changes.commit.key, error)
                elif place is not None:
                    await self._block(place, block, problems)
        return [Damage(view.head.volume, "", key, what) for key, what in problems]

    async def _map(self, view: View, root: Reference) -> list[tuple[str, str]]:
        """Look at a map, all its pages, and what they refer to; the objects that are damaged, and how."""
        if root in self._good:
            return []
        problems = _Problems()
        pages: dict[Reference, int] = {}

        def use_root(at: Reference, stored: memoryview) -> None:
            pages.update((page, number) for number, page in read_root(stored, at).items())

        await self._read(view, {root: "the whole disk"}, use_root, problems)
        left = iter([page for page in pages if page not in self._good])
        while some := list(islice(left, _PAGES)):
            await self._some_pages(view, {page: pages[page] for page in some}, problems)
        if not problems:
            self._good.add(root)
        return list(problems)

    async def _some_pages(self, view: View, pages: dict[Reference, int], problems: _Problems) -> None:
        places: dict[Reference, list[tuple[int, Reference]]] = {}

        def use(at: Reference, stored: memoryview) -> None:
            first, page = pages[at] * PAGE_BLOCKS, read_page(stored, at, pages[at])
            places[at] = [(first + index, place) for index, place in page if isinstance(place, Reference)]

        await self._read(view, {page: describe_page(number) for page, number in pages.items()}, use, problems)
        await self._know(view, {place.holder for each in places.values() for _, place in each})
        for page, blocks in places.items():
            before = len(problems)
            for block, place in blocks:
                await self._block(place, block, problems)
            if len(problems) == before:
                self._good.add(page)

    async def _read(
        self,
        view: View,
        blobs: dict[Reference, str],
        use: Callable[[Reference, memoryview], None],
        problems: _Problems,
    ) -> None:
        """Read roots or pages as `fetch` does, going on after damage.

        Args:
            blobs: with what cannot be read without them.
        """
        await self._know(view, {blob.holder for blob in blobs})
        there = []
        for blob, touched in blobs.items():
            if problem := self._problem(blob):
                problems.add(blob.holder.key, f"{problem}; {touched} cannot be read")
            else:
                there.append(blob)

        def use_what_is_whole(at: Reference, stored: memoryview) -> None:
            try:
                use(at, stored)
            except CorruptError as error:
                problems.add_error(at.holder.key, error)

        try:
            await fetch(self._store, there, use_what_is_whole)
        except PackGoneError as gone:
            raise await missing(self._store, view, gone.pack, f"volume {view.head.volume}") from gone

    async def _block(self, place: Reference, block: int, problems: _Problems) -> None:
        self._checked.blocks += 1
        if problem := self._problem(place):
            problems.add_block(place.holder.key, problem, block)
            return
        known = self._packs[place.holder]
        if known is not None and known.damage:
            start, length = stored_range(place.piece)
            try:
                decode_block(await self._store.get(place.holder.key, start, length), place, block)
            except NotFoundError:
                problems.add_block(place.holder.key, "is not there", block)
            except CorruptError:
                problems.add_block(place.holder.key, "is not what was written", block)

    def _problem(self, blob: Reference) -> str | None:
        """Why a blob cannot be there, by what is known of its pack."""
        known = self._packs[blob.holder]
        if known is None:
            return "is not there"
        start, length = stored_range(blob.piece)
        if start + length > known.size - DIGEST_BYTES:
            return f"has {known.size} bytes, and ends before the blob at {blob.offset} of its body"
        if known.table is not None and blob.piece not in known.table:
            return f"has no such blob at {blob.offset} of its body"
        return None

    async def _know(self, view: View, packs: Iterable[PackName]) -> None:
        """Find out what there is of packs that `view` refers to.

        Raises:
            OutdatedError: one is gone, because the log has gone on.
        """
        new = [pack for pack in packs if pack not in self._packs]
        for pack in new:
            size = await self._size(pack)
            if size is None and isinstance(error := await missing(self._store, view, pack, "it"), OutdatedError):
                raise error
            self._packs[pack] = None if size is None else _Known(size)
            self._checked.packs += 1
        chosen = [pack for pack in new if self._packs[pack] is not None and self._chance.random() < self._share]
        try:
            await for_each(chosen, self._read_whole, at_once=_AT_ONCE)
        except PackGoneError as gone:
            raise await missing(self._store, view, gone.pack, f"volume {view.head.volume}") from gone

    async def _size(self, pack: PackName) -> int | None:
        """The size of a pack's object; None: it is not there."""
        if pack not in self._sizes.get(pack.volume, {}):
            items = await list_all(self._store, packs_prefix(pack.volume))
            self._sizes[pack.volume] = {parse_pack(item.key): item.size for item in items}
        return self._sizes[pack.volume].get(pack)

    async def _read_whole(self, name: PackName) -> None:
        known = self._packs[name]
        assert known is not None
        try:
            data = await self._store.get(name.key)
            known.table = await asyncio.to_thread(_verify, data, name)
        except NotFoundError as error:
            raise PackGoneError(name) from error
        except (CorruptError, ConflictError) as error:
            known.damage = error.message
            self._tell(Damage(name.volume, None, name.key, known.damage))
            return
        self._checked.whole += 1
        self._checked.size += len(data)


def _verify(data: bytes, name: PackName) -> _Table:
    """The blobs of a pack, each of which was looked into."""
    pack = decode_pack(data, name)
    for entry in pack.entries:
        decode_blob(pack.stored(entry.piece), entry.piece, limit=ROOT_LIMIT, key=name.key, touched=f"a {entry.kind}")
    return _Table(pack)
