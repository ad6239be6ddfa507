"""Blobs: pieces of a body, compressed where that gains something, found again by reference and checked by hash."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple
from uuid import UUID

import msgspec
import zstandard
from blake3 import blake3

from ballpoint.core.errors import InternalError
from ballpoint.volume.log.envelope import damaged
from ballpoint.volume.log.keys import CommitName, Id, Number, PackName

BLOCK_BYTES: Final = 64 * 1024
HASH_BYTES: Final = 16

ZSTD: Final = 0
PLAIN: Final = 1
_LEVEL: Final = 1
# Of blocks side by side, in an error's text.
_RUNS_SHOWN: Final = 8
_of_thread = threading.local()

U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
Length = Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]  # 0 would be a hole
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class Blob(NamedTuple):
    """A content as it is stored.

    Attributes:
        stored: the bytes in the body.
        flags: ZSTD or PLAIN.
        hash: of the content.
    """

    stored: bytes
    flags: int
    hash: bytes


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a blob is in a body.

    Attributes:
        offset: bytes from the start of the body (of a commit: of what follows its entries).
        length: bytes it has there.
        flags: how they are stored.
        hash: of the content.
    """

    offset: U32
    length: Length
    flags: U16
    hash: Hash


class Reference(msgspec.Struct, frozen=True, array_like=True):
    """A blob of a pack. Attributes as those of PackName and Piece."""

    volume: UUID
    epoch: Number
    upload: Number
    id: Id
    offset: U32
    length: Length
    flags: U16
    hash: Hash

    @classmethod
    def to(cls, pack: PackName, piece: Piece) -> Reference:
        return cls(pack.volume, pack.epoch, pack.upload, pack.id, piece.offset, piece.length, piece.flags, piece.hash)

    @property
    def holder(self) -> PackName:
        return PackName(self.volume, self.epoch, self.upload, self.id)

    @property
    def piece(self) -> Piece:
        return Piece(self.offset, self.length, self.flags, self.hash)


class Inline(NamedTuple):
    """A blob of a commit. Attributes as those of Reference, taken together."""

    holder: CommitName
    piece: Piece


def hash_of(content: bytes | bytearray | memoryview) -> bytes:
    """By what a content is known: 16 bytes."""
    return blake3(content).digest(HASH_BYTES)


def encode_blob(content: bytes | bytearray | memoryview) -> Blob:
    """How `content`, which must not be empty, is stored."""
    if not content:
        raise InternalError("an empty content cannot be stored: length 0 is a hole")
    compressed = _compressor().compress(content)
    if 16 * len(compressed) <= 15 * len(content):
        return Blob(compressed, ZSTD, hash_of(content))
    return Blob(bytes(content), PLAIN, hash_of(content))


def decode_blob(stored: bytes | memoryview, piece: Piece, *, limit: int, key: str, touched: str) -> bytes:
    """The content of a blob.

    Args:
        stored: what was read where `piece` says.
        limit: bytes that the content has at most; more are never unpacked.
        key: of the object it was read from.
        touched: what cannot be read without it, for the error.

    Raises:
        CorruptError: it is not what was written.
    """
    try:
        return _decode(stored, piece, limit)
    except ValueError as error:
        raise damaged(key, f"{error}; {touched} cannot be read") from error


def decode_block(stored: bytes | memoryview, place: Reference | Inline, block: int) -> bytes:
    """The content of a block: 64 KiB.

    Args:
        stored: what was read where `place` says.
        block: its number, for the error.

    Raises:
        CorruptError: it is not what was written.
    """
    try:
        content = _decode(stored, place.piece, BLOCK_BYTES)
        if len(content) != BLOCK_BYTES:
            raise ValueError(f"{_where(place.piece)} is no block")
    except ValueError as error:
        # Keys and texts take a tenth of the time that a block takes, so they are made where something is wrong only.
        raise damaged(place.holder.key, f"{error}; {describe_blocks(block)} cannot be read") from error
    return content


def describe_blocks(first: int, count: int = 1) -> str:
    """Blocks in words, and where on the disk they are."""
    blocks = f"block {first}" if count == 1 else f"blocks {first} to {first + count - 1}"
    return f"{blocks} (bytes {first * BLOCK_BYTES} to {(first + count) * BLOCK_BYTES - 1} of the disk)"


def describe_all(blocks: Iterable[int]) -> str:
    """Block numbers, rising, in words: the first few runs of them."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    words = ", ".join(describe_blocks(first, count) for first, count in runs[:_RUNS_SHOWN])
    return words if len(runs) <= _RUNS_SHOWN else f"{words}, and {sum(count for _, count in runs[_RUNS_SHOWN:])} more"


def _decode(stored: bytes | memoryview, piece: Piece, limit: int) -> bytes:
    """As `decode_blob`; a ValueError says what is wrong."""
    if len(stored) != piece.length:
        raise ValueError(f"{_where(piece)} has {len(stored)} bytes of {piece.length}")
    try:
        content = _unpack(stored, piece.flags, limit)
    except (zstandard.ZstdError, ValueError) as error:
        raise ValueError(f"{_where(piece)}: {error}") from error
    if hash_of(content) != piece.hash:
        raise ValueError(f"{_where(piece)} is not what was written")
    return content


def _where(piece: Piece) -> str:
    return f"the blob at {piece.offset} of its body"


def _unpack(stored: bytes | memoryview, flags: int, limit: int) -> bytes:
    if flags == PLAIN:
        size = len(stored)
    elif flags == ZSTD:
        size = zstandard.frame_content_size(stored)
    else:
        raise ValueError(f"it is stored in an unknown way ({flags})")
    if not 0 < size <= limit:
        raise ValueError(f"its content is said to have {size} bytes, of at most {limit}")
    if flags == PLAIN:
        return bytes(stored)
    # The frame's own size is what zstd allocates, and it never writes more.
    return _decompressor().decompress(stored, allow_extra_data=False)


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's, as the decompressor."""
    found: zstandard.ZstdCompressor | None = getattr(_of_thread, "compressor", None)
    if found is None:
        found = _of_thread.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's: making one takes a tenth of what a block takes, and no two threads may use it at once."""
    found: zstandard.ZstdDecompressor | None = getattr(_of_thread, "decompressor", None)
    if found is None:
        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found
