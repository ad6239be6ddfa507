"""Pages and roots of a map: where 1,024 blocks are, and where the pages are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final
from uuid import UUID

from ballpoint.core.errors import InternalError
from ballpoint.volume.log.blob import Inline, Piece, Reference, decode_blob, describe_blocks
from ballpoint.volume.log.changes import PAGE_BLOCKS, PAGES_MAX
from ballpoint.volume.log.envelope import damaged
from ballpoint.volume.log.keys import NUMBER_MAX, CommitName, PackName

_COUNT: Final = struct.Struct("<H")
# Volume, epoch, upload, id.
PACK: Final = struct.Struct("<16sQQ16s")
# Offset, length, pack, flags, hash: an entry of a commit without its block.
BLOCK: Final = struct.Struct("<IIHH16s")
# Page number, pack, offset, length, flags, hash.
PAGE: Final = struct.Struct("<IHIIH16s")
_BITS: Final = PAGE_BLOCKS // 8

PAGE_LIMIT: Final = _COUNT.size + PAGE_BLOCKS * (PACK.size + BLOCK.size) + _BITS
ROOT_LIMIT: Final = _COUNT.size + PAGES_MAX * (PACK.size + PAGE.size)

_HOLE: Final = bytes(BLOCK.size)
# Who holds a block, in memory: whether it is a pack, and its name, or the commit's with zeros behind it.
_HOLDER: Final = struct.Struct("<B16sQQ16s")
_HOLDERS_MAX: Final = 2 * PAGE_BLOCKS


class Page:
    """Where the blocks of a page are, in 28 bytes each and 49 for each pack or commit that holds some."""

    def __init__(self) -> None:
        self._blocks = bytearray(PAGE_BLOCKS * BLOCK.size)
        self._holders = bytearray()

    def __getitem__(self, index: int) -> Reference | Inline | None:
        """Where a block is; None: it is a hole.

        Args:
            index: of the block in this page.
        """
        offset, length, number, flags, digest = BLOCK.unpack_from(self._blocks, index * BLOCK.size)
        if not length:
            return None
        return _place(self._holder(number), Piece(offset, length, flags, digest))

    def __setitem__(self, index: int, place: Reference | Inline | None) -> None:
        packed = _HOLE
        if place is not None:
            piece = place.piece
            packed = BLOCK.pack(piece.offset, piece.length, self._number(place.holder), piece.flags, piece.hash)
        self._blocks[index * BLOCK.size : (index + 1) * BLOCK.size] = packed

    def __iter__(self) -> Iterator[tuple[int, Reference | Inline]]:
        """Index and place of each block that is not a hole."""
        holders = self._named()
        for index, (offset, length, number, flags, digest) in enumerate(BLOCK.iter_unpack(self._blocks)):
            if length:
                yield index, _place(holders[number], Piece(offset, length, flags, digest))

    def holders(self) -> set[PackName | CommitName]:
        """Which packs and commits hold some of the blocks."""
        return set(self._named().values())

    def inline(self) -> Iterator[tuple[int, Inline]]:
        """Index and place of each block that is inline in a commit."""
        if commits := {number: each for number, each in self._named().items() if isinstance(each, CommitName)}:
            for index, (offset, length, number, flags, digest) in enumerate(BLOCK.iter_unpack(self._blocks)):
                if length and number in commits:
                    yield index, Inline(commits[number], Piece(offset, length, flags, digest))

    def encode(self) -> bytes:
        """The page's content as it is stored; empty, if there are only holes.

        Raises:
            InternalError: a block is inline in a commit, which may be trimmed while the page is in use.
        """
        packs: dict[PackName, int] = {}
        order: dict[int, int] = {}
        blocks, bits = bytearray(), 0
        for index, (offset, length, number, flags, digest) in enumerate(BLOCK.iter_unpack(self._blocks)):
            if not length:
                continue
            if number not in order:
                holder = self._holder(number)
                if isinstance(holder, CommitName):
                    raise InternalError(f"a page cannot be stored while it refers to {holder.key}")
                order[number] = packs.setdefault(holder, len(packs))
            bits |= 1 << index
            blocks += BLOCK.pack(offset, length, order[number], flags, digest)
        return _encode_packs(packs) + bits.to_bytes(_BITS, "little") + blocks if packs else b""

    @classmethod
    def decode(cls, content: bytes, number: int, key: str) -> Page:
        """
        Args:
            content: as `encode` made it.
            number: the page's, for errors.
            key: of the pack it was read from.

        Raises:
            CorruptError: it contradicts itself.
        """
        touched = f"{describe_page(number)} cannot be read"
        packs, rest = _decode_packs(content, key, touched)
        bits = int.from_bytes(rest[:_BITS], "little")
        if len(rest) != _BITS + bits.bit_count() * BLOCK.size:
            raise damaged(key, f"a map page of {len(content)} bytes has {bits.bit_count()} blocks; {touched}")
        page = cls()
        page._holders += b"".join(_pack_holder(pack) for pack in packs)
        present = (index for index in range(PAGE_BLOCKS) if bits >> index & 1)
        for index, fields in zip(present, BLOCK.iter_unpack(rest[_BITS:]), strict=True):
            _, length, pack, _, _ = fields
            if not length or pack >= len(packs):
                raise damaged(key, f"a map page has {length} bytes in pack {pack} of {len(packs)}; {touched}")
            BLOCK.pack_into(page._blocks, index * BLOCK.size, *fields)
        return page

    def _numbers(self) -> set[int]:
        return {number for _, length, number, _, _ in BLOCK.iter_unpack(self._blocks) if length}

    def _named(self) -> dict[int, PackName | CommitName]:
        # Most blocks of a page are in few packs, and to make a name takes longer than all the rest of an entry.
        return {number: self._holder(number) for number in self._numbers()}

    def _holder(self, number: int) -> PackName | CommitName:
        is_pack, volume, epoch, count, identity = _HOLDER.unpack_from(self._holders, number * _HOLDER.size)
        if is_pack:
            return PackName(UUID(bytes=volume), epoch, count, identity)
        return CommitName(UUID(bytes=volume), epoch, count)

    def _number(self, holder: PackName | CommitName) -> int:
        packed = _pack_holder(holder)
        position = self._holders.rfind(packed)
        while position > 0 and position % _HOLDER.size:
            position = self._holders.rfind(packed, 0, position + _HOLDER.size - 1)
        if position >= 0:
            return position // _HOLDER.size
        if len(self._holders) == _HOLDERS_MAX * _HOLDER.size:
            self._forget_unused()
        self._holders += packed
        return len(self._holders) // _HOLDER.size - 1

    def _forget_unused(self) -> None:
        """Forget holders whose blocks have all been replaced: at most as many are left as there are blocks."""
        used = sorted(self._numbers())
        renumbered = {number: position for position, number in enumerate(used)}
        self._holders = bytearray().join(
            self._holders[number * _HOLDER.size : (number + 1) * _HOLDER.size] for number in used
        )
        for index in range(PAGE_BLOCKS):
            offset, length, number, flags, digest = BLOCK.unpack_from(self._blocks, index * BLOCK.size)
            if length:
                BLOCK.pack_into(self._blocks, index * BLOCK.size, offset, length, renumbered[number], flags, digest)


def _place(holder: PackName | CommitName, piece: Piece) -> Reference | Inline:
    return Inline(holder, piece) if isinstance(holder, CommitName) else Reference.to(holder, piece)


def encode_root(pages: Mapping[int, Reference]) -> bytes:
    """The content of a map's root.

    Args:
        pages: where the pages are that are not empty, by their numbers.
    """
    packs: dict[PackName, int] = {}
    rows = bytearray()
    for number in sorted(pages):
        at = pages[number]
        rows += PAGE.pack(number, packs.setdefault(at.holder, len(packs)), at.offset, at.length, at.flags, at.hash)
    return _encode_packs(packs) + rows


def decode_root(content: bytes, key: str) -> dict[int, Reference]:
    """Where the pages are that are not empty, by their numbers.

    Args:
        content: as `encode_root` made it.
        key: of the pack it was read from.

    Raises:
        CorruptError: it contradicts itself.
    """
    touched = "the whole disk cannot be read"
    packs, rows = _decode_packs(content, key, touched)
    if len(rows) % PAGE.size:
        raise damaged(key, f"a map root of {len(content)} bytes does not end with a page; {touched}")
    pages: dict[int, Reference] = {}
    last = -1
    for number, pack, offset, length, flags, digest in PAGE.iter_unpack(rows):
        if not last < number < PAGES_MAX:
            raise damaged(key, f"in a map root page {number} follows page {last}; {touched}")
        if not length or pack >= len(packs):
            raise damaged(key, f"a map root has {length} bytes in pack {pack} of {len(packs)}; {touched}")
        pages[number] = Reference.to(packs[pack], Piece(offset, length, flags, digest))
        last = number
    return pages


def read_root(stored: bytes | memoryview, root: Reference) -> dict[int, Reference]:
    """Where the pages of a map are, by their numbers.

    Args:
        stored: what was read where `root` says.

    Raises:
        CorruptError: it is not what was written.
    """
    key = root.holder.key
    return decode_root(decode_blob(stored, root.piece, limit=ROOT_LIMIT, key=key, touched="the whole disk"), key)


def read_page(stored: bytes | memoryview, at: Reference, number: int) -> Page:
    """A page of a map.

    Args:
        stored: what was read at `at`.
        number: the page's, for errors.

    Raises:
        CorruptError: it is not what was written.
    """
    return Page.decode(_page_content(stored, at, number), number, at.holder.key)


def read_page_packs(stored: bytes | memoryview, at: Reference, number: int) -> list[PackName]:
    """The packs that hold blocks of a page, without looking at the blocks. Arguments and errors as `read_page`."""
    packs, _ = _decode_packs(
        _page_content(stored, at, number), at.holder.key, f"{describe_page(number)} cannot be read"
    )
    return packs


def _page_content(stored: bytes | memoryview, at: Reference, number: int) -> bytes:
    return decode_blob(stored, at.piece, limit=PAGE_LIMIT, key=at.holder.key, touched=describe_page(number))


def describe_page(number: int) -> str:
    """The blocks of a page in words."""
    return describe_blocks(number * PAGE_BLOCKS, PAGE_BLOCKS)


def _pack_holder(holder: PackName | CommitName) -> bytes:
    if isinstance(holder, PackName):
        return _HOLDER.pack(1, holder.volume.bytes, holder.epoch, holder.upload, holder.id)
    return _HOLDER.pack(0, holder.volume.bytes, holder.epoch, holder.number, b"")


def _encode_packs(packs: Mapping[PackName, int]) -> bytes:
    table = [PACK.pack(pack.volume.bytes, pack.epoch, pack.upload, pack.id) for pack in packs]
    return _COUNT.pack(len(packs)) + b"".join(table)


def _decode_packs(content: bytes, key: str, touched: str) -> tuple[list[PackName], memoryview]:
    """The packs that `content` begins with, and the rest of it."""
    view = memoryview(content)
    count = _COUNT.unpack_from(view)[0] if len(view) >= _COUNT.size else 0
    end = _COUNT.size + count * PACK.size
    if len(view) < end:
        raise damaged(key, f"a map has {len(view)} bytes, and names {count} packs; {touched}")
    packs = []
    for volume, epoch, upload, identity in PACK.iter_unpack(view[_COUNT.size : end]):
        if not (1 <= epoch <= NUMBER_MAX and 1 <= upload <= NUMBER_MAX):
            raise damaged(key, f"a map names the pack {upload} of epoch {epoch}, which cannot be; {touched}")
        packs.append(PackName(UUID(bytes=volume), epoch, upload, identity))
    return packs, view[end:]
