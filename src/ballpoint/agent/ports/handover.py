"""A connection to a port of the sprite, handed to the edge as a descriptor.

The line of JSON that begins a connection to the agent may have the key `connect`:

    {"connect": {"port": N, "retry_seconds": S}, ...}    to the sprite's localhost; S is 0 to 60 s, 0 without it

A port of null is the sprite's HTTP port: that of the service which has one, which is started first where it does not
run, and otherwise 8080. The answer is one line of JSON, then the end:

    {"ok": true, "port": N}                 with the connected TCP socket (SCM_RIGHTS), one descriptor
    {"error": REASON, "message": "..."}     `refused`, `timeout` (both with `port`), `not_running`, `stopped`,
                                            `unavailable` or `invalid`

Whoever asks may hang up at any time, and is then connected to nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ballpoint.agent.ports.connect import LOCALHOST, UNAVAILABLE, ConnectError, connect, port_number
from ballpoint.agent.ports.network import Network
from ballpoint.agent.server import Connection, Handler
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError
from ballpoint.core.tasks import Tasks

log = logging.getLogger("agent.ports")

RETRY_MOST_SECONDS = 60.0
DEFAULT_HTTP_PORT = 8080
_NOT_RUNNING, _STOPPED, _INVALID = "not_running", "stopped", "invalid"


async def default_http_port() -> int:
    """Where a sprite without services serves what comes by its URL."""
    return DEFAULT_HTTP_PORT


class HandOver:
    """Answers the edge's lines.

    Args:
        serving: says whether the sprite runs.
        http_port: finds the sprite's HTTP port, and has whoever serves it started. ConflictError: somebody has stopped
            that. UnavailableError: it does not start.
    """

    def __init__(
        self,
        network: Network,
        serving: Callable[[], bool],
        http_port: Callable[[], Awaitable[int]] = default_http_port,
    ) -> None:
        self._network = network
        self._serving = serving
        self._http_port = http_port
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

    async def _answer(self, connection: Connection, port: int | None, seconds: float) -> None:
        try:
            port = await self._http_port() if port is None else port
        except ConflictError as error:
            _refuse(connection, _STOPPED, error.message)
            return
        except BallpointError as error:
            _refuse(connection, UNAVAILABLE, error.message)
            return
        try:
            sock = await connect(self._network, LOCALHOST, port, retry_seconds=seconds)
        except ConnectError as error:
            _refuse(connection, error.reason, error.message, port=port)
            return
        with sock:
            try:
                connection.hand_over(json.dumps({"ok": True, "port": port}).encode() + b"\n", sock.fileno())
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


def parse(wanted: Any) -> tuple[int | None, float]:
    """Port and seconds of a `connect`; the port is None where the sprite's HTTP port is meant.

    Raises:
        InvalidError: it is none.
    """
    if not isinstance(wanted, dict):
        raise InvalidError("connect is not an object")
    if "port" not in wanted:
        raise InvalidError("connect has no port")
    port = None if wanted["port"] is None else port_number(wanted["port"])
    seconds = wanted.get("retry_seconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= RETRY_MOST_SECONDS:
        raise InvalidError(f"retry_seconds is a number from 0 to {RETRY_MOST_SECONDS:.0f}")
    return port, float(seconds)


def _refuse(connection: Connection, reason: str, message: str, **more: int) -> None:
    connection.send(json.dumps({"error": reason, "message": message, **more}).encode() + b"\n")
    connection.close()
