"""Sockets of the container's network namespace, made by an agent that stays in its own."""

from __future__ import annotations

import os
import socket

from ballpoint.host.namespaces import CLONE_NEWNET, setns


class Network:
    """Makes sockets that belong to the sprite: its localhost is theirs, and its routes and rules hold for them.

    A socket belongs for good to the namespace that its maker was in (socket(2)), so the agent's one thread joins the
    container's for that one call. Nothing else can run meanwhile.

    Args:
        netns: descriptor of that namespace, borrowed; None is the one this process is in.
    """

    def __init__(self, netns: int | None) -> None:
        self._netns = netns
        self._own = -1 if netns is None else os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Make no more sockets."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A new socket that does not block; the caller owns it. OSError as socket(2)."""
        kind |= socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        if self._netns is None:
            return socket.socket(family, kind, protocol)
        setns(self._netns, CLONE_NEWNET)
        try:
            return socket.socket(family, kind, protocol)
        finally:
            try:
                setns(self._own, CLONE_NEWNET)
            except OSError:  # ENOMEM: what this process made next would be the sprite's. The next agent goes on
                os._exit(1)
