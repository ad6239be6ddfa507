"""Maps read from the store, and stored in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final
from uuid import UUID

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import InternalError, InvalidError, NotFoundError
from ballpoint.core.tasks import for_each
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import Blob, Inline, Reference, encode_blob
from ballpoint.volume.log.changes import Changes
from ballpoint.volume.log.envelope import damaged
from ballpoint.volume.log.keys import CommitName, PackName
from ballpoint.volume.log.log import OutdatedError, View, missing, read
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.pack import Kind, stored_range
from ballpoint.volume.log.page import describe_page

_AT_ONCE: Final = 16
# Blobs that lie so near to each other are read by one request. They are looked into before the loop goes on, so it is
# not many: eight full pages take some milliseconds.
_GAP: Final = 16 * 1024
_REQUEST_BYTES: Final = 256 * 1024

Add = Callable[[Blob, Kind], Awaitable[Reference]]


class PackGoneError(NotFoundError):
    """A pack is not there: the log has gone on, or it is lost (`log.missing` finds out).

    Attributes:
        pack: which one.
    """

    def __init__(self, pack: PackName) -> None:
        super().__init__(f"{pack.key} is not there")
        self.pack = pack


async def fetch(
    store: Store, blobs: Iterable[Reference], use: Callable[[Reference, memoryview], None], *, at_once: int = _AT_ONCE
) -> None:
    """Read small blobs, by few requests where they lie side by side.

    Args:
        use: is called with each and what is stored there, not looked into yet; in any order. One that is asked for
            twice is given once.
        at_once: requests at a time, of 256 KiB each (or one blob, if that is larger).

    Raises:
        PackGoneError: a pack is not there.
        CorruptError: one ends before a blob.
    """

    async def get(batch: list[Reference]) -> None:
        pack, start = batch[0].holder, batch[0].offset
        first, _ = stored_range(batch[0].piece)
        try:
            data = memoryview(await store.get(pack.key, first, batch[-1].offset + batch[-1].length - start))
        except NotFoundError as error:
            raise PackGoneError(pack) from error
        except InvalidError as error:
            raise damaged(pack.key, f"it ends before the blob at {start} of its body") from error
        for each in batch:
            use(each, data[each.offset - start : each.offset - start + each.length])

    await for_each(_batches(blobs), get, at_once=at_once)


def _batches(blobs: Iterable[Reference]) -> Iterator[list[Reference]]:
    """Blobs by the requests that read them, each batch in the order of its pack."""
    batch: list[Reference] = []
    for each in sorted(set(blobs), key=lambda blob: (blob.holder, blob.offset)):
        if batch:
            first, last = batch[0], batch[-1]
            near = 0 <= each.offset - (last.offset + last.length) <= _GAP
            small = each.offset + each.length - first.offset <= _REQUEST_BYTES
            if each.holder != first.holder or not near or not small:
                yield batch
                batch = []
        batch.append(each)
    if batch:
        yield batch


async def open_map(store: Store, view: View, root: Reference) -> Map:
    """The map whose root is at `root`, with none of its pages: of the volume or of one of its checkpoints.

    Raises:
        OutdatedError: `view`'s log has gone on, and the root is not there any more.
        CorruptError: the root is lost or damaged.
    """
    opened: list[Map] = []
    try:
        await fetch(store, [root], lambda at, stored: opened.append(Map.open(stored, at)))
    except PackGoneError as gone:
        raise await missing(store, view, gone.pack, "the whole disk") from gone
    return opened[0]


async def load_pages(store: Store, view: View, disk: Map, blocks: Iterable[int]) -> None:
    """Load the pages of `blocks` that a map lacks, so that they can be looked up and changed.

    Args:
        view: of the volume whose map it is, or whose checkpoint's.

    Raises:
        OutdatedError: its log has gone on, and a page is not there any more.
        CorruptError: a page is lost or damaged; others may have been loaded.
    """
    numbers = {at: number for number, at in disk.missing(blocks).items()}
    try:
        await fetch(store, numbers, lambda at, stored: disk.load(numbers[at], stored))
    except PackGoneError as gone:
        lost = sorted(number for at, number in numbers.items() if at.holder == gone.pack)
        raise await missing(store, view, gone.pack, ", ".join(describe_page(number) for number in lost)) from gone


async def load_map(store: Store, view: View) -> Map:
    """The map of a volume as of `view`: what its newest complete commit names, and all changes since.

    The pages that changed are loaded. Blocks that are inline in commits are found by `stored_inline`.

    Raises:
        OutdatedError: the log has gone on, and something is not there any more.
        CorruptError: something is lost or damaged.
    """
    if view.state is None:
        raise InternalError(f"volume {view.head.volume} is closed for good, and has no map")
    disk = await open_map(store, view, view.state.root)
    for changes in view.changes:
        await load_pages(store, view, disk, changes.blocks())
        disk.apply(changes)
        await _others_first()
    return disk


async def load_places(store: Store, view: View, blocks: Iterable[int]) -> dict[int, Reference | Inline | None]:
    """Where some blocks of a volume are as of `view`; None: it is a hole. Only their pages are read.

    Raises:
        OutdatedError, CorruptError: as `load_map`.
    """
    if view.state is None:
        raise InternalError(f"volume {view.head.volume} is closed for good, and has no map")
    places: dict[int, Reference | Inline | None] = {}
    left = set(blocks)
    for changes in reversed(view.changes):
        found = [change for block in left if (change := changes.find(block)) is not None]
        places.update(found)
        left.difference_update(change.block for change in found)
    if left:
        disk = await open_map(store, view, view.state.root)
        await load_pages(store, view, disk, left)
        places.update((block, disk[block]) for block in left)
    return places


async def _others_first() -> None:
    """Let whatever else waits for the event loop go on before a piece of work that takes it for milliseconds.

    A map of gigabytes takes a hundred times as long, and a thaw, for which all writers of a disk wait, is among those.
    """
    await SYSTEM_CLOCK.sleep(0)


async def read_map(store: Store, volume: UUID) -> tuple[View, Map] | None:
    """A volume and its map, as a reader finds them who is not its writer. None: it has no log, or is closed for good.

    Raises:
        CorruptError: something is lost or damaged.
        ConflictError: something was made by a later version.
    """
    while (view := await read(store, volume)) is not None and not view.dead:
        try:
            return view, await load_map(store, view)
        except OutdatedError:
            continue
    return None


def stored_inline(view: View) -> Callable[[Inline], bytes]:
    """What finds the bytes of blocks that are inline in commits of `view`, not looked into yet."""
    by_commit: Mapping[CommitName, Changes] = {changes.commit: changes for changes in view.changes}
    return lambda place: by_commit[place.holder].stored(place.piece)


async def store_map(disk: Map, view: View, add: Add) -> Reference:
    """Store what is dirty of a map, and its root, for a commit that names everything; where the root is.

    Blocks that are inline in commits of `view` are moved into packs first. A crash leaves packs that nothing refers to.

    Args:
        add: puts a blob into a pack of the volume; the packs are stored by whoever gave it, before the commit.
    """
    inline = stored_inline(view)
    for block, place in list(disk.inline()):
        assert isinstance(place, Inline)
        disk[block] = await add(Blob(inline(place), place.piece.flags, place.piece.hash), "block")
    for number in disk.dirty():
        content = disk.encode_page(number)
        disk.mark_stored(number, await add(encode_blob(content), "page") if content else None)
        await _others_first()
    return await add(encode_blob(disk.encode_root()), "root")
