"""Frames as they come, against `websockets`, which reads them whole."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from ballpoint.agent import frames
from ballpoint.agent.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameError, Frames


def parts(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces, cut at `cuts`."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def read(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
    """Messages and control frames, each whole, and whether it went wrong then."""
    reader, whole, message = Frames(), [], bytearray()
    try:
        for piece in pieces:
            for opcode, data, last in reader.feed(piece):
                if opcode not in (TEXT, BINARY):
                    assert last
                    whole.append((opcode, data))
                    continue
                message += data
                if last:
                    whole.append((opcode, bytes(message)))
                    message.clear()
    except FrameError:
        return whole, True
    return whole, False


def told_by_websockets(data: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=None)
    protocol.receive_data(data)
    whole: list[tuple[int, bytes]] = []
    kind, message = 0, b""
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            whole.append((int(frame.opcode), bytes(frame.data)))
            continue
        kind, message = kind or int(frame.opcode), message + bytes(frame.data)
        if frame.fin:
            whole.append((kind, message))
            kind, message = 0, b""
    return whole, protocol.parser_exc is not None


FRAME = st.tuples(
    st.sampled_from([0, 1, 2, 8, 9, 10] * 8 + [3, 7, 11, 15]),
    st.booleans(),
    st.binary(max_size=300) | st.integers(0, 70_000).map(lambda size: bytes(range(256)) * (size // 256 + 1)),
    st.binary(min_size=4, max_size=4),
    st.sampled_from([0x80] * 30 + [0]),
    st.sampled_from([0] * 30 + [0x40, 0x20, 0x10]),
)


def encoded(opcode: int, fin: bool, data: bytes, mask: bytes, masked: int, reserved: int) -> bytes:
    first = (0x80 if fin else 0) | reserved | opcode
    if len(data) < 126:
        length = bytes((masked | len(data),))
    elif len(data) < 1 << 16:
        length = struct.pack("!BH", masked | 126, len(data))
    else:
        length = struct.pack("!BQ", masked | 127, len(data))
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)) if masked else data
    return bytes((first,)) + length + (mask if masked else b"") + body


@given(st.lists(FRAME, max_size=8), st.lists(st.integers(min_value=0)))
def test_what_comes_is_what_websockets_reads(sent: list[Any], cuts: list[int]) -> None:
    data = b"".join(encoded(*frame) for frame in sent if frame[0] != CLOSE)
    told, wrong = told_by_websockets(data)
    assert read(parts(data, cuts)) == (told, wrong)


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0)))
def test_garbage_is_read_alike_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    assert read(parts(data, cuts)) == read([data])


@given(st.binary(max_size=130))
def test_a_close_is_answered_as_websockets_does(payload: bytes) -> None:
    try:
        expected = Close.parse(payload).code
    except Exception:  # noqa: BLE001 - of whatever kind
        with pytest.raises(FrameError):
            frames.close_code(payload)
        return
    assert frames.close_code(payload) == (1000 if expected == 1005 else expected)


def test_a_piece_is_given_before_its_frame_is_whole() -> None:
    """What is held of a message is never more than what has come at once."""
    reader = Frames()
    assert list(reader.feed(bytes((0x82, 0xFF)) + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0" + b"begin")) == [
        (BINARY, b"begin", False)
    ]
    for _ in range(3):
        assert list(reader.feed(b"more")) == [(BINARY, b"more", False)]
    with pytest.raises(FrameError):
        list(Frames().feed(bytes((0x82, 0xFF)) + (1 << 63).to_bytes(8, "big") + b"\0\0\0\0"))


def test_control_frames_come_between_the_pieces_of_a_message() -> None:
    fragment, ping, end = (
        encoded(*frame, b"mask", 0x80, 0) for frame in ((1, False, b"a"), (9, True, b"?"), (0, True, b"b"))
    )
    assert list(Frames().feed(fragment + ping + end)) == [(TEXT, b"a", False), (PING, b"?", True), (TEXT, b"b", True)]
    assert list(Frames().feed(encoded(10, True, b"", b"mask", 0x80, 0))) == [(PONG, b"", True)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1 << 20])
def test_heads_are_those_of_websockets(size: int) -> None:
    whole = Frame(Opcode.BINARY, bytes(size)).serialize(mask=False)
    assert frames.head(BINARY, size) + bytes(size) == whole
