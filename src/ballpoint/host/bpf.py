"""bpf(2): calls and instructions, and a policy which devices a cgroup's processes may open."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from ballpoint.host.libc import syscall

_SYS_BPF = 321 if os.uname().machine == "x86_64" else 280
_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8
_BPF_PROG_TYPE_CGROUP_DEVICE = 15
_BPF_CGROUP_DEVICE = 6
_BPF_DEVCG_DEV_CHAR = 2

# Instruction codes of include/uapi/linux/bpf.h and bpf_common.h.
_LDX_W, _AND_K, _JNE_K, _MOV_K, _EXIT = 0x61, 0x57, 0x55, 0xB7, 0x95
_R0, _CTX, _TYPE, _MAJOR, _MINOR = 0, 1, 2, 3, 4


def instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One instruction (struct bpf_insn): a code, two registers, an offset and a constant."""
    return struct.pack("<BBhi", code, src << 4 | dst, offset, immediate)


def device_program(allowed: Iterable[tuple[int, int | None]]) -> bytes:
    """Instructions that allow the character devices `allowed`, and nothing else.

    Args:
        allowed: (major, minor); minor None allows every minor.

    The context is struct bpf_cgroup_dev_ctx: u32 access_type (access << 16 | type), u32 major, u32 minor.
    """
    allow = instruction(_MOV_K, _R0, immediate=1) + instruction(_EXIT)
    deny = instruction(_MOV_K, _R0, immediate=0) + instruction(_EXIT)
    rules = b""
    for major, minor in allowed:
        if minor is None:
            rules += instruction(_JNE_K, _MAJOR, offset=2, immediate=major) + allow
        else:
            rules += instruction(_JNE_K, _MAJOR, offset=3, immediate=major)
            rules += instruction(_JNE_K, _MINOR, offset=2, immediate=minor) + allow
    only_characters = instruction(_JNE_K, _TYPE, offset=len(rules) // 8, immediate=_BPF_DEVCG_DEV_CHAR)
    load = instruction(_LDX_W, _TYPE, _CTX, 0) + instruction(_LDX_W, _MAJOR, _CTX, 4)
    load += instruction(_LDX_W, _MINOR, _CTX, 8) + instruction(_AND_K, _TYPE, immediate=0xFFFF)
    return load + only_characters + rules + deny


def attach_device_policy(cgroup: int, allowed: Iterable[tuple[int, int | None]]) -> None:
    """Let processes of the v2 cgroup behind `cgroup` and below it open only the `allowed` character devices.

    The policy lives as long as the cgroup and replaces a former one; no descendant can loosen it.
    """
    code = device_program(allowed)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(65536)
    # union bpf_attr for BPF_PROG_LOAD: type, count, instructions, licence, log level, log size, log buffer
    load = struct.pack(
        "=IIQQIIQ",
        _BPF_PROG_TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1,
        len(log),
        ctypes.addressof(log),
    )
    program = bpf(_BPF_PROG_LOAD, load)
    try:
        bpf(_BPF_PROG_ATTACH, struct.pack("=IIII", cgroup, program, _BPF_CGROUP_DEVICE, 0))
    finally:
        os.close(program)


def bpf(command: int, attributes: bytes) -> int:
    """Make the system call with a union bpf_attr that begins with `attributes`; the rest is zeros."""
    buffer = ctypes.create_string_buffer(attributes, 128)
    return syscall(_SYS_BPF, command, ctypes.byref(buffer), len(buffer), what=f"bpf {command}")
