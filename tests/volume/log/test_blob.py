"""Blobs: what was stored comes back or nothing does, and nothing small unpacks to something large."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import CorruptError, InternalError
from ballpoint.volume.log.blob import (
    BLOCK_BYTES,
    PLAIN,
    ZSTD,
    Blob,
    Piece,
    Reference,
    decode_blob,
    decode_block,
    describe_blocks,
    encode_blob,
    hash_of,
)
from ballpoint.volume.log.keys import PackName
from tests.volume.log.damage import cut, flipped
from tests.volume.log.strategies import pack_names, pieces

KEY = "some/key"
PACK = PackName(UUID(int=1), 1, 1, bytes(16))
contents = st.one_of(st.binary(min_size=1), st.binary(min_size=1, max_size=64).map(lambda part: part * 64))


def decoded(blob: Blob, stored: bytes, limit: int = BLOCK_BYTES) -> bytes:
    piece = Piece(7, len(blob.stored), blob.flags, blob.hash)
    return decode_blob(stored, piece, limit=limit, key=KEY, touched="block 5")


@given(contents)
def test_what_was_stored_comes_back(content: bytes) -> None:
    blob = encode_blob(content)
    assert decoded(blob, blob.stored) == content
    assert len(blob.stored) <= len(content)


def test_compression_must_gain_a_sixteenth() -> None:
    noise = random.Random(1).randbytes(BLOCK_BYTES)
    stored_as = {
        encode_blob(noise[:length] + bytes(BLOCK_BYTES - length)).flags for length in range(0, BLOCK_BYTES, 512)
    }
    assert stored_as == {ZSTD, PLAIN}
    for length in range(0, BLOCK_BYTES + 1, 256):
        content = noise[:length] + bytes(BLOCK_BYTES - length)
        blob = encode_blob(content)
        gain = len(content) - len(zstandard.ZstdCompressor(level=1).compress(content))
        assert (blob.flags == PLAIN) == (gain < len(content) / 16)


# The one bit of a zstd frame that says nothing (RFC 8878, 3.1.1.1.1.3): turned over, it unpacks to the same content.
UNUSED_BIT = 4 * 8 + 4


@pytest.mark.parametrize("content", [bytes(BLOCK_BYTES), random.Random(1).randbytes(40), b"word " * 100])
def test_every_flipped_bit_is_found(content: bytes) -> None:
    blob = encode_blob(content)
    for position, bad in enumerate(flipped(blob.stored)):
        if blob.flags == ZSTD and position == UNUSED_BIT:
            assert decoded(blob, bad) == content
            continue
        with pytest.raises(CorruptError, match="block 5 cannot be read") as error:
            decoded(blob, bad)
        assert KEY in error.value.message


@pytest.mark.parametrize("content", [bytes(BLOCK_BYTES), random.Random(1).randbytes(40), b"word " * 100])
def test_every_cut_is_found_also_where_its_length_was_recorded(content: bytes) -> None:
    blob = encode_blob(content)
    for bad in cut(blob.stored):
        for length in (len(blob.stored), len(bad)):
            piece = Piece(7, length, blob.flags, blob.hash)
            with pytest.raises(CorruptError, match="block 5 cannot be read") as error:
                decode_blob(bad, piece, limit=BLOCK_BYTES, key=KEY, touched="block 5")
            assert (f"{len(bad)} bytes of {length}" in error.value.message) == (length != len(bad))


def test_another_content_is_not_taken_for_this_one() -> None:
    blob, other = encode_blob(b"one" * 100), encode_blob(b"two" * 100)
    with pytest.raises(CorruptError, match="is not what was written"):
        decoded(blob._replace(stored=other.stored), other.stored)


def test_one_way_of_storing_is_not_taken_for_another() -> None:
    blob = encode_blob(b"one" * 100)
    for flags in (PLAIN, 2, 65535):
        with pytest.raises(CorruptError):
            decoded(blob._replace(flags=flags), blob.stored)


def test_what_is_larger_than_it_may_be_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode_blob(bytes(1 << 28))
    assert len(bomb.stored) < BLOCK_BYTES  # small enough to be let in
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)  # nothing may even be begun
    with pytest.raises(CorruptError, match="of at most"):
        decoded(bomb, bomb.stored)
    plain = encode_blob(random.Random(1).randbytes(BLOCK_BYTES + 1))
    with pytest.raises(CorruptError, match="of at most"):
        decoded(plain, plain.stored)


def test_a_frame_that_says_less_than_it_holds_or_nothing_is_refused() -> None:
    content = bytes(BLOCK_BYTES)
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(content)
    with pytest.raises(CorruptError, match="of at most"):
        decoded(Blob(silent, ZSTD, hash_of(content)), silent)
    stored = encode_blob(content).stored
    assert stored[5:7] == (BLOCK_BYTES - 256).to_bytes(2, "little")  # RFC 8878, 3.1.1.1.4: two bytes, less 256
    liar = stored[:5] + bytes(2) + stored[7:]
    with pytest.raises(CorruptError, match="cannot be read"):
        decoded(Blob(liar, ZSTD, hash_of(content)), liar)


def test_a_block_has_its_full_length_or_is_damage() -> None:
    content = b"word" * (BLOCK_BYTES // 4)
    for wrong, right in ((content, True), (content[1:], False), (content + b"w", False)):
        blob = encode_blob(wrong)
        place = Reference.to(PACK, Piece(7, len(blob.stored), blob.flags, blob.hash))
        if right:
            assert decode_block(blob.stored, place, 2) == content
            continue
        with pytest.raises(CorruptError) as error:
            decode_block(blob.stored, place, 2)
        assert PACK.key in error.value.message and describe_blocks(2) in error.value.message


def test_an_empty_content_cannot_be_stored() -> None:
    with pytest.raises(InternalError):
        encode_blob(b"")


@given(pack_names, pieces)
def test_a_reference_is_a_pack_and_a_place_in_it(pack: PackName, piece: Piece) -> None:
    reference = Reference.to(pack, piece)
    assert (reference.holder, reference.piece) == (pack, piece)


def test_blocks_in_words() -> None:
    assert describe_blocks(2) == "block 2 (bytes 131072 to 196607 of the disk)"
    assert describe_blocks(0, 3) == "blocks 0 to 2 (bytes 0 to 196607 of the disk)"


def test_how_a_content_is_stored() -> None:
    # BLAKE3's own test vectors have the hash of no bytes and of bytes 0, 1, 2, ...
    assert hash_of(b"\0") == bytes.fromhex("2d3adedff11b61f14c886e35afa03673")
    assert encode_blob(b"\0") == Blob(b"\0", PLAIN, bytes.fromhex("2d3adedff11b61f14c886e35afa03673"))
