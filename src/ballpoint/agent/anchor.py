"""The agent's view of its anchor: descriptors kept under names, and exit statuses of orphans.

The wire is described in the anchor's source. Calls block, which is safe: the anchor does nothing else.
"""

from __future__ import annotations

import os
import socket

from ballpoint.core.errors import InternalError

NAME_MAX = 63
_REPLY_MAX = 256 * 1024


class Anchor:
    """Client of the anchor over the agent's end of their socket pair.

    Every call is idempotent; a name that is not kept gives None or False.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def keep(self, name: str, fd: int) -> None:
        """Deposit a copy of `fd` under `name`, instead of any former one."""
        if self._ask(b"P" + name.encode(), [fd])[0] != b"K":
            raise InternalError("the anchor keeps no more descriptors")

    def get(self, name: str) -> int | None:
        """A copy of the descriptor kept under `name`; the caller owns it."""
        reply, fds = self._ask(b"G" + name.encode())
        return fds[0] if reply == b"F" else None

    def take(self, name: str) -> int:
        """`get`, of what must be there. InternalError where it is not."""
        fd = self.get(name)
        if fd is None:
            raise InternalError(f"the anchor keeps no {name}")
        return fd

    def forget(self, name: str) -> bool:
        """Close what is kept under `name`."""
        return self._ask(b"D" + name.encode())[0] == b"K"

    def names(self) -> list[str]:
        """Names of all kept descriptors."""
        return self._ask(b"L")[0][1:].decode().split("\n")[:-1]

    def exit_status(self, pid: int) -> int | None:
        """Wait status of an orphan that has ended and been reaped by the anchor; given once."""
        reply, _ = self._ask(b"W%d" % pid)
        return int(reply[1:]) if reply.startswith(b"S") else None

    def _ask(self, request: bytes, fds: list[int] | None = None) -> tuple[bytes, list[int]]:
        if len(request) > NAME_MAX + 1:
            raise InternalError(f"the name {request[1:]!r} is too long for the anchor")
        socket.send_fds(self._sock, [request], fds or [])
        reply, received, _, _ = socket.recv_fds(self._sock, _REPLY_MAX, 1)
        if not reply:
            raise InternalError("the anchor has gone")
        for fd in received:
            os.set_inheritable(fd, False)
        return reply, received
