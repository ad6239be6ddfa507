"""Noting down, in the kernel, which parts of loop devices are written.

A program at the tracepoint block_rq_issue, which every request of every device passes, sets bits in a bitmap of the
request's device, where that has one. It is attached to the raw tracepoint, with the kernel's own types
(BPF_TRACE_RAW_TP): programs that perf attaches are skipped while another one, or any bpf(2) on a map, is under way on
the processor, and nobody is told. One of this kind is skipped only while it is under way itself, and that is counted.

Requests are noted before they are carried out. So what was noted is complete only once those under way have ended:
`Notes.take` lets the program write into a second bitmap, and then drains the device.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Self

from ballpoint.core.errors import UnavailableError
from ballpoint.host import btf, loop
from ballpoint.host.bpf import bpf, instruction

# The kernel lets only programs under the GPL look into its structures: this file may be used under either licence.
# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
_LICENCE = b"GPL"

UNIT: Final = 4096  # what a bit stands for, in bytes; a sector has 512

_BPF_MAP_CREATE, _BPF_MAP_UPDATE_ELEM, _BPF_MAP_DELETE_ELEM, _BPF_PROG_LOAD = 0, 2, 3, 5
_BPF_OBJ_GET_INFO_BY_FD, _BPF_RAW_TRACEPOINT_OPEN = 15, 17
_BPF_MAP_TYPE_ARRAY, _BPF_MAP_TYPE_HASH_OF_MAPS = 2, 13
_BPF_F_MMAPABLE, _BPF_F_INNER_MAP = 1 << 10, 1 << 12
_BPF_PROG_TYPE_TRACING, _BPF_TRACE_RAW_TP = 26, 23
_BPF_PSEUDO_MAP_FD = 1
_LOOKUP = 1  # bpf_map_lookup_elem
# struct bpf_prog_info up to recursion_misses, its last field here
_PROGRAM_INFO = struct.Struct("=208xQ")
_DEVICES_MAX = 4096

# A bitmap's map is an array of 64-bit words. The first says which of two halves is written now, by the place where it
# begins. A half is a count of long requests, a first and a last unit for each of these, then the bits.
_LONG_MAX = 4096
_BITS = 1 + 2 * _LONG_MAX
_HEADER = 512  # words: a page, so that the rest begins with one
# Requests up to this many units set bits, word by word; longer ones, which only trimming makes, are listed.
_SHORT_UNITS = 1024
_SHORT_WORDS = _SHORT_UNITS // 64 + 1

_TRACEPOINT = (btf.TYPEDEF, "btf_trace_block_rq_issue")
_REQUEST, _QUEUE, _DISK = (btf.STRUCT, "request"), (btf.STRUCT, "request_queue"), (btf.STRUCT, "gendisk")

# Instruction codes of include/uapi/linux/bpf.h and bpf_common.h: 64-bit arithmetic, and loads and stores by width.
_ADD, _ADD_K, _SUB, _OR, _AND, _AND_K = 0x0F, 0x07, 0x1F, 0x4F, 0x5F, 0x57
_LSH, _LSH_K, _RSH, _RSH_K, _MOV, _MOV_K = 0x6F, 0x67, 0x7F, 0x77, 0xBF, 0xB7
_LD_IMM64, _LDX_W, _LDX_DW, _STX_W, _STX_DW = 0x18, 0x61, 0x79, 0x63, 0x7B
_JA, _JEQ, _JEQ_K, _JNE, _JGE_K, _CALL, _EXIT = 0x05, 0x1D, 0x15, 0x5D, 0x35, 0x85, 0x95
_ATOMIC_DW, _ATOMIC_OR, _ATOMIC_FETCH_ADD = 0xDB, 0x40, 0x01
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9, _R10 = range(11)

_TRIAL_UNITS = 256
_ZERO_PAGE = bytes(4096)
_BITS_OF = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]
_RUN = re.compile(b"\x01+")
_OUT = "out"


class Assembler:
    """Instructions with jumps to labels that come later."""

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def add(self, code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> None:
        self._code.append(instruction(code, dst, src, offset, immediate))

    def jump(self, to: str, code: int = _JA, dst: int = 0, src: int = 0, immediate: int = 0) -> None:
        self._jumps.append((len(self._code), to))
        self.add(code, dst, src, 0, immediate)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assembled(self) -> bytes:
        for place, to in self._jumps:
            code, registers, _, immediate = struct.unpack("<BBhi", self._code[place])
            offset = self._labels[to] - place - 1
            self._code[place] = struct.pack("<BBhi", code, registers, offset, immediate)
        return b"".join(self._code)


class BlockTrace:
    """The program, attached; it notes nothing before `note`. It goes with the process: nothing is pinned, so what a
    node that was killed had noted is lost, and its disks are compared as after a crash of the host, which must work
    anyway.
    """

    def __init__(self) -> None:
        """
        Raises:
            UnavailableError: the kernel lacks what this needs.
        """
        types = btf.kernel_types([_TRACEPOINT, _REQUEST, _QUEUE, _DISK])
        with ExitStack() as stack:
            template = _new_map(_BPF_MAP_TYPE_ARRAY, 8, 1, _BPF_F_MMAPABLE | _BPF_F_INNER_MAP, 0)
            try:
                self._maps = _new_map(_BPF_MAP_TYPE_HASH_OF_MAPS, 4, _DEVICES_MAX, 0, template)
            finally:
                os.close(template)
            stack.callback(os.close, self._maps)
            self._program = _load(_program(self._maps, types), types[_TRACEPOINT].id)
            stack.callback(os.close, self._program)
            stack.callback(
                os.close, _call("attach to block_rq_issue", _BPF_RAW_TRACEPOINT_OPEN, "=QI", 0, self._program)
            )
            self._owned = stack.pop_all()

    def close(self) -> None:
        """Detach. Idempotent."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def missed(self) -> int:
        """Events of any device, since the program was loaded, that the kernel skipped it for.

        That happens where the program interrupts itself, which no request of a loop device does on kernels known
        today (they are issued by threads, and the program is not preempted). Where it grew, what was noted meanwhile
        proves nothing.
        """
        info = ctypes.create_string_buffer(_PROGRAM_INFO.size)
        attributes = (self._program, len(info), ctypes.addressof(info))
        _call("ask for the program's state", _BPF_OBJ_GET_INFO_BY_FD, "=IIQ", *attributes)
        return int(_PROGRAM_INFO.unpack(info)[0])

    def note(self, device: str, size: int) -> Notes:
        """Begin to note what is written to a loop device. Requests under way are not part of it: they have ended.

        Args:
            size: of the device, in bytes.
        """
        return Notes(self, self._maps, device, size)


