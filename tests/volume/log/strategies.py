"""What the log's structures are made of, at random."""

from __future__ import annotations

from typing import get_args
from uuid import UUID

from hypothesis import strategies as st

from ballpoint.volume.log import commit
from ballpoint.volume.log.blob import HASH_BYTES, PLAIN, ZSTD, Blob, Piece, Reference, encode_blob
from ballpoint.volume.log.changes import BLOCKS_MAX, Changes
from ballpoint.volume.log.commit import Checkpoint, Closed, Commit, Previous, State, is_complete
from ballpoint.volume.log.keys import ID_BYTES, NUMBER_MAX, CommitName, MemberName, PackName

numbers = st.integers(1, NUMBER_MAX)
uuids = st.builds(UUID, int=st.integers(0, (1 << 128) - 1))
identities = st.binary(min_size=ID_BYTES, max_size=ID_BYTES)
commit_names = st.builds(CommitName, uuids, numbers, numbers)
pack_names = st.builds(PackName, uuids, numbers, numbers, identities)
member_names = st.builds(MemberName, uuids, uuids)
pieces = st.builds(
    Piece,
    st.integers(0, (1 << 32) - 1),
    st.integers(1, (1 << 32) - 1),
    st.sampled_from([ZSTD, PLAIN]),
    st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES),
)
references = st.builds(Reference.to, pack_names, pieces)
blobs = st.binary(min_size=1, max_size=200).map(encode_blob)
times = st.integers(-(1 << 63), (1 << 63) - 1)
texts = st.text(max_size=20)
settings = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | times | texts | st.binary(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
closed = st.builds(Closed, st.integers(0, NUMBER_MAX), st.integers(0, NUMBER_MAX))
checkpoints = st.builds(
    Checkpoint, id=texts, time=times, comment=texts, auto=st.booleans(), image=texts, root=references
)
states = st.builds(
    State,
    root=references,
    checkpoints=st.lists(checkpoints, max_size=3).map(tuple),
    image=texts,
    size=st.integers(0, 1 << 42),
    settings=settings,
    trashed=st.none() | times,
    count=numbers,
)


@st.composite
def changes(draw: st.DrawFn, name: CommitName) -> Changes:
    packs = draw(st.lists(pack_names, min_size=1, max_size=3))
    there: st.SearchStrategy[Reference | Blob | None] = st.one_of(
        st.none(), blobs, st.builds(Reference.to, st.sampled_from(packs), pieces)
    )
    blocks = draw(st.dictionaries(st.integers(0, BLOCKS_MAX - 1), there, max_size=8))
    return Changes.of(name, sorted(blocks.items(), key=lambda each: each[0]))


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    """Any commit that may be."""
    kind: commit.Kind = draw(st.sampled_from(get_args(commit.Kind)))
    volume, lineage, epoch, number = (
        draw(uuids),
        draw(uuids),
        draw(st.just(1) | numbers),
        draw(st.sampled_from([1, 2, NUMBER_MAX])),
    )
    digest = draw(st.binary(min_size=32, max_size=32))
    previous = Previous(epoch, number - 1, digest) if number > 1 else Previous(epoch - 1, draw(numbers), digest)
    name = CommitName(volume, epoch, number)
    first = epoch == number == 1
    complete = is_complete(kind, None if first else previous)
    return Commit(
        name=name,
        lineage=lineage,
        put_id=draw(identities),
        writer=draw(texts),
        time=draw(times),
        previous=None if first else previous,
        kind=kind,
        closed=draw(closed),
        changes=draw(changes(name)) if kind == "data" and not complete else Changes(name),
        settings=draw(settings) if kind == "settings" and not complete else None,
        state=draw(states) if complete else None,
    )
