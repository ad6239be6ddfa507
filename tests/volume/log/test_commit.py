"""Commits: all kinds come back as they were, and nothing comes out of one that is damaged or contradicts itself."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import BallpointError, CorruptError, InternalError
from ballpoint.volume.log import changes as limits
from ballpoint.volume.log.blob import BLOCK_BYTES, Blob, Inline, Piece, Reference, decode_blob, encode_blob
from ballpoint.volume.log.changes import BLOCKS_MAX, ENTRY, INLINE_MAX, Change, Changes
from ballpoint.volume.log.commit import (
    Checkpoint,
    Closed,
    Commit,
    Previous,
    State,
    decode_commit,
    encode_commit,
    is_complete,
)
from ballpoint.volume.log.keys import CommitName, PackName
from tests.volume.log.damage import cut, flipped
from tests.volume.log.strategies import commits
from tests.volume.log.test_envelope import forged

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
LINEAGE = UUID("0f0e0d0c-0b0a-0908-0706-050403020100")
NAME = CommitName(VOLUME, 2, 3)
PACK = PackName(VOLUME, 2, 7, b"pack's 128 bits.")
INSIDE = encode_blob(b"inside")
PLACE = Reference.to(PACK, Piece(4096, 513, 0, b"hash of 16 bytes"))
BLOCKS: list[tuple[int, Reference | Blob | None]] = [(5, PLACE), (6, None), (70000, INSIDE)]
STATE = State(root=PLACE, checkpoints=(), image="image", size=1 << 30, settings={"name": "demo"}, trashed=None, count=9)


def data_commit(**values: Any) -> Commit:
    usual = Commit(
        name=NAME,
        lineage=LINEAGE,
        put_id=b"put-id, 16 bytes",
        writer="host",
        time=1700000000000,
        previous=Previous(2, 2, b"digest of the commit before this"),
        kind="data",
        closed=Closed(2, 7),
        changes=Changes.of(NAME, BLOCKS),
    )
    return replace(usual, **values)


@given(commits())
def test_a_commit_comes_back_as_it_was(commit: Commit) -> None:
    assert decode_commit(encode_commit(commit), commit.name) == commit


def test_changes_come_back_with_what_is_inline() -> None:
    found = decode_commit(encode_commit(data_commit()), NAME).changes
    inside = Inline(NAME, Piece(0, len(INSIDE.stored), INSIDE.flags, INSIDE.hash))
    assert list(found) == [Change(5, PLACE), Change(6, None), Change(70000, inside)]
    assert list(found.blocks()) == [5, 6, 70000]
    stored = found.stored(inside.piece)
    assert decode_blob(stored, inside.piece, limit=BLOCK_BYTES, key=NAME.key, touched="") == b"inside"


def test_changes_may_be_holes_alone() -> None:
    changes = Changes.of(NAME, [(5, None)])
    assert list(decode_commit(encode_commit(data_commit(changes=changes)), NAME).changes) == [Change(5, None)]


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for bad in (*flipped(encode_commit(data_commit())), *cut(encode_commit(data_commit()))):
        with pytest.raises(CorruptError) as error:
            decode_commit(bad, NAME)
        assert NAME.key in error.value.message


@given(commits(), st.data())
def test_what_a_defective_writer_signs_is_read_or_refused(commit: Commit, data: st.DataObject) -> None:
    good = bytearray(encode_commit(commit))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 33))] = data.draw(st.integers(0, 255))
    try:
        decode_commit(forged(bytes(good)), commit.name)
    except BallpointError as error:
        assert commit.name.key in error.message


def test_a_commit_is_not_taken_for_another() -> None:
    data = encode_commit(data_commit())
    for other in (CommitName(VOLUME, 2, 4), CommitName(VOLUME, 3, 3), CommitName(LINEAGE, 2, 3)):
        with pytest.raises(CorruptError, match=f"it is the commit {NAME.key}") as error:
            decode_commit(data, other)
        assert other.key in error.value.message


FIRST, SECOND_EPOCH = CommitName(VOLUME, 1, 1), CommitName(VOLUME, 2, 1)
DIGEST = bytes(32)


@pytest.mark.parametrize(
    "values",
    [
        {"previous": None},
        {"previous": None, "changes": Changes(NAME), "kind": "root", "state": STATE},
        {"name": FIRST, "changes": Changes(FIRST)},
        {"previous": Previous(2, 1, DIGEST)},
        {"previous": Previous(1, 2, DIGEST)},
        {"previous": Previous(2, 3, DIGEST)},
        {"name": SECOND_EPOCH, "changes": Changes(SECOND_EPOCH), "previous": Previous(2, 1, DIGEST)},
        {"changes": Changes(FIRST)},
        {"kind": "seal"},
        {"kind": "root", "changes": Changes(NAME)},
        {"kind": "root", "state": STATE},
        {"state": STATE},
        {"settings": {}},
        {"kind": "settings", "changes": Changes(NAME)},
        {"name": FIRST, "previous": None, "changes": Changes(FIRST)},
        {"name": FIRST, "previous": None, "changes": Changes(FIRST), "kind": "abandoned", "state": STATE},
        {"put_id": b"short"},
        {"kind": "unheard of", "changes": Changes(NAME)},
        {"closed": Closed(-1, 0)},
    ],
)
def test_a_commit_against_the_rules_is_not_written(values: dict[str, Any]) -> None:
    with pytest.raises(InternalError):
        encode_commit(data_commit(**values))


def test_a_commit_against_the_rules_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ballpoint.volume.log.commit._contradiction", lambda commit: None)
        data = encode_commit(data_commit(state=STATE))
    with pytest.raises(CorruptError, match="the whole state"):
        decode_commit(data, NAME)


def test_a_volumes_first_is_complete_unless_it_is_given_up() -> None:
    before = Previous(1, 1, DIGEST)
    assert is_complete("data", None) and is_complete("root", before)
    assert not is_complete("data", before) and not is_complete("abandoned", None)


def entries(*rows: tuple[int, int, int, int]) -> bytes:
    """Rows of block, offset, length, pack."""
    return b"".join(ENTRY.pack(*row, 1, bytes(16)) for row in rows)


@pytest.mark.parametrize(
    ("body", "count", "why"),
    [
        (entries((1, 0, 9, 0)), 2, "2 changes"),
        (entries((1, 0, 9, 0)), 1 << 40, "changes"),
        (entries((2, 0, 9, 0), (1, 0, 9, 0)), 2, "block 1 follows that for block 2"),
        (entries((1, 0, 9, 0), (1, 0, 9, 0)), 2, "block 1 follows that for block 1"),
        (entries((BLOCKS_MAX, 0, 9, 0)), 1, f"block {BLOCKS_MAX} "),
        (entries((1, 0, 9, 1)), 1, "pack 1 of 1"),
        (entries((1, 0, 9, 65535)) + bytes(8), 1, "block 1 is said to end at 9 of 8"),
        (entries((1, 4294967295, 9, 65535)) + bytes(8), 1, "block 1 is said to end at"),
    ],
)
def test_entries_that_contradict_themselves_are_damage(body: bytes, count: int, why: str) -> None:
    with pytest.raises(CorruptError, match=why) as error:
        Changes.read(NAME, count, (PACK,), memoryview(body))
    assert NAME.key in error.value.message


@pytest.mark.parametrize(
    "blocks",
    [[(2, None), (1, None)], [(1, None), (1, None)], [(BLOCKS_MAX, None)], [(-1, None)]],
)
def test_changes_are_by_rising_blocks_of_the_disk(blocks: list[tuple[int, None]]) -> None:
    with pytest.raises(InternalError):
        Changes.of(NAME, blocks)


def test_what_is_too_much_for_a_commit_does_not_go_inline() -> None:
    half = Blob(bytes(INLINE_MAX // 2), 1, bytes(16))
    assert len(Changes.of(NAME, [(1, half), (2, half)]).inline) == INLINE_MAX
    with pytest.raises(InternalError):
        Changes.of(NAME, [(1, half), (2, half), (3, encode_blob(b"one more"))])


def test_no_pack_has_the_number_that_means_the_commit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HERE", 2)
    packs = [PackName(VOLUME, 1, upload, bytes(16)) for upload in range(1, 4)]
    changed = [(block, Reference.to(pack, PLACE.piece)) for block, pack in enumerate(packs)]
    assert len(Changes.of(NAME, changed[:2]).packs) == 2
    with pytest.raises(InternalError):
        Changes.of(NAME, changed)


def test_a_change_takes_no_more_memory_than_its_entry() -> None:
    count = 20_000
    body = memoryview(entries(*((block, 0, 9, 0) for block in range(count))))
    tracemalloc.start()
    try:
        kept = Changes.read(NAME, count, (PACK,), body)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == count
    assert used < (ENTRY.size + 1) * count


def text(word: str) -> bytes:
    return bytes([0xA0 + len(word)]) + word.encode()


def raw(content: bytes) -> bytes:
    return b"\xc4" + bytes([len(content)]) + content


def test_the_bytes_of_a_data_commit() -> None:
    body = (
        # block, offset, length, pack, flags, hash
        b"\x05\0\0\0" + b"\x00\x10\0\0" + b"\x01\x02\0\0" + b"\0\0" + b"\0\0" + b"hash of 16 bytes"
        + b"\x06\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0" + b"\0\0" + b"\0\0" + bytes(16)  # a hole
        + b"\x70\x11\x01\0" + b"\0\0\0\0" + b"\x06\0\0\0" + b"\xff\xff" + b"\x01\0"  # inline, as it is
        + bytes.fromhex("915b355f0f595a044090883a046512f9")
        + b"inside"
    )  # fmt: skip
    header = (
        b"\x8c"  # a map of twelve fields
        + text("volume") + raw(VOLUME.bytes)
        + text("lineage") + raw(LINEAGE.bytes)
        + text("epoch") + b"\x02"
        + text("number") + b"\x03"
        + text("put_id") + raw(b"put-id, 16 bytes")
        + text("writer") + text("host")
        + text("time") + b"\xcf\x00\x00\x01\x8b\xcf\xe5\x68\x00"
        + text("previous") + b"\x93\x02\x02" + raw(b"digest of the commit before this")
        + text("kind") + text("data")
        + text("closed") + b"\x92\x02\x07"
        + text("changes") + b"\x03"
        + text("packs") + b"\x91\x94" + raw(VOLUME.bytes) + b"\x02\x07" + raw(b"pack's 128 bits.")
    )  # fmt: skip
    expected = b"BALLPTC\x01" + b"\xef\0\0\0" + body + header
    digest = bytes.fromhex("9f2f4353455e79f75382f0cc4b24321dc80cf481f1997c1cb6362ddc606ad9e5")
    assert encode_commit(data_commit()) == expected + digest


def test_the_bytes_of_a_complete_commit() -> None:
    checkpoint = Checkpoint(id="v1", time=5, comment="before", auto=True, image="old", root=PLACE)
    state = State(
        root=PLACE,
        checkpoints=(checkpoint,),
        image="new",
        size=131072,
        settings={"name": "demo"},
        trashed=None,
        count=9,
        next=4,
    )
    commit = data_commit(kind="checkpoint", changes=Changes(NAME), state=state)
    reference = (
        b"\x98" + raw(VOLUME.bytes) + b"\x02\x07" + raw(b"pack's 128 bits.")  # pack
        + b"\xcd\x10\x00" + b"\xcd\x02\x01" + b"\x00" + raw(b"hash of 16 bytes")  # offset, length, flags, hash
    )  # fmt: skip
    expected = (
        text("changes") + b"\x00"
        + text("packs") + b"\x90"
        + text("state") + b"\x88"
        + text("root") + reference
        + text("checkpoints") + b"\x91\x86"
        + text("id") + text("v1")
        + text("time") + b"\x05"
        + text("comment") + text("before")
        + text("auto") + b"\xc3"
        + text("image") + text("old")
        + text("root") + reference
        + text("image") + text("new")
        + text("size") + b"\xce\x00\x02\x00\x00"
        + text("settings") + b"\x81" + text("name") + text("demo")
        + text("trashed") + b"\xc0"
        + text("count") + b"\x09"
        + text("next") + b"\x04"
    )  # fmt: skip
    digest = bytes.fromhex("6bd6c51b2ccf34490d936f7e5f8854f71efb2cc67bb2dcee2702f050d2d1ae6f")
    assert encode_commit(commit).endswith(expected + digest)
