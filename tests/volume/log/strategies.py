"""What the log's structures are made of, at random."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from ballpoint.volume.log.blob import HASH_BYTES, PLAIN, ZSTD, Piece, Reference
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
