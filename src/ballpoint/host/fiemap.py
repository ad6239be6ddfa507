"""Where a file's bytes lie on its file system's device: FS_IOC_FIEMAP (include/uapi/linux/fiemap.h)."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from typing import Final

UNKNOWN: Final = 0x2
DELALLOC: Final = 0x4
ENCODED: Final = 0x8
NOT_ALIGNED: Final = 0x100
UNWRITTEN: Final = 0x800

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 0x1
_FIEMAP_EXTENT_LAST = 0x1
# struct fiemap: fm_start fm_length fm_flags fm_mapped_extents fm_extent_count fm_reserved
_HEADER = struct.Struct("=2Q4I")
# struct fiemap_extent: fe_logical fe_physical fe_length fe_reserved64[2] fe_flags fe_reserved[3]
_EXTENT = struct.Struct("=3Q16xI12x")
_EXTENTS_PER_CALL = 8192
_WHOLE_FILE = (1 << 64) - 1

# Offset in the file, offset on the device, length, all in bytes; flags, of which those above and others may be set.
Extent = tuple[int, int, int, int]


def extents(fd: int) -> Iterator[Extent]:
    """Extents of the file `fd` in the order of its bytes; what lies between them is a hole.

    Dirty pages are written first (FIEMAP_FLAG_SYNC), so that nothing is missing. A file that changes meanwhile gives a
    map that it may never have had: ask only for files that nobody writes.

    Raises:
        OSError: EOPNOTSUPP where the file system has no such map.
    """
    answer = bytearray(_HEADER.size + _EXTENTS_PER_CALL * _EXTENT.size)
    start = 0
    while True:
        _HEADER.pack_into(answer, 0, start, _WHOLE_FILE - start, _FIEMAP_FLAG_SYNC, 0, _EXTENTS_PER_CALL, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer)
        mapped = _HEADER.unpack_from(answer)[3]
        if not mapped:
            return
        end = _HEADER.size + mapped * _EXTENT.size
        yield from _EXTENT.iter_unpack(memoryview(answer)[_HEADER.size : end])
        logical, _, length, flags = _EXTENT.unpack_from(answer, end - _EXTENT.size)
        if flags & _FIEMAP_EXTENT_LAST:
            return
        start = logical + length
