"""An agent's first command, played through before there is an agent.

CPython 3.11 rewrites a function's bytecode for the types it has met, in place, and modules fill their caches as they
are used. Done once in the zygote, every agent is born with it, and does it neither in its sprite's first command nor
on pages of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from urllib.parse import urlencode

from ballpoint.agent.ports.listening import Ports
from ballpoint.agent.ports.network import Network
from ballpoint.agent.server import Routes, serve
from ballpoint.agent.sessions.exec import ExecRoutes
from ballpoint.agent.sessions.sessions import Sessions
from ballpoint.agent.spawn_types import ProcessSpec, SpawnError, peek

# CPython specializes after a few calls (8 in 3.11), and some of what is called here is called once a command.
_ROUNDS = 12
_SECONDS = 10.0
_HANDSHAKE = (
    "GET /exec?%s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# RFC 6455: FIN and close, masked, length 2, a mask of zeros, status 1000.
_CLOSE = bytes((0x88, 0x82, 0, 0, 0, 0)) + (1000).to_bytes(2, "big")


class _Spawner:
    """Starts a child that writes a line and ends, whatever is asked."""

    def open_pty(self, rows: int, cols: int) -> tuple[int, int]:
        raise SpawnError(126, "no terminal")

    def spawn(self, spec: ProcessSpec) -> tuple[int, int]:
        pid = os.fork()
        if pid == 0:
            os.write(spec.stdout, b"warm\n")
            os._exit(0)
        return pid, os.pidfd_open(pid)

    def wait(self, pid: int, pidfd: int) -> int:
        status = peek(pid, pidfd)
        assert status is not None
        return status

    def reap(self, pid: int) -> None:
        os.waitpid(pid, 0)


def warm_up() -> None:
    """Serve commands to oneself. Must be called where there is no other thread; leaves no descriptor and no child."""
    asyncio.run(_play())


async def _play() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # unix(7): a fresh abstract name
    listener.listen(1)
    address = listener.getsockname()
    routes = Routes()
    ports = Ports(Network(None))  # no command here lasts until it looks
    ExecRoutes(Sessions(_Spawner(), None), lambda: {"PATH": "/bin"}, ports).add_to(routes)
    query = urlencode([("cmd", "true"), ("cmd", "-v"), ("stdin", "false")])
    server = await serve(listener, routes)
    async with asyncio.timeout(_SECONDS):
        for _ in range(_ROUNDS):
            reader, writer = await asyncio.open_unix_connection(address)
            writer.write(b"{}\n" + (_HANDSHAKE % query).encode())
            received = await reader.readuntil(b"\r\n\r\n")
            while b"\x82\x02\x03\x00" not in received:  # the exit frame
                received += await reader.read(4096)
            writer.write(_CLOSE)
            await reader.read()
            writer.close()
            await writer.wait_closed()
    server.close()
