"""Maps: as a dict would have it, through being stored, let go of and loaded; and nothing comes out of a damaged one."""

from __future__ import annotations

import tracemalloc
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ballpoint.core.errors import BallpointError, CorruptError, InternalError
from ballpoint.volume.log.blob import Blob, Inline, Piece, Reference, encode_blob
from ballpoint.volume.log.changes import BLOCKS_MAX, PAGE_BLOCKS, PAGES_MAX, Change, Changes
from ballpoint.volume.log.keys import NUMBER_MAX, CommitName, PackName
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.page import (
    BLOCK,
    PACK,
    PAGE,
    PAGE_LIMIT,
    ROOT_LIMIT,
    Page,
    decode_root,
    describe_page,
    encode_root,
)
from tests.volume.log.damage import cut, flipped
from tests.volume.log.strategies import commit_names, pieces, references
from tests.volume.log.test_blob import UNUSED_BIT

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
KEY = "some/key"
NAME = CommitName(VOLUME, 2, 3)
HOME = PackName(VOLUME, 2, 7, b"pack's 128 bits.")
FORKED = PackName(UUID(int=5), 1, 1, b"another 128 bits")
PIECE = Piece(4096, 513, 0, b"hash of 16 bytes")

# Few blocks, so that they meet; the first and the last there can be among them.
blocks = st.sampled_from([0, 1, PAGE_BLOCKS - 1, PAGE_BLOCKS, 5 * PAGE_BLOCKS + 7, BLOCKS_MAX - 1])
changed_blocks = st.dictionaries(blocks, references | st.none(), min_size=1)


def placed(blob: Blob, offset: int = 0, pack: PackName = HOME) -> Reference:
    return Reference.to(pack, Piece(offset, len(blob.stored), blob.flags, blob.hash))


class Shelf:
    """Where pages and roots are put, in place of a store."""

    def __init__(self) -> None:
        self._stored: dict[Reference, bytes] = {}

    def put(self, content: bytes) -> Reference:
        blob = encode_blob(content)
        at = placed(blob, len(self._stored))
        self._stored[at] = blob.stored
        return at

    def get(self, at: Reference) -> bytes:
        return self._stored[at]

    def put_pages(self, mapped: Map) -> None:
        for number in mapped.dirty():
            content = mapped.encode_page(number)
            mapped.mark_stored(number, self.put(content) if content else None)

    def load(self, mapped: Map, wanted: list[int]) -> None:
        for number, at in mapped.missing(wanted).items():
            mapped.load(number, self.get(at))


class MapIsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.map = Map()
        self.expected: dict[int, Reference | Inline] = {}

    def change(self, block: int, place: Reference | Inline | None) -> None:
        self.expected.pop(block, None)
        if place is not None:
            self.expected[block] = place

    @rule(block=blocks, place=references | st.none() | st.builds(Inline, commit_names, pieces))
    def put(self, block: int, place: Reference | Inline | None) -> None:
        self.shelf.load(self.map, [block])
        self.map[block] = place
        self.change(block, place)

    @rule(changed=changed_blocks)
    def apply(self, changed: dict[int, Reference | None]) -> None:
        changes = Changes.of(NAME, sorted(changed.items(), key=lambda each: each[0]))
        self.shelf.load(self.map, list(changes.blocks()))
        self.map.apply(changes)
        for block, place in changes:
            self.change(block, place)

    @rule()
    def move_inline_and_store(self) -> None:
        for block, place in list(self.map.inline()):
            moved = Reference.to(HOME, place.piece) if place else None
            self.map[block] = moved
            self.change(block, moved)
        self.shelf.put_pages(self.map)
        assert not self.map.dirty()

    @rule()
    def evict(self) -> None:
        self.map.evict()

    @rule()
    def open_again(self) -> None:
        self.move_inline_and_store()
        root = self.shelf.put(self.map.encode_root())
        self.map = Map.open(self.shelf.get(root), root)
        assert set(self.map.pages) == {block // PAGE_BLOCKS for block in self.expected}

    @rule(block=blocks)
    def look(self, block: int) -> None:
        self.shelf.load(self.map, [block])
        assert self.map[block] == self.expected.get(block)

    @invariant()
    def has_all(self) -> None:
        numbers = {block // PAGE_BLOCKS for block in self.expected}
        if not self.map.missing(self.expected):
            found = {block: place for number in numbers for block, place in self.map.page(number)}
            assert found == self.expected
            held = set[PackName | CommitName]().union(*(self.map.holders(number) for number in numbers))
            assert held == {place.holder for place in self.expected.values()}

    def teardown(self) -> None:
        self.open_again()
        self.shelf.load(self.map, list(self.expected))
        self.has_all()


TestMapIsADict = MapIsADict.TestCase
TestMapIsADict.settings = settings(stateful_step_count=30)


@given(st.dictionaries(st.integers(0, PAGES_MAX - 1), references))
def test_a_root_comes_back_as_it_was(pages: dict[int, Reference]) -> None:
    assert decode_root(encode_root(pages), KEY) == pages


@given(st.dictionaries(st.integers(0, PAGE_BLOCKS - 1), references))
def test_a_page_comes_back_as_it_was(places: dict[int, Reference]) -> None:
    page = Page()
    for index, place in places.items():
        page[index] = place
    content = page.encode()
    assert bool(content) == bool(places)
    if places:
        found = Page.decode(content, 3, KEY)
        assert dict(found) == places
        assert found.encode() == content


def full_page(packs: int) -> Page:
    """Each block in another place, in so many packs."""
    page = Page()
    for index in range(PAGE_BLOCKS):
        pack = PackName(VOLUME, 1, 1 + index % packs, bytes(16))
        page[index] = Reference.to(pack, Piece(index, 100, 0, index.to_bytes(16, "little")))
    return page


def test_limits_are_what_the_largest_can_have() -> None:
    assert len(full_page(PAGE_BLOCKS).encode()) == PAGE_LIMIT
    packs = [PackName(VOLUME, 1, upload, bytes(16)) for upload in range(1, PAGES_MAX + 1)]
    pages = {number: Reference.to(pack, PIECE) for number, pack in enumerate(packs)}
    content = encode_root(pages)
    assert len(content) == ROOT_LIMIT
    same = decode_root(content, KEY) == pages
    assert same  # and no comparison of 65,535 references in words


def test_a_block_takes_at_most_32_bytes_in_memory_and_in_a_page() -> None:
    assert BLOCK.size <= 32
    content = full_page(1).encode()
    assert len(content) <= 32 * PAGE_BLOCKS
    tracemalloc.start()
    try:
        page = Page.decode(content, 0, KEY)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used <= 32 * PAGE_BLOCKS
    assert len(page.holders()) == 1


def test_a_page_that_is_changed_for_ever_does_not_grow() -> None:
    page = full_page(PAGE_BLOCKS)
    expected = dict(page)
    tracemalloc.start()
    try:
        for upload in range(1, 10 * PAGE_BLOCKS):
            expected[7] = Reference.to(PackName(VOLUME, 2, upload, bytes(16)), PIECE)
            page[7] = expected[7]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dict(page) == expected
    assert used < 4 * PAGE_BLOCKS * PACK.size


def test_a_pack_is_not_found_across_two_others() -> None:
    # In memory the names stand one behind the other: of these, the third has the bytes of the first two, one byte on.
    first = PackName(UUID(bytes=b"\1" + bytes(range(15))), 3 << 8, 4 << 8, b"\0" + bytes(range(15)))
    second = PackName(VOLUME, 1, 1, bytes(16))
    across = PackName(UUID(bytes=bytes(range(15)) + b"\0"), 3, 4, bytes(range(15)) + b"\1")
    for order in ((first, second, across), (across, first, second, across)):
        page = Page()
        for index, pack in enumerate(order):
            page[index] = Reference.to(pack, PIECE)
        assert [place.holder for _, place in page] == list(order)
        assert Page.decode(page.encode(), 3, KEY).encode() == page.encode()


def test_what_is_missing_is_neither_read_nor_changed() -> None:
    shelf, mapped = Shelf(), Map()
    there = PAGE_BLOCKS + 5
    mapped[there] = Reference.to(HOME, PIECE)
    shelf.put_pages(mapped)
    mapped.evict()
    assert set(mapped.missing([0, there, there + 1])) == {1}
    changes = Changes.of(NAME, [(0, Reference.to(HOME, PIECE)), (there + 1, None)])
    for use in (
        lambda: mapped[there],
        lambda: mapped.__setitem__(there, None),
        lambda: list(mapped.page(1)),
        lambda: mapped.holders(1),
        lambda: mapped.encode_page(1),
        lambda: mapped.apply(changes),
    ):
        with pytest.raises(InternalError):
            use()
    assert mapped.dirty() == [] and mapped[0] is None
    shelf.load(mapped, [there])
    assert mapped.missing([0, there, there + 1]) == {}
    mapped.apply(changes)
    assert mapped[0] == mapped[there] == Reference.to(HOME, PIECE)


def test_a_page_that_was_emptied_is_none_of_the_roots() -> None:
    shelf, mapped = Shelf(), Map()
    mapped[5] = mapped[PAGE_BLOCKS] = Reference.to(HOME, PIECE)
    shelf.put_pages(mapped)
    mapped[5] = None
    shelf.put_pages(mapped)
    assert set(decode_root(mapped.encode_root(), KEY)) == {1}
    assert mapped.missing([5]) == {} and mapped[5] is None


def test_a_page_that_is_loaded_twice_keeps_its_changes() -> None:
    shelf, mapped = Shelf(), Map()
    mapped[5] = Reference.to(HOME, PIECE)
    shelf.put_pages(mapped)
    mapped[6] = Reference.to(FORKED, PIECE)
    mapped.load(0, shelf.get(mapped.pages[0]))
    assert mapped[6] == Reference.to(FORKED, PIECE)


def test_dirty_pages_are_not_let_go_of_and_have_no_root() -> None:
    mapped = Map()
    mapped[5] = Reference.to(HOME, PIECE)
    mapped.evict()
    assert mapped[5] == Reference.to(HOME, PIECE)
    with pytest.raises(InternalError):
        mapped.encode_root()


def test_a_page_that_was_changed_meanwhile_is_not_taken_for_stored() -> None:
    shelf, mapped = Shelf(), Map()
    mapped[5] = Reference.to(HOME, PIECE)
    with pytest.raises(InternalError):
        mapped.mark_stored(0, shelf.put(b"never asked for"))
    content = mapped.encode_page(0)
    for at in (shelf.put(b"another"), None):
        with pytest.raises(InternalError):
            mapped.mark_stored(0, at)
    mapped[6] = Reference.to(HOME, PIECE)
    with pytest.raises(InternalError):
        mapped.mark_stored(0, shelf.put(content))
    assert mapped.dirty() == [0]


def test_a_page_never_refers_to_a_commit() -> None:
    mapped = Map()
    mapped[5] = Inline(NAME, PIECE)
    with pytest.raises(InternalError):
        mapped.encode_page(0)
    assert list(mapped.inline()) == [Change(5, Inline(NAME, PIECE))]
    mapped[5] = Reference.to(HOME, PIECE)
    assert list(mapped.inline()) == [] and mapped.encode_page(0)


@pytest.mark.parametrize("block", [-1, BLOCKS_MAX])
def test_a_block_that_no_disk_has_is_refused(block: int) -> None:
    with pytest.raises(InternalError):
        Map()[block] = None


def test_every_flipped_bit_and_every_cut_of_what_is_stored_is_found() -> None:
    page = Page()
    page[3] = Reference.to(HOME, PIECE)
    for content, opened in ((page.encode(), "page"), (encode_root({3: Reference.to(HOME, PIECE)}), "root")):
        blob = encode_blob(content)
        at = placed(blob)
        damage = [bad for position, bad in enumerate(flipped(blob.stored)) if blob.flags or position != UNUSED_BIT]
        for bad in (*damage, *cut(blob.stored)):
            mapped = Map({3: at})
            with pytest.raises(CorruptError) as error:
                mapped.load(3, bad) if opened == "page" else Map.open(bad, at)
            assert HOME.key in error.value.message
            assert (describe_page(3) if opened == "page" else "the whole disk") in error.value.message
            assert set(mapped.missing([3 * PAGE_BLOCKS])) == {3}


def pack_row(epoch: int = 1, upload: int = 1) -> bytes:
    return PACK.pack(bytes(16), epoch, upload, bytes(16))


BITS_OF_ONE = b"\x02" + bytes(PAGE_BLOCKS // 8 - 1)
ROW = BLOCK.pack(0, 9, 0, 0, bytes(16))


def test_a_page_that_contradicts_itself_is_damage() -> None:
    good = b"\x01\0" + pack_row() + BITS_OF_ONE + ROW
    assert [index for index, _ in Page.decode(good, 3, KEY)] == [1]
    for bad in (
        b"",
        b"\x01",
        b"\x02\0" + pack_row() + BITS_OF_ONE,
        b"\x01\0" + pack_row() + BITS_OF_ONE[:-1],
        b"\x01\0" + pack_row() + BITS_OF_ONE,
        good + ROW,
        good + b"\0",
        b"\x01\0" + pack_row() + BITS_OF_ONE + BLOCK.pack(0, 0, 0, 0, bytes(16)),
        b"\x01\0" + pack_row() + BITS_OF_ONE + BLOCK.pack(0, 9, 1, 0, bytes(16)),
        b"\x01\0" + pack_row(epoch=0) + BITS_OF_ONE + ROW,
        b"\x01\0" + pack_row(upload=NUMBER_MAX + 1) + BITS_OF_ONE + ROW,
    ):
        with pytest.raises(CorruptError) as error:
            Page.decode(bad, 3, KEY)
        assert KEY in error.value.message and describe_page(3) in error.value.message


def page_row(number: int = 1, pack: int = 0, length: int = 9) -> bytes:
    return PAGE.pack(number, pack, 0, length, 0, bytes(16))


def test_a_root_that_contradicts_itself_is_damage() -> None:
    head = b"\x01\0" + pack_row()
    assert set(decode_root(head + page_row(1) + page_row(2), KEY)) == {1, 2}
    for bad in (
        b"",
        head[:-1],
        head + page_row()[:-1],
        head + page_row(1) + page_row(1),
        head + page_row(2) + page_row(1),
        head + page_row(PAGES_MAX),
        head + page_row(pack=1),
        head + page_row(length=0),
    ):
        with pytest.raises(CorruptError) as error:
            decode_root(bad, KEY)
        assert KEY in error.value.message and "the whole disk" in error.value.message


@given(st.binary(max_size=400))
def test_no_content_does_anything_but_be_read_or_refused(content: bytes) -> None:
    for read in (lambda: decode_root(content, KEY), lambda: Page.decode(content, 3, KEY)):
        try:
            read()
        except BallpointError as error:
            assert isinstance(error, CorruptError) and KEY in error.message


HOME_ROW = VOLUME.bytes + b"\x02" + bytes(7) + b"\x07" + bytes(7) + b"pack's 128 bits."
FORKED_ROW = bytes(15) + b"\x05" + b"\x01" + bytes(7) + b"\x01" + bytes(7) + b"another 128 bits"


def test_the_bytes_of_a_page() -> None:
    page = Page()
    page[1023] = Reference.to(HOME, PIECE)
    page[9] = Reference.to(FORKED, Piece(1, 2, 1, b"another's hash.."))
    assert page.encode() == (
        b"\x02\0"  # two packs: volume, epoch, upload, id of each, in the order in which blocks name them
        + FORKED_ROW + HOME_ROW
        + b"\0\x02" + bytes(125) + b"\x80"  # bits of the blocks 9 and 1023
        # offset, length, pack, flags, hash
        + b"\x01\0\0\0" + b"\x02\0\0\0" + b"\0\0" + b"\x01\0" + b"another's hash.."
        + b"\0\x10\0\0" + b"\x01\x02\0\0" + b"\x01\0" + b"\0\0" + b"hash of 16 bytes"
    )  # fmt: skip


def test_the_bytes_of_a_root() -> None:
    assert encode_root({258: Reference.to(HOME, PIECE), 3: Reference.to(FORKED, PIECE)}) == (
        b"\x02\0" + FORKED_ROW + HOME_ROW
        # page, pack, offset, length, flags, hash
        + b"\x03\0\0\0" + b"\0\0" + b"\0\x10\0\0" + b"\x01\x02\0\0" + b"\0\0" + b"hash of 16 bytes"
        + b"\x02\x01\0\0" + b"\x01\0" + b"\0\x10\0\0" + b"\x01\x02\0\0" + b"\0\0" + b"hash of 16 bytes"
    )  # fmt: skip
    assert encode_root({}) == b"\0\0"
