"""Damage, of every kind that a store can do to an object."""

from __future__ import annotations

from collections.abc import Iterator


def flipped(data: bytes) -> Iterator[bytes]:
    """`data` with one bit turned over: once for each of its bits."""
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield bytes(changed)


def cut(data: bytes) -> Iterator[bytes]:
    """`data` without its end, or without its beginning, for every length; and with something more."""
    for length in range(len(data)):
        yield data[:length]
        yield data[length + 1 :]
    yield data + b"\0"
    yield data + data
