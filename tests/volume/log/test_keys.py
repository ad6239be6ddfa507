"""Keys of the log's objects: what they say can be read back, and their order is the protocol's."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import CorruptError, InternalError
from ballpoint.store.store import check_key
from ballpoint.volume.log.keys import (
    NUMBER_MAX,
    CommitName,
    MemberName,
    PackName,
    commits_prefix,
    inv,
    members_prefix,
    packs_prefix,
    parse_commit,
    parse_member,
    parse_pack,
)
from tests.volume.log.strategies import commit_names, member_names, numbers, pack_names

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
LINEAGE = UUID("0f0e0d0c-0b0a-0908-0706-050403020100")


@given(commit_names, pack_names, member_names)
def test_a_key_says_what_it_names(commit: CommitName, pack: PackName, member: MemberName) -> None:
    assert parse_commit(check_key(commit.key)) == commit
    assert parse_pack(check_key(pack.key)) == pack
    assert parse_member(check_key(member.key)) == member


def test_keys_as_the_document_has_them() -> None:
    assert CommitName(VOLUME, 1, 2).key == (
        "volumes/00112233-4455-6677-8899-aabbccddeeff/commits/9999999999999998-9999999999999997"
    )
    assert PackName(VOLUME, 3, 14, bytes(range(16))).key == (
        "volumes/00112233-4455-6677-8899-aabbccddeeff/packs/"
        "0000000000000003-0000000000000014-000102030405060708090a0b0c0d0e0f"
    )
    assert MemberName(LINEAGE, VOLUME).key == (
        "lineages/0f0e0d0c-0b0a-0908-0706-050403020100/members/00112233-4455-6677-8899-aabbccddeeff"
    )


@given(st.lists(st.tuples(numbers, numbers), unique=True))
def test_the_first_key_of_a_listing_is_the_head_and_packs_are_in_order(pairs: list[tuple[int, int]]) -> None:
    commits = [CommitName(VOLUME, *pair) for pair in pairs]
    assert sorted(commits, key=lambda name: name.key) == sorted(commits, reverse=True)
    packs = [PackName(VOLUME, *pair, bytes(16)) for pair in pairs]
    assert sorted(packs, key=lambda name: name.key) == sorted(packs)


@given(commit_names, pack_names, member_names)
def test_keys_are_below_what_is_listed(commit: CommitName, pack: PackName, member: MemberName) -> None:
    assert commit.key.startswith(commits_prefix(commit.volume))
    assert pack.key.startswith(packs_prefix(pack.volume))
    assert member.key.startswith(members_prefix(member.lineage))


@pytest.mark.parametrize("number", [-1, NUMBER_MAX + 1])
def test_a_number_that_would_break_the_order_has_no_key(number: int) -> None:
    with pytest.raises(InternalError):
        inv(number)


COMMIT, PACK = CommitName(VOLUME, 1, 2).key, PackName(VOLUME, 3, 14, bytes(16)).key
MEMBER = MemberName(LINEAGE, VOLUME).key


@pytest.mark.parametrize(
    ("parse", "key"),
    [
        (parse_commit, PACK),
        (parse_commit, COMMIT + "0"),
        (parse_commit, COMMIT + "\n"),
        (parse_commit, "x" + COMMIT),
        (parse_commit, COMMIT[:-1] + "x"),
        (parse_commit, COMMIT[:-1] + "٣"),  # a digit, and not one of ours
        (parse_commit, COMMIT.replace("aabbccddeeff", "AABBCCDDEEFF")),
        (parse_commit, f"{commits_prefix(VOLUME)}{inv(1)}-{inv(0)}"),
        (parse_commit, f"{commits_prefix(VOLUME)}{inv(0)}-{inv(1)}"),
        (parse_pack, COMMIT),
        (parse_pack, PACK[:-1]),
        (parse_pack, PACK.replace("0000000000000014", "0000000000000000")),
        (parse_pack, PACK.replace("0000000000000003", "0000000000000000")),
        (parse_member, PACK),
        (parse_member, MEMBER + "/"),
        (parse_member, MEMBER.replace("-", "")),
    ],
)
def test_what_is_no_key_of_its_kind_is_refused_by_name(parse: object, key: str) -> None:
    assert callable(parse)
    with pytest.raises(CorruptError) as error:
        parse(key)
    assert repr(key) in error.value.message
