"""`GET /ports/watch`: a WebSocket that tells which ports are listened on (contract 2.9)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ballpoint.agent.ports.listening import Port, Ports
from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.websocket import WebSocket
from ballpoint.core.errors import InvalidError

CLOSE_UNAVAILABLE = 4503
# Of a client that does not read: it is cut off, and finds the present list when it comes again.
_UNSENT_MAX = 1 << 20


class WatchRoutes:
    """The route `/ports/watch`."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/ports/watch", self._get)

    def _get(self, connection: Connection, request: Request) -> Handler | None:
        if not request.is_websocket:
            raise InvalidError("this is a WebSocket")
        watcher = _Watching(connection)
        watcher.socket.accept(request, {}, keepalive=False)
        watcher.end = self._ports.watch(watcher)
        return watcher.socket


class _Watching:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.end: Callable[[], None]
        self.socket = WebSocket(
            connection, on_message=lambda *_: None, on_writable=lambda: None, on_lost=lambda: self.end()
        )

    def listed(self, ports: list[Port] | None) -> None:
        if ports is None:
            failure = {"type": "error", "error": "unavailable", "message": "the kernel does not list its sockets"}
            self.socket.close(CLOSE_UNAVAILABLE, json.dumps(failure))
        else:
            self._send({"type": "port_list", "ports": [port.told() for port in ports]})

    def changed(self, kind: str, port: Port) -> None:
        self._send({"type": kind, **port.told()})

    def _send(self, message: dict[str, Any]) -> None:
        self.socket.send_text(json.dumps(message))
        if self._connection.unsent > _UNSENT_MAX:
            self._connection.abort()
