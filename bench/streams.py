"""Yardsticks for streams; programs that print the port they serve on. `python -m bench.streams KIND BYTES [PATH]`.

- `source`: a unix server that does no more than answer the handshake and send ready-made frames.
- `relay`: TCP to that unix socket and back, an asyncio.Protocol on uvloop that looks at nothing.
- `bare`: a server of the `websockets` library.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import cast

import uvloop
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.utils import accept_key

# As the agent sends it: a stream's number and up to 64 KiB of it.
CHUNK = 64 * 1024
_MESSAGE = b"\x01" + bytes(CHUNK)
_EXIT = b"\x03\x00"


def source(total: int, path: str) -> None:
    # RFC 6455 5.2: FIN and binary; a length of 127 says that eight bytes of it follow.
    frame = struct.pack("!BBQ", 0x82, 127, len(_MESSAGE)) + _MESSAGE
    ending = struct.pack("!BB", 0x82, len(_EXIT)) + _EXIT + struct.pack("!BBH", 0x88, 2, 1000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(CHUNK)
                fields = [line.split(b":", 1) for line in head.split(b"\r\n") if b":" in line]
                key = next(value.strip() for name, value in fields if name.lower() == b"sec-websocket-key")
                accept = accept_key(key.decode())
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
                )
                for _ in range(total // CHUNK):
                    connection.sendall(frame)
                connection.sendall(ending)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(CHUNK):
                    pass


class _Side(asyncio.Protocol):
    """One of two joined connections; the other is made when the first is."""

    def __init__(self, path: str = "", other: _Side | None = None) -> None:
        self._path = path
        self._other = other
        self._early = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=1 << 20)
        if self._other is not None:
            self._other._other = self
            self.transport.write(self._other._early)
        else:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(loop.create_unix_connection(lambda: _Side(other=self), self._path))

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early += data
        else:
            self._other.transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None:
            self._other.transport.close()


async def relay(path: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Side(path), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def bare(total: int) -> None:
    async def send(connection: ServerConnection) -> None:
        for _ in range(total // CHUNK):
            await connection.send(_MESSAGE)
        await connection.send(_EXIT)

    async with serve_websockets(send, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


def main(kind: str, total: str, path: str = "") -> None:
    if kind == "source":
        source(int(total), path)
    elif kind == "relay":
        uvloop.run(relay(path))
    else:
        asyncio.run(bare(int(total)))


if __name__ == "__main__":
    main(*sys.argv[1:])
