"""A server that runs in a sprite: python3 server.py ADDRESS PORT. The first line of a connection says what to do.

take N     read N bytes, answer with their SHA-256 in hexadecimal
give N     send N bytes, as `block` makes them, then end
echo       send back what comes, until it ends
stall      read nothing
reset      end by a reset
"""

from __future__ import annotations

import hashlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator

BLOCK = 1 << 16


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes, of which each 64 KiB differ from all others."""
    number = 0
    while size > 0:
        block = (hashlib.sha256(b"%d" % number).digest() * (BLOCK // 32))[:size]
        yield block
        size -= len(block)
        number += 1


def serve(connection: socket.socket, held: list[socket.socket]) -> None:
    file = connection.makefile("rb", buffering=0)
    what, *arguments = file.readline().decode().split()
    if what == "take":
        left, digest = int(arguments[0]), hashlib.sha256()
        while left and (data := connection.recv(min(left, BLOCK))):
            digest.update(data)
            left -= len(data)
        connection.sendall(digest.hexdigest().encode())
    elif what == "give":
        for block in blocks(int(arguments[0])):
            connection.sendall(block)
    elif what == "echo":
        while data := connection.recv(BLOCK):
            connection.sendall(data)
    elif what == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        held.append(connection)
        return
    file.close()
    connection.close()


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held: list[socket.socket] = []
    with socket.create_server((address, port), family=family, backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, held), daemon=True).start()


if __name__ == "__main__":
    main()
