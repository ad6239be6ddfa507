"""Exec over WebSocket (contract 3) and over HTTP (2.2), and the listing of sessions."""

from __future__ import annotations

import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.sessions.exec_request import parse_command
from ballpoint.agent.sessions.session import STDERR, Command, Session, Sessions
from ballpoint.agent.spawn_types import SpawnError
from ballpoint.agent.websocket import WebSocket
from ballpoint.core.errors import NotFoundError

PAYLOAD_MAX = 64 * 1024  # of a frame, contract 3.2
# First bytes of binary frames (contract 3.2).
_STDIN, _EXIT, _STDIN_EOF = 0, 3, 4
_CLOSE_OK, _CLOSE_BASE = 1000, 4000
_SIGNALS = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}


def signal_number(name: object) -> int | None:
    """Number of `TERM`, `SIGTERM` or `15`; None where there is no such signal."""
    text = str(name).upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        return int(text) if len(text) < 3 and 0 < int(text) < 65 else None
    return _SIGNALS.get(text)


class ExecRoutes:
    """The exec routes over one agent's sessions.

    Args:
        environment: the environment a process gets before the request adds to it.
    """

    def __init__(self, sessions: Sessions, environment: Callable[[], dict[str, str]]) -> None:
        self._sessions = sessions
        self._environment = environment

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/exec", self._get)
        routes.add("HEAD", "/exec", lambda connection, _: connection.respond(200, {}, head_only=True))
        routes.add("POST", "/exec", self._post)
        routes.add("GET", "/exec/*", self._get_session)

    def _get(self, connection: Connection, request: Request) -> Handler | None:
        if not request.is_websocket:
            listing = self._sessions.listing()
            connection.respond(200, {"sessions": listing, "count": len(listing)})
            return None
        command = parse_command(request.query, tty_allowed=True, stdin_default=None)
        viewer = _WebSocketExec(connection)
        viewer.socket.accept(request, {"x-sprite-capabilities": "signal"})
        viewer.run(self._sessions, command, self._merged(command))
        return viewer.socket

    def _post(self, connection: Connection, request: Request) -> Handler | None:
        command = parse_command(request.query, tty_allowed=False, stdin_default=False)
        viewer = _HttpExec(connection)
        viewer.run(self._sessions, command, self._merged(command))
        return viewer

    def _get_session(self, connection: Connection, request: Request) -> Handler | None:
        session = self._sessions.get(request.path.rpartition("/")[2])
        if session is None:
            raise NotFoundError("there is no such session")
        connection.respond(200, session.listing())
        return None

    def _merged(self, command: Command) -> dict[str, str]:
        terminal = {"TERM": "xterm-256color"} if command.tty else {}
        return {**terminal, **self._environment(), **command.env}


class _Exec(ABC):
    """What both ways of exec share: a session and its one terminal frame."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def run(self, sessions: Sessions, command: Command, environment: dict[str, str]) -> None:
        try:
            session = sessions.start(command, environment)
        except SpawnError as error:
            self.started(command, None)
            self.output(STDERR, f"sprite: {error.message}\n".encode())
            self.exited(error.exit_code)
            return
        self.session = session
        self.started(command, session)
        session.attach(self)

    @abstractmethod
    def started(self, command: Command, session: Session | None) -> None:
        """Begin the answer; there is no session where the command could not be started."""

    @abstractmethod
    def output(self, stream: int, data: bytes) -> bool: ...

    @abstractmethod
    def exited(self, code: int) -> None: ...

    @abstractmethod
    def pause_input(self, paused: bool) -> None: ...

    def writable(self) -> None:
        if self.session is not None:
            self.session.resume()

    def lost(self) -> None:
        if self.session is not None:
            self.session.detach(self)


class _WebSocketExec(_Exec):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._tty = False
        self.socket = WebSocket(connection, on_message=self._message, on_writable=self.writable, on_lost=self.lost)

    def started(self, command: Command, session: Session | None) -> None:
        self._tty = command.tty
        info = {
            "type": "session_info",
            "session_id": session.id if session is not None else "0",
            "command": command.text,
            "created": int(session.created.timestamp()) if session is not None else 0,
            "cols": command.cols,
            "rows": command.rows,
            "is_owner": True,
            "tty": command.tty,
        }
        self.socket.send_text(json.dumps(info))

    def output(self, stream: int, data: bytes) -> bool:
        prefix = b"" if self._tty else bytes((stream,))
        return self.socket.send_binary(*((prefix, piece) for piece in _pieces(data)))

    def exited(self, code: int) -> None:
        """No client understands all the others' ways to be told (contract 3.4)."""
        self.session = None
        if self._tty:
            told = json.dumps({"type": "exit", "exit_code": code})
            self.socket.close(_CLOSE_OK if code == 0 else _CLOSE_BASE + code, told)
        else:
            self.socket.close(_CLOSE_OK, bytes((_EXIT, code & 0xFF)))

    def pause_input(self, paused: bool) -> None:
        self._connection.pause_reading(paused)

    def _message(self, binary: bool, data: bytes) -> None:
        session = self.session
        if session is None:
            return
        if not binary:
            self._instruction(session, data)
        elif self._tty:
            session.write(data)
        elif data[:1] == bytes((_STDIN,)):
            session.write(data[1:])
        elif data[:1] == bytes((_STDIN_EOF,)):
            session.end_input()

    def _instruction(self, session: Session, data: bytes) -> None:
        """A text frame; what is not understood is ignored, as newer clients may say more."""
        try:
            message: Any = json.loads(data)
        except (ValueError, RecursionError):  # deep nesting is found out by the latter
            return
        if not isinstance(message, dict):
            return
        if message.get("type") == "resize":
            rows, cols = message.get("rows"), message.get("cols")
            if isinstance(rows, int) and isinstance(cols, int) and 0 < rows < 1 << 16 and 0 < cols < 1 << 16:
                session.resize(rows, cols)
        elif message.get("type") == "signal" and (number := signal_number(message.get("signal"))) is not None:
            session.signal(number)


class _HttpExec(_Exec):
    """Frames of a type byte and a payload, one in each HTTP chunk: their edges are visible nowhere else."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def started(self, command: Command, session: Session | None) -> None:
        self._connection.start_response(
            200,
            {"content-type": "application/octet-stream", "transfer-encoding": "chunked", "connection": "close"},
        )

    def output(self, stream: int, data: bytes) -> bool:
        chunks: list[bytes | memoryview] = []
        for piece in _pieces(data):
            chunks += (b"%x\r\n" % (1 + len(piece)), bytes((stream,)), piece, b"\r\n")
        return self._connection.send(*chunks)

    def exited(self, code: int) -> None:
        self.session = None
        self._connection.send(b"2\r\n", bytes((_EXIT, code & 0xFF)), b"\r\n0\r\n\r\n")
        self._connection.close()

    def pause_input(self, paused: bool) -> None:
        self._connection.pause_reading(paused)

    def data(self, data: bytes) -> None:
        if self.session is not None:
            self.session.write(data)

    def end(self) -> None:
        if self.session is not None:
            self.session.end_input()


def _pieces(data: bytes) -> Iterator[memoryview]:
    """Cut output into the payloads of frames."""
    view = memoryview(data)
    return (view[at : at + PAYLOAD_MAX] for at in range(0, len(view), PAYLOAD_MAX))
