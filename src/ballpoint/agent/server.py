"""HTTP and WebSocket on the agent's socket: one request a connection, handed over by the edge.

A connection begins with one line of JSON, written by the edge, that says who calls; then comes one request. A line with
the key `connect` asks for a connection to a port instead (agent/ports/handover.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import socket
import weakref
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote

import httptools

from ballpoint.core.errors import BallpointError, InvalidError, NotFoundError
from ballpoint.core.wire import NOT_STARTED

log = logging.getLogger("agent.http")

_PREAMBLE_MAX = 4096
_HIGH_WATER = 256 * 1024
# So that a whole read of a pipe fits, whose buffers count nearly double. socket(7): net.core.wmem_max bounds it.
_SEND_BUFFER = 512 * 1024
_RETRY_AFTER_SECONDS = 2
_NOT_SERVING = {
    "error": "unavailable",
    "message": "the sprite is not running",
    "hint": "try again",
    "retry_after_seconds": _RETRY_AFTER_SECONDS,
}
_REASONS = {
    101: "Switching Protocols", 200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content",
    400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content",
    500: "Internal Server Error", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


class Handler(Protocol):
    """What a route makes of a request that goes on after its head."""

    def data(self, data: bytes) -> None:
        """Part of the request's body; after an upgrade, raw bytes."""
        ...

    def end(self) -> None:
        """The body has ended."""
        ...

    def writable(self) -> None:
        """The client takes output again."""
        ...

    def lost(self) -> None:
        """The client has gone."""
        ...


