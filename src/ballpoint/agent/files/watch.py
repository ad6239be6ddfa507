"""Watching files, over a WebSocket (contract 2.6)."""

from __future__ import annotations

import json

from ballpoint.agent.files.errors import error_body
from ballpoint.agent.files.helper import Helper, Turns
from ballpoint.agent.files.request import fields_of_body, watch_operation
from ballpoint.agent.server import Connection
from ballpoint.agent.spawn_types import FileSpawner
from ballpoint.agent.websocket import WebSocket
from ballpoint.core.errors import BallpointError, UnavailableError

# Of one socket.
_SUBSCRIPTIONS_MAX = 8
_FAILED = 1011  # RFC 6455 7.4.1: something unexpected keeps the server from going on


class Watching:
    """A socket with its subscriptions, each a helper that lives as long as it does.

    Attributes:
        socket: the connection's handler.
    """

    def __init__(self, connection: Connection, spawner: FileSpawner, turns: Turns) -> None:
        self._spawner = spawner
        self._turns = turns
        self._subscriptions: list[_Subscription] = []
        self.connection = connection
        self.socket = WebSocket(connection, on_message=self._message, on_writable=self._writable, on_lost=self._lost)

    def _message(self, binary: bool, data: bytes) -> None:
        path = ""
        try:
            fields = fields_of_body(data)
            if fields.text("type") != "subscribe":
                return  # newer clients may say more
            path = fields.about
            operation = watch_operation(fields)
            if len(self._subscriptions) >= _SUBSCRIPTIONS_MAX:
                raise UnavailableError("too many subscriptions on one socket", hint=f"at most {_SUBSCRIPTIONS_MAX}")
            subscription = _Subscription(self)

            def start() -> None:
                try:
                    subscription.helper = Helper(self._spawner, operation, subscription, self._turns, endless=True)
                except UnavailableError:
                    self._turns.release()
                    raise

            self._turns.take(start)
            self._subscriptions.append(subscription)
        except BallpointError as error:
            self.tell_error(error, path)

    def tell_error(self, error: BallpointError, path: str) -> None:
        self.socket.send_text(json.dumps({"type": "error", **error_body(error, path), "message": str(error)}))

    def ended(self, subscription: _Subscription, error: BallpointError, begun: bool) -> None:
        """A subscription that could not be made leaves the others; one that breaks ends the socket, to be noticed."""
        self._subscriptions.remove(subscription)
        if begun:
            self.socket.close(_FAILED, json.dumps({"type": "error", "message": str(error)}))
        else:
            self.tell_error(error, "")

    def _writable(self) -> None:
        for each in self._subscriptions:
            if each.helper is not None:
                each.helper.go_on()

    def _lost(self) -> None:
        for each in self._subscriptions:
            if each.helper is not None:
                each.helper.cancel()
        self._subscriptions.clear()


class _Subscription:
    """Passes on a helper's lines, each as a message. The helper's listener."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._rest = b""
        self._begun = False
        self.helper: Helper | None = None

    def answer_begins(self, words: list[bytes]) -> None:
        self._begun = True

    def answer(self, data: bytes) -> bool:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._watching.socket.send_text(line.decode())
        return self._watching.connection.writable

    def answer_ends(self, error: BallpointError | None) -> None:
        error = error or UnavailableError("the watch has ended")
        self._watching.ended(self, error, self._begun)

    def body_taken(self) -> None:
        pass

    def client_stalls(self) -> None:
        self._watching.connection.abort()
