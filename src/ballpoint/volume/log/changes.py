"""What a commit changes on the disk: entries of 32 bytes, kept as they are stored."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from ballpoint.core.errors import InternalError
from ballpoint.volume.log.blob import Blob, Inline, Piece, Reference
from ballpoint.volume.log.envelope import damaged
from ballpoint.volume.log.keys import CommitName, PackName

# Block, offset, length, pack, flags, hash.
ENTRY: Final = struct.Struct("<IIIHH16s")
# The pack number that means the commit itself; so there are fewer packs than that.
HERE: Final = 65535
# A map's page number, and the number of packs of its root, stay below this: then a root names each pack by two bytes.
PAGES_MAX: Final = 65535
PAGE_BLOCKS: Final = 1024
BLOCKS_MAX: Final = PAGES_MAX * PAGE_BLOCKS
INLINE_MAX: Final = 256 * 1024

_HOLE: Final = (0, 0, 0, 0, bytes(16))


class Change(NamedTuple):
    """Where a block is from now on; None: it is a hole."""

    block: int
    place: Reference | Inline | None


@dataclass(frozen=True)
class Changes:
    """The changes of one commit, by rising block numbers.

    They may be more than a million, so they are not objects until somebody looks at them.

    Attributes:
        commit: whose they are.
        packs: what the pack numbers of the entries mean.
        entries: as in the body.
        inline: the blobs behind the entries.
    """

    commit: CommitName
    packs: tuple[PackName, ...] = ()
    entries: bytes = b""
    inline: bytes = b""

    @classmethod
    def of(cls, commit: CommitName, blocks: Iterable[tuple[int, Reference | Blob | None]]) -> Changes:
        """
        Args:
            blocks: block numbers, rising, with what is there now; a Blob goes inline, None is a hole.

        Raises:
            InternalError: the order is wrong, or it is more than one commit can hold.
        """
        numbers: dict[PackName, int] = {}
        entries, inline, last = bytearray(), bytearray(), -1
        for block, what in blocks:
            if not last < block < BLOCKS_MAX:
                raise InternalError(f"block {block} cannot follow block {last} in a commit")
            last = block
            match what:
                case None:
                    fields = _HOLE
                case Reference():
                    number = numbers.setdefault(what.holder, len(numbers))
                    fields = (what.offset, what.length, number, what.flags, what.hash)
                case Blob():
                    fields = (len(inline), len(what.stored), HERE, what.flags, what.hash)
                    inline += what.stored
            entries += ENTRY.pack(block, *fields)
        if len(numbers) > HERE:
            raise InternalError(f"one commit cannot refer to {len(numbers)} packs")
        if len(inline) > INLINE_MAX:
            raise InternalError(f"{len(inline)} bytes are too many for a commit; they belong into a pack")
        return cls(commit, tuple(numbers), bytes(entries), bytes(inline))

    @classmethod
    def read(cls, commit: CommitName, count: int, packs: tuple[PackName, ...], body: memoryview) -> Changes:
        """
        Args:
            count: how many entries `body` begins with.

        Raises:
            CorruptError: the entries contradict themselves.
        """
        size = count * ENTRY.size
        if size > len(body):
            raise damaged(commit.key, f"it is said to have {count} changes, in {len(body)} bytes")
        made = cls(commit, packs, bytes(body[:size]), bytes(body[size:]))
        last = -1
        for block, offset, length, pack, _, _ in ENTRY.iter_unpack(made.entries):
            if not last < block < BLOCKS_MAX:
                raise damaged(commit.key, f"its entry for block {block} follows that for block {last}")
            last = block
            if pack == HERE and offset + length > len(made.inline):
                raise damaged(commit.key, f"block {block} is said to end at {offset + length} of {len(made.inline)}")
            if length and pack != HERE and pack >= len(packs):
                raise damaged(commit.key, f"block {block} is said to be in pack {pack} of {len(packs)}")
        return made

    def __len__(self) -> int:
        return len(self.entries) // ENTRY.size

    def __iter__(self) -> Iterator[Change]:
        for block, offset, length, pack, flags, digest in ENTRY.iter_unpack(self.entries):
            if not length:
                yield Change(block, None)
            elif pack == HERE:
                yield Change(block, Inline(self.commit, Piece(offset, length, flags, digest)))
            else:
                yield Change(block, Reference.to(self.packs[pack], Piece(offset, length, flags, digest)))

    def find(self, block: int) -> Change | None:
        """What becomes of a block; None: it does not change."""
        position = bisect_left(range(len(self)), block, key=self._block)
        if position == len(self) or self._block(position) != block:
            return None
        at = position * ENTRY.size
        return next(iter(replace(self, entries=self.entries[at : at + ENTRY.size])))

    def _block(self, position: int) -> int:
        return int(ENTRY.unpack_from(self.entries, position * ENTRY.size)[0])

    def blocks(self) -> Iterator[int]:
        """The numbers of the blocks that change."""
        return (entry[0] for entry in ENTRY.iter_unpack(self.entries))

    def stored(self, piece: Piece) -> bytes:
        """The bytes of an inline blob, not looked into yet.

        Raises:
            InternalError: these are changes without them.
        """
        if piece.offset + piece.length > len(self.inline):
            raise InternalError(f"blocks that are inline in {self.commit.key} were let go of, and asked for")
        return self.inline[piece.offset : piece.offset + piece.length]

    def without_inline(self) -> Changes:
        """The same changes, for whoever asks which blocks they are of, and for no content."""
        return replace(self, inline=b"")