class Request:
    """A request's head.

    Attributes:
        preamble: who calls, as the edge says.
        target: path and query as sent. path: decoded, without the query; query: as sent.
        headers: lower-case names; the last of equal ones.
    """

    def __init__(self, method: str, target: str, headers: dict[str, str], preamble: dict[str, Any]) -> None:
        path, _, self.query = target.partition("?")
        self.target = target
        self.path = unquote(path)
        self.method = method
        self.headers = headers
        self.preamble = preamble

    @property
    def is_websocket(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def has_body(self) -> bool:
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"


Route = Callable[["Connection", Request], Handler | None]
Connecting = Callable[["Connection", Any], Handler]


class Connection(asyncio.Protocol):
    """One connection; parses its head, then passes bytes between the client and a handler.

    It has one request; what follows that is dropped. An end of what the client sends is the client's end.

    Args:
        preamble: who calls, where the connection itself says it; None reads it from the first line.
        connecting: takes the value of the line's key `connect`; None takes none.
    """

    def __init__(
        self, route: Route, preamble: dict[str, Any] | None = None, connecting: Connecting | None = None
    ) -> None:
        self._route = route
        self._connecting = connecting
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._preamble = preamble
        self._parser: Any = None if preamble is None else httptools.HttpRequestParser(self)
        self._buffer = b""
        self._target = b""
        self._headers: dict[str, str] = {}
        self._handler: Handler | None = None
        self._upgraded = False
        self._complete = False
        self._hangup: select.epoll | None = None
        self._routed = False
        self._unread = False
        self.writable = True

    def leave_unread(self) -> None:
        """Read nothing more, unless the request's head was read."""
        if self._routed:
            return
        self._unread = True
        if self._transport is not None:
            self._transport.pause_reading()

    # ---- what handlers use ----

    def send(self, *chunks: bytes | memoryview) -> bool:
        """Write; False asks the caller to wait for `Handler.writable`."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            sent = self._send_now(transport, chunks)
            for chunk in chunks:
                if sent < len(chunk):
                    transport.write(memoryview(chunk)[sent:] if sent else chunk)
                sent = max(0, sent - len(chunk))
        return self.writable

    def _send_now(self, transport: asyncio.Transport, chunks: tuple[bytes | memoryview, ...]) -> int:
        """How many bytes went out at once, which a transport would first copy into one piece."""
        if transport.get_write_buffer_size():
            return 0
        try:
            return os.writev(self._fd, chunks)
        except OSError:
            return 0  # there is no room, or it has gone: the transport finds out which

    def start_response(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def respond(
        self, status: int, body: Any, *, head_only: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        """A whole JSON response; closes the connection."""
        data = json.dumps(body).encode()
        fields = {"content-type": "application/json", "content-length": str(len(data)), "connection": "close"}
        self.start_response(status, {**fields, **(headers or {})})
        if not head_only:
            self.send(data)
        self.close()

    def respond_error(self, error: BallpointError) -> None:
        body = {"error": error.code, "message": error.message}
        if error.hint:
            body["hint"] = error.hint
        self.respond(error.status, body)

    def hand_over(self, line: bytes, fd: int) -> None:
        """Send `line` with a copy of the descriptor `fd` (SCM_RIGHTS), as the first that is said here, and close.

        Raises:
            OSError: the client has gone, or there is no room for it.
        """
        assert self._transport is not None
        with self._transport.get_extra_info("socket").dup() as sock:
            socket.send_fds(sock, [line], [fd])
        self.close()

    def pause_reading(self, paused: bool) -> None:
        """Take no more from the client (or do again). That it has gone is noticed all the same."""
        if self._transport is None or self._transport.is_closing():
            return
        if paused:
            self._transport.pause_reading()
            self._watch()
        else:
            self._unwatch()
            self._transport.resume_reading()

    def fileno(self) -> int:
        """Descriptor of the client's socket, for a process that writes the rest of a response in this one's place."""
        return self._fd

    def lend(self) -> int:
        """Descriptor of the client's socket, for a process that reads the rest of the body in this one's place.

        What was read before is given to the handler. Who asks must know that it is not all of the body.
        """
        self.pause_reading(True)
        return self._fd

    def _watch(self) -> None:
        """An event loop that reads nothing sees no end; epoll(7) reports a hang-up unasked."""
        if self._hangup is None:
            self._hangup = select.epoll()
            self._hangup.register(self._fd, 0)
            asyncio.get_running_loop().add_reader(self._hangup.fileno(), self.abort)

    def _unwatch(self) -> None:
        if self._hangup is not None:
            asyncio.get_running_loop().remove_reader(self._hangup.fileno())
            self._hangup.close()
            self._hangup = None

    def upgrade(self) -> None:
        """From now on the handler gets raw bytes."""
        self._upgraded = True

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client to take them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def close(self) -> None:
        """End the connection once all is sent."""
        self._unwatch()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._unwatch()
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        ours = transport.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._fd = ours.fileno()
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        if self._unread:
            # Not at once: a transport of CPython 3.11.2 begins to read after this callback, paused or not.
            asyncio.get_running_loop().call_soon(transport.pause_reading)

    def data_received(self, data: bytes) -> None:
        if self._preamble is None:
            data = self._take_preamble(data)
            if not data:
                return
        if self._upgraded:
            assert self._handler is not None
            self._handler.data(data)
            return
        if self._complete:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._malformed(error)

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if self._complete:
            return  # it is what follows the request
        if self._handler is not None:
            self.close()  # the response has begun; a cut one says that something is wrong
        else:
            self.respond_error(InvalidError(f"malformed request: {error}"))

    def _after_upgrade(self, rest: bytes) -> None:
        if rest and self._upgraded and self._handler is not None:
            self._handler.data(rest)

    def _take_preamble(self, data: bytes) -> bytes:
        self._buffer += data
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            if len(self._buffer) > _PREAMBLE_MAX:
                self.close()
            return b""
        try:
            preamble = json.loads(line) if len(line) <= _PREAMBLE_MAX else None
        except (ValueError, RecursionError):
            preamble = None
        if not isinstance(preamble, dict):
            self.close()
            return b""
        self._preamble = preamble
        self._buffer = b""
        self._parser = httptools.HttpRequestParser(self)
        if "connect" in preamble and self._connecting is not None:
            self._routed = self._complete = True
            self._handler = self._connecting(self, preamble["connect"])
            return b""
        return rest

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._handler is not None:
            self._handler.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._parser = None
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.lost()

    # ---- httptools ----

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        assert self._preamble is not None
        self._routed = True
        method = self._parser.get_method().decode("latin-1")
        request = Request(method, self._target.decode("latin-1"), self._headers, self._preamble)
        try:
            if self._parser.should_upgrade() and request.has_body:
                raise InvalidError("an upgrade cannot have a body")  # the parser would not read it
            self._handler = self._route(self, request)
        except BallpointError as error:
            self.respond_error(error)
        except Exception as error:  # noqa: BLE001 - a defect here must not show a traceback to a client
            log.exception("request failed")
            self.respond(500, {"error": "internal", "message": f"the agent failed: {type(error).__name__}"})

    def on_body(self, body: bytes) -> None:
        if self._handler is not None and not self._complete:
            self._handler.data(body)

    def on_message_complete(self) -> None:
        if self._complete:
            return
        self._complete = True
        if self._handler is not None and not self._upgraded:
            self._handler.end()


class Routes:
    """The table of what an agent serves: (method, path) -> route. A segment `*` of a path is any one that is not empty.

    Attributes:
        serving: while it says no, a request is refused before anything is begun, and told so: the edge asks the node
            what comes next.
    """

    def __init__(self) -> None:
        self._table: dict[str, dict[str, Route]] = {}
        self._patterns: dict[tuple[str, ...], dict[str, Route]] = {}
        self.serving: Callable[[], bool] = lambda: True

    def add(self, method: str, path: str, route: Route) -> None:
        if "*" in path:
            self._patterns.setdefault(tuple(path.split("/")), {})[method] = route
        else:
            self._table.setdefault(path, {})[method] = route

    def __call__(self, connection: Connection, request: Request) -> Handler | None:
        if not self.serving():
            headers = {"retry-after": str(_RETRY_AFTER_SECONDS), NOT_STARTED: "1"}
            connection.respond(503, _NOT_SERVING, head_only=request.method == "HEAD", headers=headers)
            return None
        methods = self._table.get(request.path) or self._matching(request.path.split("/"))
        if methods is None:
            raise NotFoundError(f"there is no {request.path[:200]}")
        route = methods.get(request.method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            connection.respond(405, {"error": "method_not_allowed", "message": f"only {allowed} is served here"})
            return None
        return route(connection, request)

    def _matching(self, segments: list[str]) -> dict[str, Route] | None:
        for pattern, methods in self._patterns.items():
            if len(pattern) == len(segments) and all(
                wanted == given or (wanted == "*" and given) for wanted, given in zip(pattern, segments, strict=True)
            ):
                return methods
        return None


class Server:
    """Serves requests on a listening unix stream socket, in the running event loop; made by `serve`."""

    def __init__(self, routes: Route, connecting: Connecting | None = None) -> None:
        self._routes = routes
        self._connecting = connecting
        self._listening: asyncio.Server | None = None
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._left = False

    async def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listening = await asyncio.get_running_loop().create_unix_server(self._connection, sock=listener)

    def close(self) -> None:
        """Accept no more connections; those there are go on."""
        assert self._listening is not None
        self._listening.close()

    def leave_unread(self) -> None:
        """Take no more requests: what was not read stays in its socket. Requests that were read go on.

        A unix socket that is closed with bytes unread, or before it was accepted, is reset: the end of this process,
        which may come too soon for an answer, tells whoever sent a request that nothing of it was begun.
        """
        self.close()
        self._left = True
        for connection in self._connections:
            connection.leave_unread()

    def _connection(self) -> Connection:
        made = Connection(self._routes, connecting=self._connecting)
        self._connections.add(made)
        if self._left:  # it was accepted before
            made.leave_unread()
        return made


async def serve(listener: socket.socket, routes: Route, connecting: Connecting | None = None) -> Server:
    """Serve `routes` on a listening unix stream socket, which is the server's from now on.

    Args:
        connecting: as of `Connection`.
    """
    server = Server(routes, connecting)
    await server.start(listener)
    return server
