"""Clients that cost little: raw requests over asyncio, for tests that run commands by the ten thousand."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

from tests.support.nodes import TestNode
from tests.support.raw import Heard

_SECONDS = 120.0
_UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_TEXT, _BINARY, _CLOSE = 1, 2, 8


class Quick:
    """Runs commands in one sprite."""

    def __init__(self, node: TestNode, name: str) -> None:
        address = urlsplit(node.url)
        self._host, self._port = address.hostname, address.port
        self._path = f"/v1/sprites/{name}"
        self._fields = f"HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {node.token}\r\n"

    async def websocket(self, *argv: str) -> Heard:
        """Over a WebSocket of its own, which the server ends."""
        query = urlencode([*(("cmd", word) for word in argv), ("stdin", "false")])
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET {self._path}/exec?{query} {self._fields}{_UPGRADE}".encode())
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 "), head
                heard, received = Heard(), b""
                while data := await reader.read(1 << 16):
                    received += data
                    while (frame := _frame(received)) is not None:
                        opcode, payload, size = frame
                        received = received[size:]
                        take(heard, opcode, payload)
                        if opcode == _CLOSE:
                            # As RFC 6455 section 5.5.1 asks of a client; a server waits for it before it hangs up.
                            writer.write(_masked(_CLOSE, payload[:2]))
            assert not received, "cut in a frame"
            return heard
        finally:
            writer.close()

    async def http(self, *argv: str) -> Heard:
        """Over HTTP."""
        query = urlencode([("cmd", word) for word in argv])
        fields = "Connection: close\r\nContent-Length: 0\r\n\r\n"
        answer = await self._whole(f"POST {self._path}/exec?{query} {self._fields}{fields}")
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        heard = Heard()
        while True:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line, 16)
            if not size:
                return heard
            take(heard, _BINARY, rest[:size])
            rest = rest[size + 2 :]

    async def control(self) -> Control:
        """A control socket."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET {self._path}/control {self._fields}{_UPGRADE}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return Control(reader, writer)

    async def _whole(self, request: str) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request.encode())
            async with asyncio.timeout(_SECONDS):
                return await reader.read()
        finally:
            writer.close()


class Control:
    """Runs commands one after the other on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._received = b""

    async def run(self, *argv: str) -> Heard:
        heard = Heard()
        asked = {"type": "op.start", "op": "exec", "args": {"cmd": argv, "stdin": "false"}}
        self._writer.write(_masked(_TEXT, b"control:" + json.dumps(asked).encode()))
        async with asyncio.timeout(_SECONDS):
            while True:
                for opcode, payload in self._complete():
                    if opcode == _TEXT and payload.startswith(b"control:"):
                        end = json.loads(payload.removeprefix(b"control:"))
                        assert end["type"] == "op.complete"
                        assert [end["args"]["exitCode"]] == heard.terminal
                        return heard
                    take(heard, opcode, payload)
                data = await self._reader.read(1 << 16)
                assert data, "the control socket has ended"
                self._received += data

    def close(self) -> None:
        self._writer.close()

    def _complete(self) -> Iterator[tuple[int, bytes]]:
        while (frame := _frame(self._received)) is not None:
            opcode, payload, size = frame
            self._received = self._received[size:]
            yield opcode, payload


def take(heard: Heard, opcode: int, payload: bytes) -> None:
    """Note a message, in the order of its coming."""
    if opcode == _TEXT:
        content = json.loads(payload)
        assert content["type"] == "session_info"
        heard.info = content
    elif opcode == _CLOSE:
        (heard.close_code,) = struct.unpack("!H", payload[:2])
    elif payload and payload[0] == 3:
        heard.terminal.append(payload[1])
    elif payload and heard.terminal:
        heard.after += payload[1:]
    elif payload and payload[0] == 1:
        heard.stdout += payload[1:]
    elif payload:
        heard.stderr += payload[1:]


def _frame(data: bytes) -> tuple[int, bytes, int] | None:
    """The first frame of a server's: opcode, payload, size. None where it has not come as a whole."""
    if len(data) < 2:
        return None
    at, size = 2, data[1]
    if size == 126:
        at, size = 4, int.from_bytes(data[2:4])
    elif size == 127:
        at, size = 10, int.from_bytes(data[2:10])
    return None if len(data) < at + size else (data[0] & 15, data[at : at + size], at + size)


def _masked(opcode: int, data: bytes) -> bytes:
    """A client's frame, with a mask of zeros."""
    size = bytes((0x80 | len(data),)) if len(data) < 126 else struct.pack("!BH", 0xFE, len(data))
    return bytes((0x80 | opcode,)) + size + bytes(4) + data
