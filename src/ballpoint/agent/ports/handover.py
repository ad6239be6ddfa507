"""A connection to a port of the sprite, handed to the edge as a descriptor.

The line of JSON that begins a connection to the agent may have the key `connect`:

    {"connect": {"port": N, "retry_seconds": S}, ...}    to the sprite's localhost; S is 0 to 60 s, 0 without it

The answer is one line of JSON, then the end:

    {"ok": true}                            with the connected TCP socket (SCM_RIGHTS), one descriptor
    {"error": REASON, "message": "..."}     `refused`, `timeout`, `not_running`, `unavailable` or `invalid`

Whoever asks may hang up at any time, and is then connected to nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from ballpoint.agent.ports.connect import LOCALHOST, UNAVAILABLE, ConnectError, connect, port_number
from ballpoint.agent.ports.network import Network
from ballpoint.agent.server import Connection, Handler
from ballpoint.core.errors import InvalidError
from ballpoint.core.tasks import Tasks

log = logging.getLogger("agent.ports")

RETRY_MOST_SECONDS = 60.0
_CONNECTED = b'{"ok": true}\n'
_NOT_RUNNING, _INVALID = "not_running", "invalid"


class HandOver:
    """Answers the edge's lines. `serving` says whether the sprite runs."""

    def __init__(self, network: Network, serving: Callable[[], bool]) -> None:
        self._network = network
        self._serving = serving
        self._tasks = Tasks()

    def __call__(self, connection: Connection, wanted: Any) -> Handler:
        answer = _Answer()
        if not self._serving():
            _refuse(connection, _NOT_RUNNING, "the sprite is not running")
            return answer
        try:
            port, seconds = parse(wanted)
        except InvalidError as error:
            _refuse(connection, _INVALID, error.message)
            return answer
        answer.task = self._tasks.start(self._answer(connection, port, seconds), f"connect to port {port}")
        return answer

    async def _answer(self, connection: Connection, port: int, seconds: float) -> None:
        try:
            sock = await connect(self._network, LOCALHOST, port, retry_seconds=seconds)
        except ConnectError as error:
            _refuse(connection, error.reason, error.message)
            return
        with sock:
            try:
                connection.hand_over(_CONNECTED, sock.fileno())
            except BrokenPipeError:
                connection.abort()
            except OSError as error:  # unix(7) ETOOMANYREFS: too many descriptors are on their way
                _refuse(connection, UNAVAILABLE, f"the connection could not be handed over: {error.strerror}")


class _Answer:
    """One that is being made."""

    def __init__(self) -> None:
        self.task: Any = None

    def data(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        if self.task is not None:
            self.task.cancel()


def parse(wanted: Any) -> tuple[int, float]:
    """Port and seconds of a `connect`.

    Raises:
        InvalidError: it is none.
    """
    if not isinstance(wanted, dict):
        raise InvalidError("connect is not an object")
    port, seconds = port_number(wanted.get("port")), wanted.get("retry_seconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= RETRY_MOST_SECONDS:
        raise InvalidError(f"retry_seconds is a number from 0 to {RETRY_MOST_SECONDS:.0f}")
    return port, float(seconds)


def _refuse(connection: Connection, reason: str, message: str) -> None:
    connection.send(json.dumps({"error": reason, "message": message}).encode() + b"\n")
    connection.close()
