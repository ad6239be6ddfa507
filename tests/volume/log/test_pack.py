"""Packs: every blob is found again where its reference says, and nothing comes out of a pack that is damaged."""

from __future__ import annotations

import random
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import BallpointError, CorruptError, InternalError
from ballpoint.volume.log import envelope
from ballpoint.volume.log import pack as module
from ballpoint.volume.log.blob import BLOCK_BYTES, PLAIN, Blob, Piece, decode_blob, encode_blob
from ballpoint.volume.log.keys import NUMBER_MAX, PackName
from ballpoint.volume.log.pack import PACK_BYTES, Entry, Kind, PackBuilder, decode_pack, stored_range
from tests.volume.log.damage import cut, flipped
from tests.volume.log.strategies import pack_names, uuids
from tests.volume.log.test_commit import raw, text
from tests.volume.log.test_envelope import forged

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
LINEAGE = UUID("0f0e0d0c-0b0a-0908-0706-050403020100")
NAME = PackName(VOLUME, 2, 7, b"pack's 128 bits.")
kinds: st.SearchStrategy[Kind] = st.sampled_from(["block", "page", "root"])


def small() -> bytes:
    builder = PackBuilder(NAME, LINEAGE)
    builder.add(encode_blob(b"a block"), "block")
    builder.add(encode_blob(b"page " * 50), "page")
    return builder.close()


@given(pack_names, uuids, st.lists(st.tuples(st.binary(min_size=1), kinds)))
def test_what_was_put_in_comes_out(name: PackName, lineage: UUID, contents: list[tuple[bytes, Kind]]) -> None:
    builder = PackBuilder(name, lineage)
    references = [builder.add(encode_blob(content), kind) for content, kind in contents]
    data = builder.close()
    pack = decode_pack(data, name)
    assert (pack.name, pack.lineage, len(pack.entries)) == (name, lineage, len(builder))
    for reference, entry, (content, kind) in zip(references, pack.entries, contents, strict=True):
        assert (entry.kind, entry.piece, reference.holder) == (kind, reference.piece, name)
        start, length = stored_range(entry.piece)
        for stored in (pack.stored(entry.piece), data[start : start + length]):
            assert decode_blob(stored, entry.piece, limit=BLOCK_BYTES, key=name.key, touched="") == content


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for bad in (*flipped(small()), *cut(small())):
        with pytest.raises(CorruptError) as error:
            decode_pack(bad, NAME)
        assert NAME.key in error.value.message


def test_a_reference_beyond_the_end_is_damage_that_says_what_it_touches() -> None:
    pack = decode_pack(small(), NAME)
    beyond = Piece(len(pack.body) - 1, 2, PLAIN, bytes(16))
    with pytest.raises(CorruptError, match="block 5 cannot be read"):
        decode_blob(pack.stored(beyond), beyond, limit=BLOCK_BYTES, key=NAME.key, touched="block 5")


@given(st.data())
def test_what_a_defective_writer_signs_is_read_or_refused(data: st.DataObject) -> None:
    bad = bytearray(small())
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 33))] = data.draw(st.integers(0, 255))
    try:
        decode_pack(forged(bytes(bad)), NAME)
    except BallpointError as error:
        assert NAME.key in error.message


def test_a_pack_is_not_taken_for_another() -> None:
    others = [
        msgspec.structs.replace(NAME, volume=LINEAGE),
        msgspec.structs.replace(NAME, epoch=3),
        msgspec.structs.replace(NAME, upload=8),
        msgspec.structs.replace(NAME, id=bytes(16)),
    ]
    for other in others:
        with pytest.raises(CorruptError, match=f"it is the pack {NAME.key}") as error:
            decode_pack(small(), other)
        assert other.key in error.value.message


@pytest.mark.parametrize(
    "places", [[(1, 3)], [(0, 3)], [(0, 5)], [(0, 2), (1, 3)], [(0, 1), (0, 3)], [(1, 3), (0, 1)], []]
)
def test_blobs_that_do_not_fill_the_body_are_damage(places: list[tuple[int, int]]) -> None:
    def forge(blobs: list[tuple[int, int]]) -> bytes:
        entries = tuple(Entry(offset, length, PLAIN, bytes(16), "block") for offset, length in blobs)
        header = module._Header(volume=VOLUME, lineage=LINEAGE, epoch=2, upload=7, id=NAME.id, blobs=entries)
        return envelope.seal(envelope.PACK, header, [b"body"], module._DECODER)

    assert bytes(decode_pack(forge([(0, 1), (1, 3)]), NAME).body) == b"body"
    with pytest.raises(CorruptError):
        decode_pack(forge(places), NAME)


@pytest.mark.parametrize("size", [1, 100, BLOCK_BYTES])
def test_a_full_pack_is_no_larger_than_it_may_be(size: int) -> None:
    name = PackName(VOLUME, NUMBER_MAX, NUMBER_MAX, NAME.id)
    builder = PackBuilder(name, LINEAGE)
    blob = Blob(random.Random(1).randbytes(size), PLAIN, bytes(16))
    while builder.fits(blob):
        builder.add(blob, "block")
    with pytest.raises(InternalError):
        builder.add(blob, "block")
    data = builder.close()
    assert len(data) <= PACK_BYTES
    assert len(decode_pack(data, name).entries) == len(builder)


def test_the_bytes_of_a_pack() -> None:
    builder = PackBuilder(NAME, LINEAGE)
    builder.add(encode_blob(b"inside"), "block")
    builder.add(encode_blob(b"inside"), "page")
    header = (
        b"\x86"  # a map of six fields
        + text("volume") + raw(VOLUME.bytes)
        + text("lineage") + raw(LINEAGE.bytes)
        + text("epoch") + b"\x02"
        + text("upload") + b"\x07"
        + text("id") + raw(b"pack's 128 bits.")
        + text("blobs") + b"\x92"
        # offset, length, flags, hash, kind
        + b"\x95\x00\x06\x01" + raw(bytes.fromhex("915b355f0f595a044090883a046512f9")) + text("block")
        + b"\x95\x06\x06\x01" + raw(bytes.fromhex("915b355f0f595a044090883a046512f9")) + text("page")
    )  # fmt: skip
    expected = b"BALLPTP\x01" + b"\x96\0\0\0" + b"insideinside" + header
    digest = bytes.fromhex("8551ee93294edf39d9cd0eda262e9747312189b91de6dfe918cf73728c989a04")
    assert builder.close() == expected + digest
