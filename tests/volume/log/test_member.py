"""Members: they come back as they were, and nothing comes out of one that is damaged."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import BallpointError, CorruptError, InternalError
from ballpoint.volume.log import envelope
from ballpoint.volume.log import member as module
from ballpoint.volume.log.blob import Piece, Reference
from ballpoint.volume.log.keys import MemberName, PackName
from ballpoint.volume.log.member import Member, Source, decode_member, encode_member
from tests.volume.log.damage import cut, flipped
from tests.volume.log.strategies import identities, member_names, references, texts, times, uuids
from tests.volume.log.test_commit import raw, text
from tests.volume.log.test_envelope import forged

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
LINEAGE = UUID("0f0e0d0c-0b0a-0908-0706-050403020100")
SOURCE = UUID(int=5)
NAME = MemberName(LINEAGE, VOLUME)
ROOT = Reference.to(PackName(SOURCE, 2, 7, b"pack's 128 bits."), Piece(4096, 513, 0, b"hash of 16 bytes"))
FIRST = Member(name=NAME, put_id=b"put-id, 16 bytes", time=5)
FORK = replace(FIRST, source=Source(volume=SOURCE, checkpoint="v1", root=ROOT))

members = st.builds(
    Member,
    name=member_names,
    put_id=identities,
    time=times,
    source=st.none() | st.builds(Source, volume=uuids, checkpoint=texts, root=references),
)


@given(members)
def test_a_member_comes_back_as_it_was(member: Member) -> None:
    assert decode_member(encode_member(member), member.name) == member


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for member in (FIRST, FORK):
        for bad in (*flipped(encode_member(member)), *cut(encode_member(member))):
            with pytest.raises(CorruptError) as error:
                decode_member(bad, NAME)
            assert NAME.key in error.value.message


@given(members, st.data())
def test_what_a_defective_writer_signs_is_read_or_refused(member: Member, data: st.DataObject) -> None:
    bad = bytearray(encode_member(member))
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 33))] = data.draw(st.integers(0, 255))
    try:
        decode_member(forged(bytes(bad)), member.name)
    except BallpointError as error:
        assert member.name.key in error.message


def test_a_member_is_not_taken_for_another() -> None:
    for other in (MemberName(VOLUME, VOLUME), MemberName(LINEAGE, LINEAGE)):
        with pytest.raises(CorruptError, match=f"it is the member {NAME.key}") as error:
            decode_member(encode_member(FIRST), other)
        assert other.key in error.value.message


@pytest.mark.parametrize("missing", ["source", "checkpoint", "root"])
def test_a_fork_names_all_of_its_beginning_or_is_damage(missing: str) -> None:
    named = {"source": SOURCE, "checkpoint": "v1", "root": ROOT}
    del named[missing]
    header = module._Header(volume=VOLUME, lineage=LINEAGE, put_id=FORK.put_id, time=5, **named)  # type: ignore[arg-type]
    with pytest.raises(CorruptError, match="only in part"):
        decode_member(envelope.seal(envelope.MEMBER, header, [], module._DECODER), NAME)


def test_a_member_with_a_body_is_damage() -> None:
    header = module._Header(volume=VOLUME, lineage=LINEAGE, put_id=FORK.put_id, time=5)
    with pytest.raises(CorruptError, match="no body"):
        decode_member(envelope.seal(envelope.MEMBER, header, [b"body"], module._DECODER), NAME)


def test_a_member_that_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(InternalError):
        encode_member(replace(FIRST, put_id=b"short"))


def test_the_bytes_of_a_member() -> None:
    usual = (
        text("volume") + raw(VOLUME.bytes)
        + text("lineage") + raw(LINEAGE.bytes)
        + text("put_id") + raw(b"put-id, 16 bytes")
        + text("time") + b"\x05"
    )  # fmt: skip
    beginning = (
        text("source") + raw(SOURCE.bytes)
        + text("checkpoint") + text("v1")
        + text("root") + b"\x98" + raw(SOURCE.bytes) + b"\x02\x07" + raw(b"pack's 128 bits.")  # pack
        + b"\xcd\x10\x00" + b"\xcd\x02\x01" + b"\x00" + raw(b"hash of 16 bytes")  # offset, length, flags, hash
    )  # fmt: skip
    first = b"BALLPTM\x01" + b"\x53\x00\0\0" + b"\x84" + usual
    assert encode_member(FIRST) == first + bytes.fromhex(
        "339d3fe548d166fff6ecc3a1584eb1c1b5ce8c78a6c1805f3421ab04cac88a46"
    )
    fork = b"BALLPTM\x01" + b"\xbf\x00\0\0" + b"\x87" + usual + beginning
    assert encode_member(FORK) == fork + bytes.fromhex(
        "4242de243eff56f533afbaed57a97b67b73279e52d1710b897ab8e017bcc32fc"
    )
