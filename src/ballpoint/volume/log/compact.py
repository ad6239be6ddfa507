"""Moving what is still asked for out of packs that are mostly dead, so that they can be collected."""

from __future__ import annotations

from array import array
from collections.abc import Set
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from ballpoint.core import steps
from ballpoint.core.errors import InternalError, NotFoundError
from ballpoint.store.store import Store, list_all
from ballpoint.volume.log.blob import Blob, Reference, encode_blob
from ballpoint.volume.log.commit import State
from ballpoint.volume.log.envelope import damaged
from ballpoint.volume.log.keys import PackName, packs_prefix, parse_pack
from ballpoint.volume.log.log import Writer, missing
from ballpoint.volume.log.mapped import PackGoneError, fetch, load_map, store_map
from ballpoint.volume.log.pack import BLOB_OVERHEAD, PACK_OVERHEAD, decode_pack
from ballpoint.volume.log.packing import Packing
from ballpoint.volume.log.page import Page, encode_root, read_page, read_root

DEAD_SHARE: Final = 0.5
MOVED_BYTES: Final = 256 * 1024 * 1024
# So many commits one call makes at most.
COMMITS_MAX: Final = 2
# Pages that are held in memory at a time: of 28 KiB each.
_PAGES: Final = 64

_MOVED = steps.declare("compact: what is moved is stored")
_COMMITTED = steps.declare("compact: the commit is stored")


@dataclass(frozen=True)
class Compacted:
    """What was moved.

    Attributes:
        packs: how many nothing of the volume reaches any more; size: their bytes.
        moved: bytes that were stored anew for that.
    """

    packs: int = 0
    size: int = 0
    moved: int = 0


async def compact(store: Store, writer: Writer, *, dead: float = DEAD_SHARE, limit: int = MOVED_BYTES) -> Compacted:
    """Move blocks of a volume and its checkpoints out of its packs that are mostly dead, by one `compact` commit.

    Only by the volume's writer, and not while it has packs stored whose commit is yet to come: this one's `closed`
    would make them garbage. A map of the volume that was loaded before is to be loaded anew. Packs of other volumes,
    which a fork shares, stay as they are. It takes 16 bytes of memory for each block, and two packs' bytes. A crash
    leaves packs that nothing refers to.

    Args:
        dead: the share of a pack that nothing of the volume reaches, from which on it is emptied.
        limit: bytes that are moved at most; the next call goes on.

    Raises:
        CorruptError: something that the volume reaches is lost or damaged; nothing was changed.
        OutdatedError: something is not there any more, and another process writes the volume now.
        FencedError, UnknownOutcomeError: as `Writer.commit`.
    """
    if writer.view.changes:
        await writer.recall()
        await _write_root(store, writer)
    try:
        return await _Compaction(store, writer).run(dead, limit)
    except PackGoneError as gone:
        raise await missing(store, writer.view, gone.pack, f"volume {writer.view.head.volume}") from gone


async def _write_root(store: Store, writer: Writer) -> None:
    packing = Packing(store, writer.new_pack)
    root = await store_map(await load_map(store, writer.view), writer.view, packing.add)
    await packing.flush()
    await writer.commit("root", closed=packing.closed, state=msgspec.structs.replace(_state(writer), root=root))


def _state(writer: Writer) -> State:
    """What the next commit names, if nothing changes."""
    view = writer.view
    if view.state is None:
        raise InternalError(f"volume {view.head.volume} is closed for good")
    return msgspec.structs.replace(view.state, settings=view.settings, trashed=view.trashed, count=view.count + 1)


class _Live:
    """Which blobs of a pack are reached, in 8 bytes each."""

    def __init__(self) -> None:
        self._places = array("Q")
        self._known = 0

    def add(self, blob: Reference) -> None:
        self._places.append(blob.offset << 32 | blob.length)
        if len(self._places) > 2 * self._known + 1024:
            self._unite()

    def offsets(self) -> set[int]:
        return {place >> 32 for place in self._places}

    def size(self) -> int:
        """Their bytes."""
        self._unite()
        return sum(place & 0xFFFF_FFFF for place in self._places)

    def object_size(self) -> int:
        """About how large a pack would be that had only those; without what it says of them, a pack of very small
        blobs would always seem to be mostly dead.
        """
        return self.size() + PACK_OVERHEAD + len(self._places) * BLOB_OVERHEAD

    def _unite(self) -> None:
        self._places = array("Q", sorted(set(self._places)))
        self._known = len(self._places)


