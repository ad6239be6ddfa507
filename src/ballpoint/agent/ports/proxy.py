"""`GET /proxy`: a WebSocket joined to a TCP connection made inside the sprite (contract 2.8).

The client says where to in a first text, {"host", "port"}; it is answered {"status": "connected", "target"}, and from
then on binary messages are the bytes of the connection. Each side is held back by the other. When one side has ended,
what it said is delivered, then the other ends. A client that only stops speaking may say so: {"type": "eof"}.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from ballpoint.agent.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameError, Frames, close_code, head
from ballpoint.agent.ports.connect import LOCALHOST, REFUSED, TIMEOUT, ConnectError, connect, port_number
from ballpoint.agent.ports.network import Network
from ballpoint.agent.ports.tcp import Tcp
from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.websocket import answer_upgrade
from ballpoint.core.errors import InvalidError
from ballpoint.core.tasks import Tasks

CLOSE_OK, CLOSE_BROKEN = 1000, 1002
# 4000, and the HTTP status of the same meaning.
CLOSE_INVALID, CLOSE_REFUSED, CLOSE_UNAVAILABLE, CLOSE_TIMEOUT = 4400, 4502, 4503, 4504
_UNSENT_TO_SERVER = 256 * 1024
_FIRST_MOST = 4096
_REASON_MOST = 123  # RFC 6455 5.5
_CLOSE_SECONDS = 1.0
# Well above what is ever left unsent: the rest is answers to a client that pings and never reads.
_UNSENT_MAX = 4 << 20


class ProxyRoutes:
    """The route `/proxy`."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._tasks = Tasks()

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/proxy", self._get)

    def _get(self, connection: Connection, request: Request) -> Handler | None:
        if not request.is_websocket:
            raise InvalidError("this is a WebSocket", hint="ballpoint proxy PORT, or a client's proxy function")
        answer_upgrade(connection, request, {})
        return _Relay(connection, self._network, self._tasks)


def parse_first(data: bytes) -> tuple[str, int]:
    """Host and port of a client's first text.

    Raises:
        InvalidError: it is something else.
    """
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise InvalidError('the first message is {"host": ..., "port": ...}')
    host = said.get("host") or LOCALHOST
    if not isinstance(host, str):
        raise InvalidError("the host is no text")
    return host, port_number(said.get("port"))


def is_eof(data: bytes) -> bool:
    """Whether a text says that the client says no more."""
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("type") == "eof"


