"""A bounded log in a memfd: written by the agent, read by the node at any time, even when the agent is dead.

Format (little endian): 8 bytes `BPRING1\\n`, u64 number of bytes ever written, then the ring; byte `i` of the log lies
at offset 16 + i mod (size - 16). The writer fills the ring before it raises the count. The reader trusts nothing:
whoever took over an agent writes what he likes.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct

MAGIC = b"BPRING1\n"
HEADER = struct.Struct("<8sQ")
SIZE = 256 * 1024

# linux/fcntl.h, linux/memfd.h: Python lacks some of them before 3.14.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 0x1, 0x2, 0x4


def create() -> int:
    """A new empty ring, sealed against resizing so that no holder can make a reader fault. The caller owns it."""
    fd = os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, HEADER.pack(MAGIC, 0), 0)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
    return fd


def read(fd: int) -> bytes:
    """What the ring holds, oldest first; from the first whole line where older ones were overwritten."""
    data = os.pread(fd, SIZE, 0)
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


class RingHandler(logging.Handler):
    """Writes log records to the ring behind `fd`, one line each, prefixed with the time and the logger's name."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._map = mmap.mmap(fd, SIZE)
        self.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03dZ %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a bad log call must not end the agent; it is logged as such
            line = f"unprintable log record {record.msg!r}: {error!r}"
        self.write(line.encode(errors="replace") + b"\n")

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
