"""Where requests go: the node answers its edges' questions, request by request.

The wire is core.wire on RUN/route.sock:
    route {method, target, token, host, peer}
      -> {to: "api", caller}                          to RUN/api.sock
      -> {to: "agent", socket, target, preamble}      to a sprite's own agent
      -> {refuse: {status, error, message, hint?, headers?}}
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from ballpoint.core import peer
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.core.peer import Peer
from ballpoint.node.node import Node

log = logging.getLogger(__name__)

_PREFIX = "/v1/sprites/"
# What a sprite's own agent serves, by the path segment after its name.
_OF_THE_AGENT = frozenset({"control", "exec", "fs", "ports", "proxy"})
_PUBLIC = frozenset({"/openapi.json", "/docs"})
_RETRY_AFTER_SECONDS = 2


class Routing:
    """Serves the edges of this host."""

    def __init__(self, node: Node, run: Path) -> None:
        self._node = node
        self._path = run / "route.sock"
        self._listener: socket.socket | None = None
        self._peers: set[Peer] = set()

    def start(self, uid: int) -> None:
        """Listen; only `uid` (and root) may ask."""
        self._listener = peer.listen(self._path, mode=0o600)
        os.chown(self._path, uid, uid)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        for each in list(self._peers):
            each.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection = Peer(sock, serve=self._serve, on_close=lambda: self._peers.discard(connection))
        self._peers.add(connection)

    async def _serve(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        try:
            return await self._route(message), ()
        except BallpointError as error:
            return {"refuse": _refusal(error)}, ()
        except OSError as error:
            log.exception("routing failed")
            return {"refuse": _refusal(UnavailableError(f"the node could not do it: {error}"))}, ()

    async def _route(self, message: dict[str, Any]) -> dict[str, Any]:
        target = str(message["target"])
        path, _, query = target.partition("?")
        if path in _PUBLIC:
            return {"to": "api", "caller": {}}
        caller = await self._node.registry.authenticate(str(message["token"]))
        name, what, rest = _split(path)
        if what not in _OF_THE_AGENT:
            return {"to": "api", "caller": msgspec.to_builtins(caller)}
        running = await self._node.touch(caller, name, f"{what} by token {caller.token_id}", message.get("refused"))
        agent_path = f"/{what}{rest}"
        return {
            "to": "agent",
            "socket": str(running.instance.runtime.socket),
            "target": f"{agent_path}?{query}" if query else agent_path,
            "preamble": {"v": 1, "org": caller.org_id, "token": caller.token_id},
        }


def _split(path: str) -> tuple[str, str, str]:
    """Sprite name, next segment and what follows it, of a path below the sprites."""
    if not path.startswith(_PREFIX):
        return "", "", ""
    name, _, below = path.removeprefix(_PREFIX).partition("/")
    what, slash, rest = below.partition("/")
    return unquote(name), what, slash + rest


def _refusal(error: BallpointError) -> dict[str, Any]:
    refusal: dict[str, Any] = {"status": error.status, "error": error.code, "message": error.message}
    if error.hint:
        refusal["hint"] = error.hint
    if isinstance(error, UnavailableError):
        refusal["headers"] = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
    if error.status == 401:
        refusal["headers"] = {"WWW-Authenticate": "Bearer"}
    return refusal
