"""The node's requests to an agent, over a socket that nothing inside can reach.

hello   {}                        -> {version, instance, nonce, sprite, phase, how} + log, netns, userns
claim   {sprite, environment, resolv_conf, targets, profile, no_new_privileges} + root mount, bind mounts  -> {}
settings{environment?, profile?, no_new_privileges?}   -> {}
ping    {}                                             -> {sessions}
Notice to the node: {notice: "inner-exited", how}
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ballpoint.agent.agent import Agent
from ballpoint.core.errors import ConflictError, InvalidError
from ballpoint.core.peer import Peer

# A node serves agents of its own version and of the one before (the hello says which).
PROTOCOL_VERSION = 1


class Control:
    """Serves every node connection; more than one may exist while a node is being replaced."""

    def __init__(self, listener: socket.socket, agent: Agent) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._agent = agent
        self._peers: set[Peer] = set()
        self._operations: dict[str, Callable[[dict[str, Any], list[int]], Any]] = {
            "hello": self._hello,
            "claim": self._claim,
            "settings": self._settings,
            "ping": self._ping,
        }
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def notify(self, notice: str, **details: Any) -> None:
        """Tell every connected node."""
        for peer in list(self._peers):
            peer.notify({"notice": notice, **details})

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        peer = Peer(sock, serve=self._serve, on_close=lambda: self._peers.discard(peer))
        self._peers.add(peer)

    async def _serve(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        operation = self._operations.get(message["op"])
        if operation is None:
            raise InvalidError(f"this agent knows no {message['op']!r}")
        result: tuple[Any, Sequence[int]] = operation(message, fds)
        return result

    def _hello(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        agent = self._agent
        answer = {
            "version": PROTOCOL_VERSION,
            "instance": agent.state["instance"],
            "nonce": agent.state["nonce"],
            "sprite": agent.state["sprite"],
            "phase": agent.phase,
            "how": agent.how,
        }
        return answer, [os.dup(fd) for fd in (agent.log_fd, agent.netns, agent.userns)]

    def _claim(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        if self._agent.phase != "parked":
            raise ConflictError(f"the instance is {self._agent.phase}, not parked")
        root, *mounts = fds
        binds = list(zip(message["targets"], mounts, strict=True))
        self._agent.claim(message, root, binds)
        return {}, ()

    def _settings(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        self._agent.configure(message)
        return {}, ()

    def _ping(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        return {"sessions": len(self._agent.sessions or ())}, ()