class _Compaction:
    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._volume = writer.view.head.volume
        self._packing = Packing(store, writer.new_pack)
        self._state = _state(writer)
        self._roots: dict[Reference, dict[int, Reference]] = {}
        self._pages: dict[Reference, int] = {}
        self._live: dict[PackName, _Live] = {}
        # Where those are now that were moved.
        self._blocks: dict[Reference, Reference] = {}
        self._moved_pages: dict[Reference, Reference] = {}

    async def run(self, dead: float, limit: int) -> Compacted:
        await self._read_roots()
        await self._count()
        victims = self._choose(await self._sizes(), dead, limit)
        if not victims:
            return Compacted()
        for pack in victims:
            await self._move_blocks(pack)
        await self._move_pages(victims.keys())
        moved = {root: await self._move_root(root, victims.keys()) for root in self._roots}
        await self._packing.flush()
        steps.reach(_MOVED)
        checkpoints = tuple(msgspec.structs.replace(each, root=moved[each.root]) for each in self._state.checkpoints)
        state = msgspec.structs.replace(self._state, root=moved[self._state.root], checkpoints=checkpoints)
        await self._writer.commit("compact", closed=self._packing.closed, state=state)
        steps.reach(_COMMITTED)
        return Compacted(len(victims), sum(victims.values()), sum(self._live[pack].size() for pack in victims))

    async def _read_roots(self) -> None:
        def use(at: Reference, stored: memoryview) -> None:
            self._roots[at] = read_root(stored, at)
            self._pages.update((page, number) for number, page in self._roots[at].items())

        await fetch(self._store, [self._state.root, *(each.root for each in self._state.checkpoints)], use)

    async def _count(self) -> None:
        """Find out what is reached of the volume's own packs."""

        def count(blob: Reference) -> None:
            if blob.volume == self._volume:
                self._live.setdefault(blob.holder, _Live()).add(blob)

        def use(at: Reference, stored: memoryview) -> None:
            for _, place in read_page(stored, at, self._pages[at]):
                assert isinstance(place, Reference)
                count(place)

        for blob in (*self._roots, *self._pages):
            count(blob)
        await fetch(self._store, self._pages, use)

    async def _sizes(self) -> dict[PackName, int]:
        """The objects' sizes of those packs, in bytes."""
        sizes = {parse_pack(item.key): item.size for item in await list_all(self._store, packs_prefix(self._volume))}
        for pack in self._live.keys() - sizes.keys():
            raise PackGoneError(pack)
        return {pack: sizes[pack] for pack in self._live}

    def _choose(self, sizes: dict[PackName, int], dead: float, limit: int) -> dict[PackName, int]:
        """The packs that are emptied, the deadest first, with their sizes."""
        live = {pack: each.object_size() for pack, each in self._live.items()}
        victims: dict[PackName, int] = {}
        for pack in sorted(sizes, key=lambda pack: live[pack] / sizes[pack]):
            if live[pack] > (1 - dead) * sizes[pack] or live[pack] > limit:
                break
            victims[pack] = sizes[pack]
            limit -= live[pack]
        return victims

    async def _move_blocks(self, name: PackName) -> None:
        try:
            pack = decode_pack(await self._store.get(name.key), name)
        except NotFoundError as error:
            raise PackGoneError(name) from error
        live = self._live[name].offsets()
        for entry in pack.entries:
            if entry.kind == "block" and entry.offset in live:
                blob = Blob(bytes(pack.stored(entry.piece)), entry.flags, entry.hash)
                self._blocks[Reference.to(name, entry.piece)] = await self._packing.add(blob, "block")

    async def _move_pages(self, victims: Set[PackName]) -> None:
        """Store those pages anew that are in packs to be emptied, or refer to blocks of them."""
        left = iter(self._pages)
        while some := list(islice(left, _PAGES)):
            moved: dict[Reference, Page] = {}

            def use(at: Reference, stored: memoryview, moved: dict[Reference, Page] = moved) -> None:
                page = read_page(stored, at, self._pages[at])
                if at.holder in victims or not victims.isdisjoint(page.holders()):
                    moved[at] = page

            await fetch(self._store, some, use)
            for at, page in moved.items():
                for index, place in list(page):
                    if place.holder in victims:
                        assert isinstance(place, Reference)
                        if (there := self._blocks.get(place)) is None:
                            raise damaged(at.holder.key, f"a map page refers to what {place.holder.key} does not have")
                        page[index] = there
                self._moved_pages[at] = await self._packing.add(encode_blob(page.encode()), "page")

    async def _move_root(self, root: Reference, victims: Set[PackName]) -> Reference:
        pages = {number: self._moved_pages.get(page, page) for number, page in self._roots[root].items()}
        if pages == self._roots[root] and root.holder not in victims:
            return root
        return await self._packing.add(encode_blob(encode_root(pages)), "root")
