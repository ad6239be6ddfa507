"""What others may send, for tests that try any of it."""

from __future__ import annotations

import json

from hypothesis import strategies as st

# Lone surrogates, too: an escape in JSON can spell them. And whole numbers that are more than a float can hold.
TEXT = st.text(st.characters(exclude_categories=()))
LEAVES = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
# Deeper than a parser goes that calls itself.
DEEP = st.sampled_from([b"[", b'{"a":']).map(lambda opening: opening * 20_000)
BYTES = st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | DEEP
