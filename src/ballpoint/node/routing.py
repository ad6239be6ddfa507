"""Where requests go: the node answers its edges' questions, request by request.

The wire is core.wire on RUN/route.sock:
    route {method, target, token, host, peer, refused?, log_ins?, origin?, site?, mode?, html?, upgrade?}
      -> {to: "api", caller, target?}                       to RUN/api.sock
      -> {to: "agent", socket, target, preamble, lease?}    to a sprite's own agent
      -> {to: "sprite", socket, preamble, token, lease, lasts?}
                                                            to the port in a sprite that the preamble names, by its
                                                            agent's help; `token`: the field Authorization is ours
      -> {answer: {status, headers}}                        an answer without a body
      -> {refuse: {status, error, message, hint?, headers?}}
and notices of an edge:
    {notice: "released", socket, lease}     it has no connection to that agent any more, as far as it knew of grants
    {notice: "held", sockets}               it has connections to these; said to a node that is new to it

`lease` is the number of a grant: the sprite is kept awake while the edge has a connection to that socket. A control
socket alone does not. `refused` is the socket of an agent that has just declined the request. What follows it comes
with requests to hosts below the domain only (urls/visitor.py). `lasts` is for how many seconds the answer is the same
for every request that changes nothing by its method, whatever its target (but for our own paths), if all else of it is
equal, neither the registry nor what runs has changed since the question (the counts of both are shared with the edges),
and the edge has held the lease all the time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from ballpoint.core import peer
from ballpoint.core.addresses import is_within, networks
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.core.peer import Peer
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.node import Node
from ballpoint.node.urls.urls import Urls
from ballpoint.node.urls.visitor import first_field

log = logging.getLogger(__name__)

_PREFIX = "/v1/sprites/"
# What a sprite's own agent serves, by the path segment after its name.
_OF_THE_AGENT = frozenset({"control", "exec", "fs", "ports", "proxy", "services"})
# What a connection of keeps no sprite awake by itself.
_IDLE = frozenset({"control"})
_PUBLIC = frozenset({"/openapi.json", "/docs"})
# What a proxy that makes certificates as they are asked for asks first (tls.md).
_MAY_HAVE_CERTIFICATE = "/v1/tls/ask"
_RETRY_AFTER_SECONDS = 2


class Routing:
    """Serves the edges of this host."""

    def __init__(self, node: Node, config: NodeConfig, urls: Urls, leases: Leases) -> None:
        self._node = node
        self._leases = leases
        self._urls = urls
        self._proxies = networks(config.trusted_proxies)
        self._path = config.run / "route.sock"
        self._listener: socket.socket | None = None
        self._peers: set[Peer] = set()

    def start(self, uid: int) -> None:
        """Listen; only `uid` (and root) may ask."""
        self._node.changes.change()  # an edge may remember what an earlier process answered
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
        connection = Peer(
            sock,
            serve=lambda message, _: self._serve(connection, message),
            on_notice=lambda notice: self._noticed(connection, notice),
            on_close=lambda: self._left(connection),
        )
        self._peers.add(connection)

    def _left(self, edge: Peer) -> None:
        self._peers.discard(edge)
        self._leases.drop(edge)

    def _noticed(self, edge: Peer, notice: dict[str, Any]) -> None:
        if notice.get("notice") == "released":
            self._leases.end(edge, str(notice["socket"]), int(notice["lease"]))
        elif notice.get("notice") == "held":
            self._leases.restate(edge, map(str, notice["sockets"]))

    async def _serve(self, edge: Peer, message: dict[str, Any]) -> tuple[Any, Sequence[int]]:
        try:
            route = await self._route(message)
            # No turn of the loop is between the look whether the sprite is awake and this.
            what = route.pop("what", None)
            if what is not None:
                route["lease"] = self._leases.grant(edge, route["socket"], what)
            return route, ()
        except BallpointError as error:
            return {"refuse": _refusal(error)}, ()
        except OSError as error:
            log.exception("routing failed")
            return {"refuse": _refusal(UnavailableError(f"the node could not do it: {error}"))}, ()

    async def _route(self, message: dict[str, Any]) -> dict[str, Any]:
        target = str(message["target"])
        path, _, query = target.partition("?")
        place = self._urls.site.place(str(message["host"]))
        if place.kind != "api":
            return await self._urls.route(message, place)
        if path in _PUBLIC:
            return {"to": "api", "caller": {}}
        if path == _MAY_HAVE_CERTIFICATE and is_within(str(message["peer"]), self._proxies):
            domain = first_field(query, "domain")
            return {"answer": {"status": 200 if await self._urls.has_host(domain.lower()) else 404, "headers": {}}}
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
            "what": None if what in _IDLE else what,
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
