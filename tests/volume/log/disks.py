"""Volumes that tests write, by the log's own code, and read back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ballpoint.core.errors import NotFoundError
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import BLOCK_BYTES, Blob, Inline, Reference, decode_block, encode_blob
from ballpoint.volume.log.commit import Checkpoint, Kind, State
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.log import View, Writer, missing
from ballpoint.volume.log.mapped import load_map, load_pages, open_map, store_map, stored_inline
from ballpoint.volume.log.pack import stored_range
from ballpoint.volume.log.packing import Packing

Blocks = dict[int, bytes]


def block(number: int) -> bytes:
    """A block's content, that no other number has."""
    return number.to_bytes(8, "big") * (BLOCK_BYTES // 8)


def noise(number: int) -> bytes:
    """A block's content that no compression makes smaller."""
    return b"".join(hash((number, word)).to_bytes(8, "big", signed=True) for word in range(BLOCK_BYTES // 8))


class Disk:
    """A volume and its writer.

    Attributes:
        between: what is done after the packs of a `data` commit are stored.
    """

    def __init__(self, store: Store, writer: Writer) -> None:
        self.store = store
        self.writer = writer
        self.between: Callable[[], Awaitable[None]] | None = None

    async def write(self, blocks: Mapping[int, bytes | None], *, inline: bool = False) -> CommitName:
        """One `data` commit; None is a hole."""
        packing = Packing(self.store, self.writer.new_pack)
        changes: list[tuple[int, Reference | Blob | None]] = []
        for number, content in sorted(blocks.items()):
            blob = None if content is None else encode_blob(content)
            changes.append((number, blob if blob is None or inline else await packing.add(blob, "block")))
        await packing.flush()
        if self.between is not None:
            await self.between()
        return await self.writer.commit("data", blocks=changes, closed=packing.closed)

    async def complete(self, kind: Kind = "root", **changed: Any) -> CommitName:
        """One commit that names everything, with the disk as it is.

        Args:
            changed: of the state.
        """
        packing = Packing(self.store, self.writer.new_pack)
        view = self.writer.view
        root = await store_map(await load_map(self.store, view), view, packing.add)
        await packing.flush()
        state = {**self.state(), "root": root, **changed}
        return await self.writer.commit(kind, closed=packing.closed, state=State(**state))

    async def checkpoint(self, id: str) -> Checkpoint:
        """A complete commit, and one that names its root as a checkpoint."""
        await self.complete()
        assert self.writer.view.state is not None
        made = Checkpoint(id=id, time=0, comment="", auto=False, image="none", root=self.writer.view.state.root)
        await self.complete("checkpoint", checkpoints=(*self.writer.view.state.checkpoints, made))
        return made

    async def forget(self, id: str) -> None:
        assert self.writer.view.state is not None
        left = tuple(each for each in self.writer.view.state.checkpoints if each.id != id)
        await self.complete("forget", checkpoints=left)

    def state(self) -> dict[str, Any]:
        """The newest that the log names, and the count of the next commit."""
        view = self.writer.view
        assert view.state is not None
        fields = {name: getattr(view.state, name) for name in view.state.__struct_fields__}
        return {**fields, "settings": view.settings, "trashed": view.trashed, "count": view.count + 1}


async def contents(store: Store, view: View, root: Reference | None = None) -> Blocks:
    """All blocks of a volume that are not holes, or of the checkpoint whose map is at `root`."""
    disk = await load_map(store, view) if root is None else await open_map(store, view, root)
    await load_pages(store, view, disk, [number * 1024 for number in disk.pages])
    numbers = {*disk.pages, *disk.dirty()}
    return {
        change.block: await _content(store, view, change.place, change.block)
        for number in sorted(numbers)
        for change in disk.page(number)
    }


async def _content(store: Store, view: View, place: Reference | Inline | None, number: int) -> bytes:
    assert place is not None
    if isinstance(place, Inline):
        return decode_block(stored_inline(view)(place), place, number)
    first, length = stored_range(place.piece)
    try:
        stored = await store.get(place.holder.key, first, length)
    except NotFoundError as error:
        raise await missing(store, view, place.holder, f"block {number}") from error
    return decode_block(stored, place, number)
