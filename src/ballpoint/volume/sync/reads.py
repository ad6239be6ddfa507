"""Which bytes of which packs hold the blocks of a disk: the requests that fill an image of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from ballpoint.volume.log.blob import BLOCK_BYTES, Inline, Piece, Reference, hash_of
from ballpoint.volume.log.changes import Change
from ballpoint.volume.log.keys import PackName
from ballpoint.volume.log.map import Map

# What lies between two blobs is read with them where it is less than this: a request takes as long as some hundred KiB.
_GAP: Final = 128 * 1024
# Large enough that a request's own time is little beside it, small enough that many are under way at once.
READ_MAX: Final = 2 * 1024 * 1024

# Block, offset, length, flags, hash. A disk of 8 GB has 131,072 blocks, so they are not objects before they are read.
_ENTRY: Final = struct.Struct("<IIIH16s")
_ZEROS: Final = hash_of(bytes(BLOCK_BYTES))


class Wanted(NamedTuple):
    """A block, and where it is in the body of its pack."""

    block: int
    piece: Piece


@dataclass(frozen=True)
class Read:
    """One request: a part of a pack.

    Attributes:
        start: its first byte, counted from the start of the body.
        length: bytes; at most READ_MAX, or one blob.
    """

    pack: PackName
    start: int
    length: int
    _entries: bytes

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def __iter__(self) -> Iterator[Wanted]:
        """The blocks that are wanted of it, by rising numbers."""
        for block, offset, length, flags, digest in _ENTRY.iter_unpack(self._entries):
            yield Wanted(block, Piece(offset, length, flags, digest))

    @property
    def first(self) -> int:
        """Its lowest block."""
        return int(_ENTRY.unpack_from(self._entries)[0])

    def blocks(self) -> list[int]:
        """The numbers of its blocks, rising."""
        return [block for block, *_ in _ENTRY.iter_unpack(self._entries)]


@dataclass(frozen=True)
class Plan:
    """All that an image needs.

    Attributes:
        reads: by their lowest block.
        inline: blocks that are in commits.
        blocks: how many, of both.
        end: the number after the highest of them.
    """

    reads: list[Read]
    inline: list[tuple[int, Inline]]
    blocks: int
    end: int

    def of(self, pack: PackName) -> list[int]:
        """The blocks that are in a pack, rising."""
        return sorted(block for read in self.reads if read.pack == pack for block in read.blocks())


def plan(disk: Map) -> Plan:
    """What must be read for an image of `disk`, all of whose pages are loaded.

    A block of zeros is left out: an image is made of holes. It takes 30 bytes a block.

    Raises:
        InternalError: a page is missing.
    """
    packs: dict[PackName, bytearray] = {}
    inline: list[tuple[int, Inline]] = []
    end = 0
    for block, place in _blocks(disk):
        end = block + 1
        match place:
            case Reference():
                if place.hash != _ZEROS:
                    entry = _ENTRY.pack(block, place.offset, place.length, place.flags, place.hash)
                    packs.setdefault(place.holder, bytearray()).extend(entry)
            case Inline():
                if place.piece.hash != _ZEROS:
                    inline.append((block, place))
    reads = [read for pack, entries in packs.items() for read in _ranges(pack, entries)]
    reads.sort(key=lambda read: read.first)
    return Plan(reads, inline, sum(map(len, reads)) + len(inline), end)


def _blocks(disk: Map) -> Iterator[Change]:
    for number in sorted({*disk.pages, *disk.dirty()}):
        yield from disk.page(number)


def _ranges(pack: PackName, entries: bytearray) -> Iterator[Read]:
    """The parts of a pack that hold `entries`."""
    start = end = 0
    part: list[tuple[int, ...]] = []
    for entry in sorted(_ENTRY.iter_unpack(entries), key=lambda entry: entry[1]):
        _, offset, length, _, _ = entry
        if part and (offset > end + _GAP or max(end, offset + length) - start > READ_MAX):
            yield _read(pack, start, end, part)
            part = []
        if not part:
            start = end = offset
        part.append(entry)
        end = max(end, offset + length)
    yield _read(pack, start, end, part)


def _read(pack: PackName, start: int, end: int, part: Iterable[tuple[int, ...]]) -> Read:
    return Read(pack, start, end - start, b"".join(_ENTRY.pack(*entry) for entry in sorted(part)))
