"""Packs of one upload, stored one after the other as they fill."""

from __future__ import annotations

from collections.abc import Callable

from ballpoint.store.store import Store
from ballpoint.volume.log.blob import Blob, Reference
from ballpoint.volume.log.commit import Closed
from ballpoint.volume.log.pack import Kind, PackBuilder


class Packing:
    """What is to be stored before a commit. A crash leaves packs that nothing refers to.

    Attributes:
        closed: the last pack that was begun, for the commit; None while there is none.
    """

    def __init__(self, store: Store, new_pack: Callable[[], PackBuilder]) -> None:
        """
        Args:
            new_pack: as `Writer.new_pack`.
        """
        self._store = store
        self._new_pack = new_pack
        self._filling: PackBuilder | None = None
        self.closed: Closed | None = None

    async def add(self, blob: Blob, kind: Kind) -> Reference:
        """Put a blob into a pack; where it will be, once `flush` has returned. Errors as `Store.put`."""
        if self._filling is not None and not self._filling.fits(blob):
            await self.flush()
        if self._filling is None:
            self._filling = self._new_pack()
            self.closed = Closed(self._filling.name.epoch, self._filling.name.upload)
        return self._filling.add(blob, kind)

    async def flush(self) -> None:
        """Store what is not stored yet. Idempotent. Errors as `Store.put`; then it may be called again."""
        if self._filling is not None:
            await self._send(self._filling)
            self._filling = None

    async def _send(self, pack: PackBuilder) -> None:
        """Store a full pack; whoever stores several at once begins it here."""
        await self._store.put(pack.name.key, pack.close())
