"""A bounded log in a memfd: written by the agent, read by the node at any time, even when the agent is dead.

Two rings lie behind one another, so that what is inside cannot wash out what the agent says: 0 has the agent's own
lines, 1 those of the container. Format of each (little endian): 8 bytes `BPRING1\\n`, u64 number of bytes ever written,
then the ring; byte `i` of the log lies at offset 16 + i mod (size - 16). The writer fills the ring before it raises the
count. The reader trusts nothing: whoever took over an agent writes what he likes.

A line is a moment, its source, a colon, and text. Only the agent writes moment and source, and text holds no control
characters, so nothing that is logged can pass for a line of another source.
"""

from __future__ import annotations

import fcntl
import heapq
import logging
import mmap
import os
import struct
from datetime import UTC, datetime

MAGIC = b"BPRING1\n"
HEADER = struct.Struct("<8sQ")
# Of each ring.
SIZE = 256 * 1024
AGENT, CONTAINER = 0, 1
# Characters of a line's text; what is longer goes on in the next line.
LINE = 1024

# linux/fcntl.h, linux/memfd.h: Python lacks some of them before 3.14.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 0x1, 0x2, 0x4
_STAMP = len("2026-01-01T00:00:00.000Z")


def create() -> int:
    """New empty rings, sealed against resizing so that no holder can make a reader fault. The caller owns them."""
    fd = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2 * SIZE)
    for ring in (AGENT, CONTAINER):
        os.pwrite(fd, HEADER.pack(MAGIC, 0), ring * SIZE)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
    return fd


def read(fd: int) -> bytes:
    """What the rings hold, in order of time; of each from the first whole line where older ones were overwritten."""
    # In the same millisecond the container is first: the agent says that it has ended after its last words.
    rings = [_read(fd, ring).splitlines(keepends=True) for ring in (CONTAINER, AGENT)]
    merged: list[bytes] = list(heapq.merge(*rings, key=lambda line: line[:_STAMP]))
    return b"".join(merged)


def _read(fd: int, number: int) -> bytes:
    data = os.pread(fd, SIZE, number * SIZE)
    if len(data) < SIZE:
        return b""
    magic, written = HEADER.unpack_from(data)
    ring = data[HEADER.size :]
    if magic != MAGIC:
        return b""
    if written <= len(ring):
        return ring[:written]
    at = written % len(ring)
    return (ring[at:] + ring[:at]).partition(b"\n")[2]


def lines(moment: datetime, source: str, text: str) -> bytes:
    """`text` as lines of a log, each with its moment and source. What is not to be printed is escaped."""
    start = f"{moment.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z {source}: "
    parts = (
        line[at : at + LINE] for line in map(_printable, text.split("\n")) for at in range(0, len(line) or 1, LINE)
    )
    return (start + f"\n{start}".join(parts) + "\n").encode()


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    # Not by a codec: those are modules, and in an instance there is nothing to import from.
    return "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in line)


class Ring:
    """The writing end of one ring.

    Raises:
        ValueError: the log was made by an earlier version and has no such ring.
    """

    def __init__(self, fd: int, number: int) -> None:
        self._map = mmap.mmap(fd, SIZE, offset=number * SIZE)

    def write(self, data: bytes) -> None:
        """Append `data`, cut to the ring's size."""
        size = SIZE - HEADER.size
        data = data[-size:]
        _, written = HEADER.unpack_from(self._map)
        at = written % size
        first = data[: size - at]
        self._map[HEADER.size + at : HEADER.size + at + len(first)] = first
        rest = data[len(first) :]
        self._map[HEADER.size : HEADER.size + len(rest)] = rest
        HEADER.pack_into(self._map, 0, MAGIC, written + len(data))


class RingHandler(logging.Handler):
    """Writes log records to the agent's ring behind `fd`; the source is the logger's name."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._ring = Ring(fd, AGENT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - a bad log call must not end the agent; it is logged as such
            text = f"unprintable log record {record.msg!r}: {error!r}"
        self._ring.write(lines(datetime.fromtimestamp(record.created, UTC), record.name, text))
