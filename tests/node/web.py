"""An HTTP server that runs in a sprite: python3 web.py PORT. What it does with a request is in the path.

/take       read the body, answer with its SHA-256 and its size
/give?N     answer with N bytes, as `blocks` makes them
/events     one event at once, and the next after a request of /go
/ws         take any upgrade, and send back what comes
otherwise   answer with the request's exact bytes
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator

BLOCK = 1 << 20
go = threading.Event()


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes, of which each MiB differs from all others."""
    number = 0
    while size > 0:
        block = (hashlib.sha256(b"%d" % number).digest() * (BLOCK // 32))[:size]
        yield block
        size -= len(block)
        number += 1


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as file:
        while True:
            line = file.readline()
            if not line:
                return
            head = line
            while line not in (b"\r\n", b""):
                line = file.readline()
                head += line
            fields = {
                name.lower(): value.strip()
                for name, _, value in (each.partition(":") for each in head.decode("latin-1").split("\r\n")[1:])
            }
            answer(connection, file, head, fields)
            if fields.get("connection", "").lower() == "close":
                return


def body_of(file, fields) -> Iterator[bytes]:  # type: ignore[no-untyped-def]
    if fields.get("transfer-encoding") == "chunked":
        while size := int(file.readline(), 16):
            yield file.read(size)
            file.readline()
        file.readline()
        return
    left = int(fields.get("content-length", 0))
    while left and (data := file.read(min(left, BLOCK))):
        yield data
        left -= len(data)


def answer(connection: socket.socket, file, head: bytes, fields: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    path, _, query = head.split(b" ")[1].decode().partition("?")
    if path == "/take":
        digest, size = hashlib.sha256(), 0
        for data in body_of(file, fields):
            digest.update(data)
            size += len(data)
        send(connection, f"{digest.hexdigest()} {size}".encode())
    elif path == "/give":
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {int(query)}\r\n\r\n".encode())
        for block in blocks(int(query)):
            connection.sendall(block)
    elif path == "/events":
        go.clear()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"10\r\ndata: the first\n\r\n"
        )
        go.wait(60)
        connection.sendall(b"11\r\ndata: the second\n\r\n0\r\n\r\n")
    elif path == "/go":
        go.set()
        send(connection, b"")
    elif path == "/ws":
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := file.read1(BLOCK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    else:
        send(connection, head + b"".join(body_of(file, fields)))


def send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
