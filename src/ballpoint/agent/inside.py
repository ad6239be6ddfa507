"""`/.sprite/api.sock`: what code inside a sprite asks of its own node, as any user and without a token.

The parked container binds the socket, so that it is inside before the first command; the agent accepts on it, and
passes each request on by its control connection. By that connection the node knows whose request it is: nothing that is
said here can name another sprite. What is about the sprite's services the agent answers itself. All of it is hostile: a
request is small and comes in time, its answer is read in time, or its connection ends; and only so many connections
there are at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from ballpoint.agent.server import Connection, Handler, Request, Route
from ballpoint.core.errors import BallpointError, InvalidError, UnavailableError
from ballpoint.core.tasks import Tasks

log = logging.getLogger("agent.inside")

# Escaped for the wire, a byte takes up to six, and one message has room for 128 KiB.
REQUEST_MAX = 16 * 1024
CONNECTIONS_MAX = 32
_REQUEST_SECONDS = 10.0
_READ_SECONDS = 30.0
_VERSION = "/v1"
# What the agent answers itself, by the same routes as those outside.
_OWN = "/v1/services"
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})
_TOO_LARGE = {"error": "too_large", "message": f"a request may have {REQUEST_MAX} bytes at most, head and body"}
_TOO_MANY = {
    "error": "unavailable",
    "message": f"{CONNECTIONS_MAX} connections are open here already",
    "hint": "close some, or try again",
}


class Answer(Protocol):
    """Where the node's answer goes."""

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Send the head; once."""
        ...

    async def write(self, data: bytes) -> bool:
        """Send a part of the body and wait until there is room for the next; False where nobody reads it."""
        ...


class Node(Protocol):
    """Who answers."""

    async def ask(self, method: str, target: str, body: bytes, answer: Answer) -> None:
        """As `Control.ask`."""
        ...


class InsideServer:
    """Serves the socket inside one sprite.

    Args:
        own: answers what is not the node's to answer; None leaves all to the node.
    """

    def __init__(self, node: Node, own: Route | None = None) -> None:
        self._node = node
        self._own = own
        self._tasks = Tasks()
        self._open: set[_Caller] = set()
        self._listening: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve `listener`, which is the server's from now on."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_unix_server(lambda: _Caller(self), sock=listener)

    async def close(self) -> None:
        """End it with all its connections."""
        if self._listening is not None:
            self._listening.close()
        for caller in list(self._open):
            caller.abort()
        await self._tasks.close()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._open)

    def admit(self, caller: _Caller) -> bool:
        """Count a new connection; False where there are too many."""
        if self.connections >= CONNECTIONS_MAX:
            return False
        self._open.add(caller)
        return True

    def left(self, caller: _Caller) -> None:
        self._open.discard(caller)

    def route(self, connection: Connection, request: Request) -> Handler | None:
        if request.method not in _METHODS:
            body = {"error": "method_not_allowed", "message": f"only {', '.join(sorted(_METHODS))} are served here"}
            connection.respond(405, body, head_only=request.method == "HEAD")
            return None
        if request.is_websocket:
            raise InvalidError("this socket serves no WebSocket")
        assert isinstance(connection, _Caller)
        if self._own is not None and (request.path == _OWN or request.path.startswith(f"{_OWN}/")):
            target = request.target.removeprefix(_VERSION)
            handler = self._own(connection, Request(request.method, target, request.headers, request.preamble))
            return None if handler is None else _Own(connection, handler)
        return _Exchange(self._node, self._tasks, connection, request)


class _Caller(Connection):
    """A connection of somebody inside."""

    def __init__(self, server: InsideServer) -> None:
        super().__init__(server.route, preamble={})
        self._server = server
        self._received = 0
        self._late: asyncio.TimerHandle | None = None

    def request_came(self) -> None:
        """It came in time."""
        if self._late is not None:
            self._late.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._server.admit(self):
            self._late = asyncio.get_running_loop().call_later(_REQUEST_SECONDS, self.abort)
        else:
            self.respond(503, _TOO_MANY)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= REQUEST_MAX:
            super().data_received(data)
        elif self._complete:
            self.abort()
        else:
            self.respond(413, _TOO_LARGE)

    def close(self) -> None:
        super().close()
        # What was sent is there to be read, but not for ever.
        self.request_came()
        self._late = asyncio.get_running_loop().call_later(_READ_SECONDS, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self.request_came()
        self._server.left(self)
        super().connection_lost(exc)


class _Own:
    """One request that the agent answers itself: once it has come, its connection has time."""

    def __init__(self, connection: _Caller, handler: Handler) -> None:
        self._connection = connection
        self.data = handler.data
        self._end = handler.end
        self.writable = handler.writable
        self.lost = handler.lost

    def end(self) -> None:
        self._connection.request_came()
        self._end()


class _Exchange:
    """One request, collected whole, and the answer to it."""

    def __init__(self, node: Node, tasks: Tasks, connection: _Caller, request: Request) -> None:
        self._node = node
        self._tasks = tasks
        self._connection = connection
        self._request = request
        self._body = b""
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._begun = False
        self._bodiless = False
        self._gone = False

    # ---- server.Handler ----

    def data(self, data: bytes) -> None:
        self._body += data

    def end(self) -> None:
        self._connection.request_came()
        self._task = self._tasks.start(self._ask(), f"{self._request.method} {self._request.path[:80]}")

    def writable(self) -> None:
        self._room.set()

    def lost(self) -> None:
        self._gone = True
        self._room.set()
        if self._task is not None:
            self._task.cancel()

    # ---- Answer ----

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self._begun = True
        self._bodiless = status == 204  # RFC 9112 section 6.1: no transfer coding with it
        coding = {} if self._bodiless else {"transfer-encoding": "chunked"}
        self._connection.start_response(status, {**headers, **coding, "connection": "close"})

    async def write(self, data: bytes) -> bool:
        if self._gone or not data:
            return not self._gone
        self._room.clear()
        if not self._connection.send(b"%x\r\n" % len(data), data, b"\r\n"):
            try:
                async with asyncio.timeout(_READ_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                self._connection.abort()
                return False
        return not self._gone

    async def _ask(self) -> None:
        try:
            await self._node.ask(self._request.method, self._request.target, self._body, self)
        except BallpointError as error:
            log.warning("a request from inside failed: %s", error)
            if self._begun:
                self._connection.close()  # without the last chunk, which says that something is wrong
            else:
                self._connection.respond_error(UnavailableError("the node did not answer", hint="try again"))
            return
        if not self._begun:
            self._connection.respond_error(UnavailableError("the node gave no answer", hint="try again"))
            return
        if not self._bodiless:
            self._connection.send(b"0\r\n\r\n")
        self._connection.close()