class _Relay:
    """One client and its TCP connection."""

    def __init__(self, connection: Connection, network: Network, tasks: Tasks) -> None:
        self._connection = connection
        self._network = network
        self._tasks = tasks
        self._frames = Frames()
        self._first: bytearray | None = bytearray()  # None once it has come
        self._received: list[bytes] = []
        self._text_received = bytearray()
        self._mute = False  # the client says no more
        self._dialling: asyncio.Task[None] | None = None
        self._tcp: Tcp | None = None
        self._held = False  # nothing is taken from the client
        self._closed = False  # a close frame was sent: what the client still says is dropped
        self._timer: asyncio.TimerHandle | None = None

    # ---- from the client ----

    def data(self, data: bytes) -> None:
        try:
            for opcode, piece, last in self._frames.feed(data):
                self._take(opcode, piece, last)
        except FrameError as error:
            self._close(CLOSE_BROKEN, str(error))
        if self._tcp is not None and self._received:
            pieces, self._received = self._received, []
            self._tcp.write(pieces)
            if self._tcp.unsent > _UNSENT_TO_SERVER:
                self._hold(True)
        if self._mute and self._tcp is not None:
            self._tcp.end_output()
        if self._connection.unsent > _UNSENT_MAX:
            self._connection.abort()

    def _take(self, opcode: int, piece: bytes, last: bool) -> None:
        if opcode == CLOSE:
            self._answer_close(close_code(piece))
        elif self._closed:
            return
        elif opcode == PING:
            self._connection.send(head(PONG, len(piece)), piece)
        elif opcode == BINARY and self._first is None:
            if piece and not self._mute:
                self._received.append(piece)
        elif opcode == TEXT and self._first is None:
            self._take_text(piece, last)
        elif opcode in (BINARY, TEXT) and self._first is not None:
            self._first += piece
            if opcode == BINARY or len(self._first) > _FIRST_MOST:
                self._fail(CLOSE_INVALID, "invalid", "the first message is no short text")
            elif last:
                first, self._first = bytes(self._first), None
                self._dial(first)

    def _take_text(self, piece: bytes, last: bool) -> None:
        """What is not understood is ignored, as newer clients may say more."""
        if len(self._text_received) <= _FIRST_MOST:
            self._text_received += piece
        if last:
            self._mute = self._mute or is_eof(bytes(self._text_received))
            self._text_received.clear()

    def _answer_close(self, code: int) -> None:
        if not self._closed:
            self._closed = True
            self._connection.send(head(CLOSE, 2), code.to_bytes(2, "big"))
        if self._tcp is not None:
            self._tcp.write(self._received)
            self._tcp.finish()
        self._connection.close()

    def lost(self) -> None:
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._tcp is not None:
            self._tcp.finish()

    def end(self) -> None:
        pass

    def _hold(self, wanted: bool) -> None:
        if wanted != self._held:
            self._held = wanted
            self._connection.pause_reading(wanted)

    # ---- to the server ----

    def _dial(self, first: bytes) -> None:
        try:
            host, port = parse_first(first)
        except InvalidError as error:
            self._fail(CLOSE_INVALID, "invalid", error.message)
            return
        self._dialling = self._tasks.start(self._connect(host, port), "a proxied connection")
        self._hold(True)

    async def _connect(self, host: str, port: int) -> None:
        try:
            sock = await connect(self._network, host, port)
        except InvalidError as error:
            self._fail(CLOSE_INVALID, "invalid", error.message)
        except ConnectError as error:
            code = {REFUSED: CLOSE_REFUSED, TIMEOUT: CLOSE_TIMEOUT}.get(error.reason, CLOSE_UNAVAILABLE)
            self._fail(code, error.reason, error.message)
        else:
            self._join(sock, f"{host}:{port}")
        finally:
            self._dialling = None

    def _join(self, sock: socket.socket, target: str) -> None:
        if self._closed:  # by what came along with the first message
            sock.close()
            return
        self._tcp = Tcp(sock, on_data=self._to_client, on_end=self._server_ended, on_room=lambda: self._hold(False))
        self._text({"status": "connected", "target": target})
        self._tcp.read(self._connection.writable)
        pieces, self._received = self._received, []
        self._tcp.write(pieces)
        if self._mute:
            self._tcp.end_output()

    # ---- to the client ----

    def writable(self) -> None:
        if self._tcp is not None:
            self._tcp.read(True)

    def _to_client(self, data: bytes) -> bool:
        return self._connection.send(head(BINARY, len(data)), data)

    def _server_ended(self, error: OSError | None) -> None:
        if error is None:
            self._close(CLOSE_OK, "")
        else:
            self._close(CLOSE_REFUSED, f"the connection was cut: {error.strerror}")

    def _text(self, content: dict[str, str]) -> None:
        data = json.dumps(content).encode()
        self._connection.send(head(TEXT, len(data)), data)

    def _fail(self, code: int, reason: str, message: str) -> None:
        if not self._closed:
            self._text({"status": "error", "error": reason, "message": message})
            self._close(code, message)

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the connection ends when the client has done its part, or soon."""
        if self._closed:
            return
        self._closed = True
        payload = code.to_bytes(2, "big") + reason.encode("ascii", "replace")[:_REASON_MOST]
        self._connection.send(head(CLOSE, len(payload)), payload)
        if self._tcp is not None:
            self._tcp.close()
        self._hold(False)
        self._timer = asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._connection.close)
