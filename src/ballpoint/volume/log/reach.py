"""Which packs maps reach."""

from __future__ import annotations

from typing import Final

from ballpoint.store.store import Store
from ballpoint.volume.log.blob import Reference
from ballpoint.volume.log.keys import PackName
from ballpoint.volume.log.log import View
from ballpoint.volume.log.mapped import fetch
from ballpoint.volume.log.page import read_page_packs, read_root

_OFFSET_BYTES: Final = 4


class Reach:
    """The packs that some maps reach. A page, or root, that many of them share is read once.

    It takes about 100 bytes for each pack and each page. A pack is known by its id, which no other has.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs: set[bytes] = set()
        self._read: set[bytes] = set()

    def __contains__(self, pack: PackName) -> bool:
        return pack.id in self._packs

    def __ge__(self, other: Reach) -> bool:
        """Whether it reaches every pack that `other` does."""
        return self._packs >= other._packs

    async def add_volume(self, view: View) -> None:
        """Add what a volume reaches: its disk and its checkpoints. Nothing, where it is closed for good.

        Raises:
            PackGoneError: the log has gone on, or a pack is lost; what could be read was added.
            CorruptError: something is damaged.
        """
        if view.state is None:
            return
        for changes in view.changes:
            self._packs.update(pack.id for pack in changes.packs)
        for root in (view.state.root, *(checkpoint.root for checkpoint in view.state.checkpoints)):
            await self.add(root)

    async def add(self, root: Reference) -> None:
        """Add what one map reaches. Errors as `add_volume`."""
        if _place(root) in self._read:
            return
        self._packs.add(root.id)
        pages: dict[Reference, int] = {}

        def use_root(at: Reference, stored: memoryview) -> None:
            for number, page in read_root(stored, at).items():
                self._packs.add(page.id)
                if _place(page) not in self._read:
                    pages[page] = number

        def use_page(at: Reference, stored: memoryview) -> None:
            self._packs.update(pack.id for pack in read_page_packs(stored, at, pages[at]))
            self._read.add(_place(at))

        await fetch(self._store, [root], use_root)
        await fetch(self._store, pages, use_page)
        # Not before: a map counts as read when all of it was.
        self._read.add(_place(root))


def _place(blob: Reference) -> bytes:
    return blob.id + blob.offset.to_bytes(_OFFSET_BYTES, "little")
