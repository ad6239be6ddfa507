"""What the running kernel says of its own types: /sys/kernel/btf/vmlinux (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ballpoint.core.errors import UnavailableError

STRUCT: Final = 4
TYPEDEF: Final = 8

_VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
# struct btf_header: magic version flags hdr_len type_off type_len str_off str_len
_HEADER = struct.Struct("=HBB5I")
# struct btf_type: name_off info size_or_type; info is vlen (16 bits), kind (bits 24 to 28), kind_flag (bit 31)
_TYPE = struct.Struct("=3I")
# struct btf_member: name_off type offset; the offset is in bits
_MEMBER = struct.Struct("=3I")
# Bytes behind a type, by kind: once, and for each of its vlen parts. INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR,
# DATASEC, DECL_TAG, ENUM64; the other kinds have none.
_ONCE = {1: 4, 3: 12, 14: 4, 17: 4}
_EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_LAST_KIND = 19


@dataclass(frozen=True)
class KernelType:
    """One named type of the kernel.

    Attributes:
        id: by which other types, and bpf(2), refer to it.
        offsets: of a structure, where each named member begins, in bytes from its start.
    """

    id: int
    offsets: dict[str, int] = field(default_factory=dict)


def kernel_types(wanted: Iterable[tuple[int, str]]) -> dict[tuple[int, str], KernelType]:
    """Look up types of the running kernel. Reads them all: a tenth of a second.

    Args:
        wanted: (kind, name) of each.

    Raises:
        UnavailableError: the kernel does not describe itself, in a way that is known here, or has no such type.
    """
    try:
        data = _VMLINUX.read_bytes()
    except FileNotFoundError as error:
        hint = "a kernel with CONFIG_DEBUG_INFO_BTF has it"
        raise UnavailableError("the kernel does not describe its types", hint=hint) from error
    magic, _, _, header, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise UnavailableError(f"{_VMLINUX} does not begin as it should")
    strings = data[header + string_offset : header + string_offset + string_length]
    wanted = set(wanted)
    # A name is in the strings once; one that is not there at all must not become 0, which is that of unnamed types.
    places = [(strings.find(f"\0{name}\0".encode()), (kind, name)) for kind, name in wanted]
    names = {place + 1: each for place, each in places if place >= 0}
    found = {}
    at, end, number = header + type_offset, header + type_offset + type_length, 0
    while at < end:
        number += 1  # 0 is void
        name, info, _ = _TYPE.unpack_from(data, at)
        kind, parts = info >> 24 & 0x1F, info & 0xFFFF
        if kind > _LAST_KIND:
            raise UnavailableError(f"the kernel describes a type by kind {kind}, which is not known here")
        at += _TYPE.size
        if name in names and names[name][0] == kind:
            offsets = _offsets(data, at, parts, strings) if kind == STRUCT else {}
            found[names[name]] = KernelType(number, offsets)
        at += _ONCE.get(kind, 0) + _EACH.get(kind, 0) * parts
    if missing := wanted - found.keys():
        raise UnavailableError(f"the kernel has no {', '.join(name for _, name in sorted(missing))}")
    return found


def _offsets(data: bytes, at: int, parts: int, strings: bytes) -> dict[str, int]:
    offsets = {}
    for part in range(parts):
        name, _, bits = _MEMBER.unpack_from(data, at + part * _MEMBER.size)
        offsets[strings[name : strings.index(b"\0", name)].decode()] = (bits & 0xFFFFFF) // 8
    return offsets
