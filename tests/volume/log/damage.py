"""Damage, of every kind that a store can do to an object."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from ballpoint.volume.log.envelope import DIGEST_BYTES


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


def later(data: bytes) -> bytes:
    """An object as the next version would have made it."""
    changed = bytearray(data[:-DIGEST_BYTES])
    changed[7] += 1  # docs/volume-format.md: the version is there in all of them
    return bytes(changed) + blake3(changed).digest()