def open_trace(directory: Path) -> BlockTrace:
    """The program, having been tried on a small device with its file in `directory`: a tenth of a second or two.

    Raises:
        UnavailableError: the kernel lacks what this needs, or notes something else than what was written.
    """
    with ExitStack() as stack:
        trace = BlockTrace()
        stack.callback(trace.close)
        with TemporaryFile(dir=directory) as file:
            file.truncate(_TRIAL_UNITS * UNIT)
            device, fd = loop.attach(Path(f"/proc/self/fd/{file.fileno()}"))
            try:
                notes = trace.note(device, _TRIAL_UNITS * UNIT)
                try:
                    os.pwrite(fd, bytes(UNIT), _TRIAL_UNITS // 2 * UNIT)
                    os.fsync(fd)
                    noted = notes.take()
                finally:
                    notes.close()
            finally:
                os.close(fd)
        if noted != [range(_TRIAL_UNITS // 2, _TRIAL_UNITS // 2 + 1)]:
            raise UnavailableError("the kernel does not note what is written to a loop device", hint=f"noted: {noted}")
        stack.pop_all()
        return trace


class Notes:
    """What was written to one loop device."""

    def __init__(self, trace: BlockTrace, maps: int, device: str, size: int) -> None:
        self._trace, self._maps, self._device = trace, maps, device
        number = Path(device).stat().st_rdev
        self._key = ctypes.c_uint32(os.major(number) << 20 | os.minor(number))
        units = -(-size // UNIT)
        # Each half in whole pages.
        half = -(-(_BITS + -(-units // 64)) // _HEADER) * _HEADER
        self._halves = [_HEADER, _HEADER + half]
        self._half = half
        words = _HEADER + 2 * half
        bitmap = _new_map(_BPF_MAP_TYPE_ARRAY, 8, words, _BPF_F_MMAPABLE | _BPF_F_INNER_MAP, 0)
        try:
            self._memory = mmap.mmap(bitmap, words * 8)
            self._words = memoryview(self._memory).cast("Q")
            self._words[0] = self._halves[0]
            value = ctypes.c_uint32(bitmap)
            attributes = (maps, ctypes.addressof(self._key), ctypes.addressof(value), 0)
            _call(f"note {device}", _BPF_MAP_UPDATE_ELEM, "=I4xQQQ", *attributes)
        finally:
            os.close(bitmap)
        self._missed = trace.missed()
        loop.drain(device)

    def take(self) -> list[range] | None:
        """What was written since the last time: runs of units of `UNIT` bytes, in no order; some may overlap.

        All of it has reached the image; whatever is written from now on is part of the next answer. Writers wait for
        the requests under way, and for the kernel to drain the device's queue: 15 to 45 ms.

        Returns:
            None: anything may have been written since the last time.
        """
        taken, other = self._halves
        self._halves = [other, taken]
        self._words[0] = other  # one store of a word: the program never sees half of it
        loop.drain(self._device)
        count, self._words[taken] = self._words[taken], 0
        runs = list(self._bits(taken + _BITS, taken + self._half))
        for place in range(taken + 1, taken + 1 + 2 * min(count, _LONG_MAX), 2):
            runs.append(range(self._words[place], self._words[place + 1] + 1))
        missed, self._missed = self._missed, self._trace.missed()
        if count > _LONG_MAX or self._missed != missed:
            return None
        return runs

    def pending(self, but: int | None = None) -> bool:
        """Whether something was noted since the last `take`. Nobody waits for this.

        Args:
            but: a unit that does not count.
        """
        half = self._halves[0]
        start, end = (half + _BITS) * 8, (half + self._half) * 8
        bits = bytearray(self._memory[start:end])
        if but is not None:
            bits[but // 8] &= 0xFF ^ 1 << but % 8
        return self._words[half] != 0 or bits != bytes(len(bits))

    def _bits(self, start: int, end: int) -> Iterator[range]:
        """Runs of bits in the words from `start` to `end`, which are cleared."""
        begin = start * 8
        for at in range(begin - begin % 4096, end * 8, 4096):
            first = max(at, begin)
            page = self._memory[first : at + 4096]
            if page == _ZERO_PAGE[: len(page)]:
                continue
            self._memory[first : at + 4096] = bytes(len(page))
            unit = (first - begin) * 8
            for match in _RUN.finditer(b"".join([_BITS_OF[byte] for byte in page])):
                yield range(unit + match.start(), unit + match.end())

    def close(self) -> None:
        """Note nothing more. Idempotent."""
        if self._memory.closed:
            return
        attributes = (self._maps, ctypes.addressof(self._key))
        _call(f"note {self._device} no more", _BPF_MAP_DELETE_ELEM, "=I4xQ", *attributes)
        self._words.release()
        self._memory.close()


def _program(maps: int, types: dict[tuple[int, str], btf.KernelType]) -> bytes:
    """Instructions of the program; `maps` holds the bitmap's map of each device, by its number (MKDEV of kdev_t.h)."""
    request, queue, disk = types[_REQUEST].offsets, types[_QUEUE].offsets, types[_DISK].offsets
    code = Assembler()
    code.add(_LDX_DW, _R6, _R1, 0)  # the tracepoint's only argument: struct request *
    code.add(_LDX_W, _R2, _R6, request["cmd_flags"])
    code.add(_AND_K, _R2, immediate=1)  # enum req_op: operations that change data are odd
    code.jump(_OUT, _JEQ_K, _R2)
    code.add(_LDX_W, _R7, _R6, request["__data_len"])
    code.jump(_OUT, _JEQ_K, _R7)
    code.add(_LDX_DW, _R8, _R6, request["__sector"])
    code.add(_LDX_DW, _R1, _R6, request["q"])
    code.add(_LDX_DW, _R1, _R1, queue["disk"])
    code.add(_LDX_W, _R2, _R1, disk["major"])
    code.add(_LDX_W, _R3, _R1, disk["first_minor"])
    code.add(_LSH_K, _R2, immediate=20)
    code.add(_OR, _R2, _R3)
    code.add(_STX_W, _R10, _R2, -4)
    code.add(_LD_IMM64, _R1, _BPF_PSEUDO_MAP_FD, immediate=maps)
    code.add(0)  # the second half of the constant
    _lookup(code)
    code.add(_MOV, _R9, _R0)
    # R8 first unit, R7 last unit
    code.add(_LSH_K, _R8, immediate=9)
    code.add(_ADD, _R7, _R8)
    code.add(_ADD_K, _R7, immediate=-1)
    for register in (_R7, _R8):
        code.add(_RSH_K, register, immediate=UNIT.bit_length() - 1)
    code.add(_MOV_K, _R2, immediate=0)
    _word(code)
    code.add(_LDX_DW, _R6, _R0)  # R6: where the half begins
    code.add(_MOV, _R1, _R7)
    code.add(_SUB, _R1, _R8)
    code.jump("long", _JGE_K, _R1, immediate=_SHORT_UNITS)
    for word in range(_SHORT_WORDS):
        _set_bits(code, f"word {word}")
    code.jump(_OUT)
    code.label("long")
    code.add(_MOV, _R2, _R6)
    _word(code)
    code.add(_MOV_K, _R1, immediate=1)
    code.add(_ATOMIC_DW, _R0, _R1, immediate=_ATOMIC_FETCH_ADD)
    code.jump(_OUT, _JGE_K, _R1, immediate=_LONG_MAX)
    code.add(_LSH_K, _R1, immediate=1)
    code.add(_ADD, _R6, _R1)
    for register in (_R8, _R7):
        code.add(_ADD_K, _R6, immediate=1)
        code.add(_MOV, _R2, _R6)
        _word(code)
        code.add(_STX_DW, _R0, register)
    code.label(_OUT)
    code.add(_MOV_K, _R0, immediate=0)
    code.add(_EXIT)
    return code.assembled()


def _set_bits(code: Assembler, name: str) -> None:
    """Set the bits from R8 to R7 that are in the word of R8; R8 becomes the first of the next word."""
    code.add(_MOV, _R2, _R8)
    code.add(_RSH_K, _R2, immediate=6)
    code.add(_ADD, _R2, _R6)
    code.add(_ADD_K, _R2, immediate=_BITS)
    _word(code)
    code.add(_MOV, _R1, _R8)
    code.add(_AND_K, _R1, immediate=63)
    code.add(_MOV_K, _R2, immediate=-1)
    code.add(_LSH, _R2, _R1)
    code.add(_RSH_K, _R8, immediate=6)
    code.add(_MOV, _R3, _R7)
    code.add(_RSH_K, _R3, immediate=6)
    code.jump(name, _JNE, _R8, _R3)
    code.add(_MOV, _R4, _R7)
    code.add(_AND_K, _R4, immediate=63)
    code.add(_MOV_K, _R5, immediate=63)
    code.add(_SUB, _R5, _R4)
    code.add(_MOV_K, _R4, immediate=-1)
    code.add(_RSH, _R4, _R5)
    code.add(_AND, _R2, _R4)
    code.label(name)
    code.add(_ATOMIC_DW, _R0, _R2, immediate=_ATOMIC_OR)
    code.jump(_OUT, _JEQ, _R8, _R3)
    code.add(_ADD_K, _R8, immediate=1)
    code.add(_LSH_K, _R8, immediate=6)


def _word(code: Assembler) -> None:
    """R0 becomes the address of the word of number R2 in the map R9."""
    code.add(_STX_W, _R10, _R2, -4)
    code.add(_MOV, _R1, _R9)
    _lookup(code)


def _lookup(code: Assembler) -> None:
    """R0 becomes what the map R1 has for the key at the end of the stack, or the program ends."""
    code.add(_MOV, _R2, _R10)
    code.add(_ADD_K, _R2, immediate=-4)
    code.add(_CALL, immediate=_LOOKUP)
    code.jump(_OUT, _JEQ_K, _R0)


def _new_map(kind: int, value: int, entries: int, flags: int, inner: int) -> int:
    return _call("make a map", _BPF_MAP_CREATE, "=6I", kind, 4, value, entries, flags, inner)


def _load(code: bytes, tracepoint: int) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(_LICENCE)
    # union bpf_attr for BPF_PROG_LOAD: type, count, instructions, licence ... expected_attach_type ... attach_btf_id
    return _call(
        "load the program", _BPF_PROG_LOAD, "=IIQQ44xI36xI",
        _BPF_PROG_TYPE_TRACING, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),
        _BPF_TRACE_RAW_TP, tracepoint,
    )  # fmt: skip


def _call(what: str, command: int, layout: str, *attributes: int) -> int:
    try:
        return bpf(command, struct.pack(layout, *attributes))
    except OSError as error:
        hint = "writes to disks cannot be noted; it needs root and a kernel from 6.1 on"
        raise UnavailableError(f"the kernel refused to {what}: {error.strerror}", hint=hint) from error
