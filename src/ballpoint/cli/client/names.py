"""Names for sprites nobody named."""

from __future__ import annotations

from ballpoint.core import ids

_FIRST = (
    "amber",
    "brave",
    "calm",
    "clear",
    "fleet",
    "green",
    "keen",
    "lucid",
    "quick",
    "quiet",
    "ruby",
    "swift",
    "warm",
)
_SECOND = (
    "birch",
    "brook",
    "cloud",
    "comet",
    "delta",
    "fern",
    "heron",
    "lake",
    "maple",
    "otter",
    "pine",
    "reed",
    "wren",
)


def new_name() -> str:
    """Two words and four digits, such as `quiet-heron-3f2a`."""
    number = int(ids.new_instance_id(), 16)
    first, second = _FIRST[number % len(_FIRST)], _SECOND[number // 64 % len(_SECOND)]
    return f"{first}-{second}-{number & 0xFFFF:04x}"
