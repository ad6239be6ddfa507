"""sock_diag(7): the TCP sockets that listen in a network namespace.

Layouts are those of netlink(7) and of include/uapi/linux/{sock_diag,inet_diag}.h, in the host's byte order; ports and
addresses are in the network's.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # length type flags sequence port
# struct inet_diag_req_v2: family, protocol, extensions, padding, states; then a sockid that is not looked at.
_REQUEST = struct.Struct("=BBBxI48x")
# struct inet_diag_msg: family, state, timer, retransmissions; of the sockid the source port, the source and the rest;
# expiry, queues, uid, inode.
_MESSAGE = struct.Struct("=BBxx2s2x16s16x4x8x12xII")
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 16}
# netlink_dump() makes no packet larger than 32 KiB.
_RECEIVE = 1 << 15


class Listening(NamedTuple):
    """A socket that listens.

    Attributes:
        address: packed, 4 or 16 bytes.
    """

    address: bytes
    port: int
    uid: int
    inode: int


class SockDiag:
    """Asks the kernel for the TCP sockets that listen; nothing here waits.

    Args:
        sock: NETLINK_SOCK_DIAG, of the namespace that is asked about, not blocking; owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def ask(self, family: int) -> None:
        """Begin the list of AF_INET or AF_INET6. OSError as sendmsg(2)."""
        self._sequence += 1
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
        length = _HEADER.size + len(body)
        head = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, self._sequence, 0)
        self._sock.sendto(head + body, (0, 0))

    def receive(self) -> tuple[list[Listening], bool]:
        """The next part of the list that was asked for last, and whether it was the last.

        Raises:
            BlockingIOError: nothing is there (the kernel makes the next part while the one before is taken).
            OSError: the kernel refused; ENOENT where it has no tcp_diag.
        """
        data, (sender, _) = self._sock.recvfrom(_RECEIVE)
        # Who has CAP_NET_ADMIN in the namespace may send to this socket, too; the kernel's own number is 0.
        return parse(data, self._sequence) if sender == 0 else ([], False)


def parse(data: bytes, sequence: int) -> tuple[list[Listening], bool]:
    """What one packet of the answer to request number `sequence` lists, and whether it ends the list.

    Raises:
        OSError: it says that the kernel refused.
    """
    found: list[Listening] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            break
        body = at + _HEADER.size
        at += (length + 3) & ~3
        if number != sequence:
            continue
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, body)[0] if length >= _HEADER.size + 4 else 0
            if code > 0:
                raise OSError(code, os.strerror(code), "list the listening sockets")
            return found, True
        if kind == _SOCK_DIAG_BY_FAMILY and length >= _HEADER.size + _MESSAGE.size:
            family, state, port, address, uid, inode = _MESSAGE.unpack_from(data, body)
            if state == _TCP_LISTEN and family in _FAMILIES:
                packed = address[: _FAMILIES[family]]
                found.append(Listening(packed, int.from_bytes(port, "big"), uid, inode))
    return found, False
