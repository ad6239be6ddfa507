"""Packs: objects of blobs, written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

import msgspec

from ballpoint.core.errors import InternalError
from ballpoint.volume.log import envelope
from ballpoint.volume.log.blob import U16, U32, Blob, Hash, Length, Piece, Reference
from ballpoint.volume.log.envelope import BODY_START, PACK, damaged
from ballpoint.volume.log.keys import Id, Number, PackName

PACK_BYTES: Final = 8 * 1024 * 1024
# What the header and the envelope take at most, in MessagePack's longest forms: of one blob, and once.
BLOB_OVERHEAD: Final = 1 + 5 + 5 + 3 + (2 + 16) + (1 + 5)
PACK_OVERHEAD: Final = 256

Kind = Literal["block", "page", "root"]


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a pack's header says of one blob: those of Piece, and what it is."""

    offset: U32
    length: Length
    flags: U16
    hash: Hash
    kind: Kind

    @property
    def piece(self) -> Piece:
        return Piece(self.offset, self.length, self.flags, self.hash)


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    volume: UUID
    lineage: UUID
    epoch: Number
    upload: Number
    id: Id
    blobs: tuple[Entry, ...]


_DECODER: Final = msgspec.msgpack.Decoder(_Header)


class PackBuilder:
    """A pack that is being filled.

    Attributes:
        name: what it will be called: references to its blobs are good before it is closed.
    """

    def __init__(self, name: PackName, lineage: UUID) -> None:
        self.name = name
        self._lineage = lineage
        self._entries: list[Entry] = []
        self._body: list[bytes] = []
        self._length = 0

    def __len__(self) -> int:
        return len(self._entries)

    def fits(self, blob: Blob) -> bool:
        """Whether the pack has room for one more."""
        overhead = PACK_OVERHEAD + (len(self._entries) + 1) * BLOB_OVERHEAD
        return self._length + len(blob.stored) + overhead <= PACK_BYTES

    def add(self, blob: Blob, kind: Kind) -> Reference:
        """Add a blob that fits; where it will be."""
        if not self.fits(blob):
            raise InternalError(f"a blob of {len(blob.stored)} bytes does not fit into {self.name.key}")
        entry = Entry(self._length, len(blob.stored), blob.flags, blob.hash, kind)
        self._entries.append(entry)
        self._body.append(blob.stored)
        self._length += entry.length
        return Reference.to(self.name, entry.piece)

    def close(self) -> bytes:
        """The object that is stored under the pack's key: at most PACK_BYTES."""
        header = _Header(
            volume=self.name.volume,
            lineage=self._lineage,
            epoch=self.name.epoch,
            upload=self.name.upload,
            id=self.name.id,
            blobs=tuple(self._entries),
        )
        return envelope.seal(PACK, header, self._body, _DECODER)


@dataclass(frozen=True)
class Pack:
    """A pack that was read whole.

    Attributes:
        lineage: to which it belongs.
        entries: its blobs, in the order of the body.
        body: all of them.
    """

    name: PackName
    lineage: UUID
    entries: tuple[Entry, ...]
    body: memoryview

    def stored(self, piece: Piece) -> memoryview:
        """The bytes of one blob, not looked into yet; what is not there is missing from them."""
        return self.body[piece.offset : piece.offset + piece.length]


def decode_pack(data: bytes, name: PackName) -> Pack:
    """The pack in `data`.

    Args:
        name: where it was found.

    Raises:
        CorruptError: it is damaged, or another one.
        ConflictError: it was made by a later version.
    """
    opened = envelope.unseal(PACK, data, name.key)
    header = envelope.read_header(_DECODER, opened.header, name.key)
    said = PackName(header.volume, header.epoch, header.upload, header.id)
    if said != name:
        raise damaged(name.key, f"it is the pack {said.key}")
    end = 0
    for entry in header.blobs:
        if entry.offset != end:
            raise damaged(name.key, f"a blob is said to begin at {entry.offset}, and the one before ends at {end}")
        end += entry.length
    if end != len(opened.body):
        raise damaged(name.key, f"its blobs are said to have {end} bytes, of {len(opened.body)}")
    return Pack(name, header.lineage, header.blobs, opened.body)


def stored_range(piece: Piece) -> tuple[int, int]:
    """Where a blob is in the object of its pack: first byte, and number of bytes."""
    return BODY_START + piece.offset, piece.length
