"""The map of a disk: where each block is.

It does no reading of its own: whoever asks for blocks first loads what is `missing`, and stores what is `dirty`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from ballpoint.core.errors import InternalError
from ballpoint.volume.log.blob import Inline, Reference, hash_of
from ballpoint.volume.log.changes import BLOCKS_MAX, PAGE_BLOCKS, Change, Changes
from ballpoint.volume.log.keys import CommitName, PackName
from ballpoint.volume.log.page import Page, encode_root, read_page, read_root


class Map:
    """Where the blocks of a disk are.

    A page is dirty from its first change until it was stored; a clean one that is loaded takes 28 KiB, and can be
    let go of at any time.
    """

    def __init__(self, pages: Mapping[int, Reference] | None = None) -> None:
        """
        Args:
            pages: where the pages are stored, by their numbers; none for a disk of holes.
        """
        self._stored = dict(pages or {})
        self._loaded: dict[int, Page] = {}
        self._dirty: set[int] = set()
        self._encoded: dict[int, bytes] = {}  # hashes of contents that are as the page is now

    @classmethod
    def open(cls, stored: bytes | memoryview, root: Reference) -> Map:
        """The map whose root was read, with none of its pages.

        Args:
            stored: what was read where `root` says.

        Raises:
            CorruptError: it is not what was written.
        """
        return cls(read_root(stored, root))

    @property
    def pages(self) -> Mapping[int, Reference]:
        """Where the pages were last stored, by their numbers."""
        return MappingProxyType(self._stored)

    def missing(self, blocks: Iterable[int]) -> dict[int, Reference]:
        """The pages that must be loaded before `blocks` can be looked up or changed, and where they are stored."""
        numbers = dict.fromkeys(_page_of(block) for block in blocks)
        return {number: self._stored[number] for number in numbers if self._is_missing(number)}

    def load(self, number: int, stored: bytes | memoryview) -> None:
        """Load a page. One that is loaded already stays as it is.

        Args:
            stored: what was read where `pages` says.

        Raises:
            CorruptError: it is not what was written; nothing was loaded.
        """
        if not self._is_missing(number):
            return
        self._loaded[number] = read_page(stored, self._stored[number], number)

    def __getitem__(self, block: int) -> Reference | Inline | None:
        """Where a block is; None: it is a hole.

        Raises:
            InternalError: its page is missing.
        """
        page = self._page(_page_of(block))
        return None if page is None else page[block % PAGE_BLOCKS]

    def __setitem__(self, block: int, place: Reference | Inline | None) -> None:
        number = _page_of(block)
        page = self._page(number)
        if page is None:
            page = self._loaded[number] = Page()
        page[block % PAGE_BLOCKS] = place
        self._dirty.add(number)
        self._encoded.pop(number, None)

    def apply(self, changes: Changes) -> None:
        """Make the changes of a commit.

        Raises:
            InternalError: a page is missing; nothing was changed.
        """
        if missing := self.missing(changes.blocks()):
            raise InternalError(f"pages of a map were not loaded before their change: {sorted(missing)[:5]}")
        for block, place in changes:
            self[block] = place

    def page(self, number: int) -> Iterator[Change]:
        """The blocks of a page that are not holes, and where they are.

        Raises:
            InternalError: it is missing.
        """
        page = self._page(number)
        if page is not None:
            yield from (Change(number * PAGE_BLOCKS + index, place) for index, place in page)

    def holders(self, number: int) -> set[PackName | CommitName]:
        """The packs and commits that hold blocks of a page.

        Raises:
            InternalError: it is missing.
        """
        page = self._page(number)
        return set() if page is None else page.holders()

    def dirty(self) -> list[int]:
        """The pages that are not stored as they are now, by their numbers."""
        return sorted(self._dirty)

    def inline(self) -> Iterator[Change]:
        """The blocks that are inline in commits; before their pages are stored they must be moved into packs."""
        for number in self.dirty():
            if (page := self._page(number)) is not None:
                yield from (Change(number * PAGE_BLOCKS + index, place) for index, place in page.inline())

    def encode_page(self, number: int) -> bytes:
        """The content of a page, to be stored as a blob; empty if there are only holes: then it has no blob.

        Raises:
            InternalError: it is missing, or a block is inline in a commit.
        """
        page = self._page(number)
        content = b"" if page is None else page.encode()
        self._encoded[number] = hash_of(content)
        return content

    def mark_stored(self, number: int, at: Reference | None) -> None:
        """Say where the content is stored that `encode_page` gave; None: it was empty.

        Raises:
            InternalError: that is not what the page has now; it stays dirty.
        """
        if self._encoded.get(number) != (hash_of(b"") if at is None else at.hash):
            raise InternalError(f"page {number} of a map was stored otherwise than it is")
        del self._encoded[number]
        if at is None:
            self._stored.pop(number, None)
            self._loaded.pop(number, None)
        else:
            self._stored[number] = at
        self._dirty.discard(number)

    def encode_root(self) -> bytes:
        """The content of the root, to be stored as a blob.

        Raises:
            InternalError: pages are dirty, so that it would be an older map's.
        """
        if self._dirty:
            raise InternalError(f"a map's root was asked for before its pages {self.dirty()[:5]} were stored")
        return encode_root(self._stored)

    def evict(self) -> None:
        """Let go of all pages that are stored as they are."""
        self._loaded = {number: page for number, page in self._loaded.items() if number in self._dirty}

    def _is_missing(self, number: int) -> bool:
        return number in self._stored and number not in self._loaded

    def _page(self, number: int) -> Page | None:
        """A page; None: it is empty, and nobody has made it."""
        if self._is_missing(number):
            raise InternalError(f"page {number} of a map was not loaded before its use")
        return self._loaded.get(number)


def _page_of(block: int) -> int:
    if not 0 <= block < BLOCKS_MAX:
        raise InternalError(f"no disk has a block {block}")
    return block // PAGE_BLOCKS
