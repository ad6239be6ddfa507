"""What the superblock of an ext4 file system says, read from its image (Documentation/filesystems/ext4/super.rst)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ballpoint.core.errors import CorruptError

_AT, _SIZE = 1024, 1024
# s_magic at 0x38, s_state after it, s_feature_incompat at 0x60.
_MAGIC: Final = 0xEF53
_MAGIC_AND_STATE = struct.Struct("<HH")
_MAGIC_AT, _INCOMPAT_AT = 0x38, 0x60
_STATE_ERROR, _INCOMPAT_RECOVER = 0x2, 0x4


class DamagedDiskError(CorruptError):
    """A disk here is damaged; what the store has of it need not be."""


@dataclass(frozen=True)
class Superblock:
    """
    Attributes:
        needs_recovery: the journal holds what the rest lacks.
        errors: the kernel has met damage in it since it was checked last.
    """

    needs_recovery: bool
    errors: bool


def read_superblock(image: Path) -> Superblock:
    """
    Raises:
        DamagedDiskError: `image` is no such file system.
    """
    with image.open("rb") as file:
        found = os.pread(file.fileno(), _SIZE, _AT)
    if len(found) < _SIZE:
        raise DamagedDiskError(f"{image} is damaged: it ends before its superblock does")
    magic, state = _MAGIC_AND_STATE.unpack_from(found, _MAGIC_AT)
    if magic != _MAGIC:
        raise DamagedDiskError(f"{image} is damaged: it has no superblock of ext4")
    (incompatible,) = struct.unpack_from("<I", found, _INCOMPAT_AT)
    return Superblock(bool(incompatible & _INCOMPAT_RECOVER), bool(state & _STATE_ERROR))
