"""Messages between our own processes: JSON with descriptors over a SOCK_SEQPACKET unix socket.

One packet is one message, so there is no framing to get wrong, and descriptors arrive with the message they belong to.
A request carries `id` and `op`; its reply carries the same `id` and either `ok` (the result) or `error`. A message
without `id` is a notice. Received JSON is untrusted where the peer is an agent: check every field.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from ballpoint.core.errors import InvalidError

# Below the default socket buffer (net.core.wmem_default, 212,992 bytes), so that a packet always fits.
MAX_MESSAGE = 128 * 1024
MAX_FDS = 32
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one for each message

# In a response over HTTP of one of our own servers: the request was refused before anything of it was begun.
NOT_STARTED = "x-ballpoint-not-started"


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send `message` with copies of `fds`. The caller keeps (and closes) its own descriptors.

    Raises:
        InvalidError: the message is larger than `MAX_MESSAGE`.
        OSError: the peer is gone, or the socket's buffer is full (BlockingIOError).
    """
    data = _encode(message).encode()
    if len(data) > MAX_MESSAGE:
        raise InvalidError(f"a message of {len(data)} bytes is too large", hint=f"at most {MAX_MESSAGE} bytes")
    if fds:
        socket.send_fds(sock, [data], list(fds))
    else:
        sock.send(data)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors, which the caller now owns. An ended connection gives `({}, [])`.

    Raises:
        InvalidError: the packet is no JSON object, or was cut; its descriptors are closed.
        OSError: as recvmsg(2).
    """
    data, fds, flags, _ = socket.recv_fds(sock, MAX_MESSAGE + 1, MAX_FDS)
    if not data and not fds:
        return {}, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidError("a message was cut short")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise InvalidError("a message is not an object")
    except (ValueError, RecursionError, InvalidError) as error:  # deep nesting is found out by the second
        for fd in fds:
            os.close(fd)
        if isinstance(error, InvalidError):
            raise
        raise InvalidError("a message is not JSON") from error
    for fd in fds:
        os.set_inheritable(fd, False)
    return message, fds
