"""The agent's view of its anchor: descriptors kept under names, and exit statuses of orphans.

The wire is described in the anchor's source. What is deposited or forgotten takes one packet and no answer: once it is
sent it will be done, whatever becomes of this agent. Questions block, which is safe: the anchor does nothing else.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Collection, Mapping
from itertools import islice

from ballpoint.core import ids
from ballpoint.core.errors import InternalError

NAME_MAX = 63
_REPLY_MAX = 256 * 1024
# The anchor's SLOTS, what of its descriptors it needs itself, and what it takes in one packet.
_SLOTS = 2560
_OWN_DESCRIPTORS = 16
_FDS_MAX = 16
_NAMES_MAX = 64


class Anchor:
    """Client of the anchor over the agent's end of their socket pair.

    Every call is idempotent; a name that is not kept gives None.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._skip_answers()
        self._kept = set(self.names())
        # The anchor has this process's hard limit, and makes it its own.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self._room = _SLOTS if most == resource.RLIM_INFINITY else min(_SLOTS, most - _OWN_DESCRIPTORS)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def keep(self, fds: Mapping[str, int]) -> None:
        """Deposit copies of descriptors under their names, each instead of any former one.

        Up to 16 are deposited in one step: the next agent finds all or none.

        Raises:
            InternalError: there is no room for all; none is deposited.
        """
        if len(self._kept | fds.keys()) > self._room:
            raise InternalError("the anchor keeps no more descriptors")
        names = iter(fds)
        while part := list(islice(names, _FDS_MAX)):
            self._send(b"P" + _joined(part), [fds[name] for name in part])
        self._kept |= fds.keys()

    def forget(self, names: Collection[str]) -> None:
        """Close what is kept under them."""
        known = iter([name for name in names if name in self._kept])
        while part := list(islice(known, _NAMES_MAX)):
            self._send(b"D" + _joined(part), [])
            self._kept.difference_update(part)

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

    def names(self) -> list[str]:
        """Names of all kept descriptors."""
        return self._ask(b"L")[0][1:].decode().split("\n")[:-1]

    def exit_status(self, pid: int) -> int | None:
        """Wait status of an orphan that has ended and been reaped by the anchor; given once."""
        reply, _ = self._ask(b"W%d" % pid)
        return int(reply[1:]) if reply.startswith(b"S") else None

    def _skip_answers(self) -> None:
        """Drop what an agent that was killed had asked and not read: the socket is the same."""
        mark = b"E" + ids.new_instance_id().encode()
        self._send(mark, [])
        while True:
            reply, fds = self._receive()
            for fd in fds:
                os.close(fd)
            if reply == mark:
                return

    def _ask(self, request: bytes) -> tuple[bytes, list[int]]:
        self._send(request, [])
        return self._receive()

    def _send(self, request: bytes, fds: list[int]) -> None:
        socket.send_fds(self._sock, [request], fds)

    def _receive(self) -> tuple[bytes, list[int]]:
        reply, fds, _, _ = socket.recv_fds(self._sock, _REPLY_MAX, 1)
        if not reply:
            raise InternalError("the anchor has gone")
        for fd in fds:
            os.set_inheritable(fd, False)
        return reply, fds


def _joined(names: list[str]) -> bytes:
    for name in names:
        if len(name) > NAME_MAX:
            raise InternalError(f"the name {name!r} is too long for the anchor")
    return b"".join(name.encode() + b"\n" for name in names)
