"""The envelope: what it holds comes back, and nothing comes out of one that is damaged."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, InternalError
from ballpoint.volume.log import envelope
from ballpoint.volume.log.envelope import COMMIT, DIGEST_BYTES, MEMBER, PACK, VERSION, Kind
from tests.volume.log.damage import cut, flipped

KEY = "some/key"
# The version's place, and that of the header's length (docs/volume-format.md).
VERSION_AT, LENGTH_AT = 7, slice(8, 12)


class Header(msgspec.Struct):
    id: UUID
    word: str = ""


class LaterHeader(Header):
    news: int = 5


DECODER = msgspec.msgpack.Decoder(Header)
HEADER = Header(UUID(int=5), "word")


def sealed(kind: Kind, header: Header, body: list[bytes]) -> bytes:
    return envelope.seal(kind, header, body, DECODER)


def forged(data: bytes) -> bytes:
    """`data` with the hash that goes with it, as a writer with a defect would have it."""
    return data[:-DIGEST_BYTES] + blake3(data[:-DIGEST_BYTES]).digest()


@given(st.sampled_from([COMMIT, PACK, MEMBER]), st.text(), st.lists(st.binary()))
def test_what_was_put_in_comes_out(kind: Kind, word: str, body: list[bytes]) -> None:
    header = Header(UUID(int=5), word)
    data = sealed(kind, header, body)
    opened = envelope.unseal(kind, data, KEY)
    assert envelope.read_header(DECODER, opened.header, KEY) == header
    assert opened.body == b"".join(body)
    assert opened.digest == envelope.digest_of(data) == blake3(data[:-DIGEST_BYTES]).digest()


def test_a_body_begins_at_one_place_whatever_its_header_says() -> None:
    for word in ("", "word" * 1000):
        data = sealed(PACK, Header(UUID(int=5), word), [b"body"])
        assert data[envelope.BODY_START :].startswith(b"body")


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for data in (sealed(MEMBER, HEADER, []), sealed(PACK, HEADER, [b"body"])):
        for bad in (*flipped(data), *cut(data)):
            with pytest.raises(CorruptError) as error:
                envelope.unseal(PACK, bad, KEY)
            assert KEY in error.value.message


def test_a_later_version_is_no_damage() -> None:
    later = bytearray(sealed(PACK, HEADER, [b"body"]))
    later[VERSION_AT] = VERSION + 1
    with pytest.raises(ConflictError, match="made by a later version") as error:
        envelope.unseal(PACK, forged(bytes(later)), KEY)
    assert KEY in error.value.message


def test_a_version_that_never_was_is_damage() -> None:
    never = bytearray(sealed(PACK, HEADER, [b"body"]))
    never[VERSION_AT] = 0
    with pytest.raises(CorruptError):
        envelope.unseal(PACK, forged(bytes(never)), KEY)


def test_somebody_elses_object_is_no_envelope() -> None:
    data = bytearray(sealed(PACK, HEADER, [b"body"]))
    data[:6] = b"BALLPX"
    with pytest.raises(CorruptError, match="does not begin as an object of Ballpoint"):
        envelope.unseal(PACK, forged(bytes(data)), KEY)


def test_one_kind_is_not_taken_for_another() -> None:
    for kind, other in ((COMMIT, PACK), (PACK, MEMBER), (MEMBER, COMMIT)):
        with pytest.raises(CorruptError, match="and not a"):
            envelope.unseal(other, sealed(kind, HEADER, []), KEY)


def test_a_header_longer_than_the_object_is_refused() -> None:
    data = bytearray(sealed(PACK, HEADER, [b"body"]))
    for length in (len(data) - envelope.BODY_START - DIGEST_BYTES + 1, (1 << 32) - 1):
        data[LENGTH_AT] = length.to_bytes(4, "little")
        with pytest.raises(CorruptError, match="its header is said to have"):
            envelope.unseal(PACK, forged(bytes(data)), KEY)


def test_fields_of_a_later_writer_are_passed_over() -> None:
    data = sealed(PACK, LaterHeader(HEADER.id, HEADER.word), [])
    assert envelope.read_header(DECODER, envelope.unseal(PACK, data, KEY).header, KEY) == HEADER


DEEP = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "header", [b"", b"\x80", b"\xc1", b"\x82\xa2id\xc4\x10" + bytes(16) + b"\xa4word\xa1\xff", DEEP]
)
def test_a_header_that_is_not_what_it_should_be_is_damage(header: bytes) -> None:
    with pytest.raises(CorruptError, match=KEY):
        envelope.read_header(DECODER, memoryview(header), KEY)


@given(st.binary())
def test_no_header_does_anything_but_be_read_or_refused(header: bytes) -> None:
    try:
        assert isinstance(envelope.read_header(DECODER, memoryview(header), KEY), Header)
    except BallpointError as error:
        assert isinstance(error, CorruptError)


def test_a_header_that_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(InternalError):
        sealed(PACK, Header("no UUID"), [])  # type: ignore[arg-type]


def test_the_bytes_of_an_envelope() -> None:
    expected = (
        b"BALLPT"  # magic
        b"M"  # kind
        b"\x01"  # version
        b"\x20\x00\x00\x00"  # length of the header
        b"body"
        b"\x82"  # a map of two fields
        b"\xa2id\xc4\x10" + bytes(15) + b"\x05"  # 16 bytes, most significant first, as RFC 9562 has them
        b"\xa4word\xa4word"
    )
    digest = bytes.fromhex("8d18bca6abaeeedc1c51d472ffb63c8defb02c3c422f1938452f827fa04e4295")
    assert sealed(MEMBER, HEADER, [b"bo", b"dy"]) == expected + digest
