"""A session's frames (contract 3.2): what its viewers are sent over WebSocket, and send."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

from ballpoint.agent.server import Connection
from ballpoint.agent.sessions.journal import STREAMS
from ballpoint.agent.sessions.session import STDERR, STDOUT, Command, Session
from ballpoint.agent.websocket import WebSocket

PAYLOAD_MAX = 64 * 1024  # of a frame, contract 3.2
# First bytes of binary frames (contract 3.2).
_STDIN, EXIT, _STDIN_EOF = 0, 3, 4
_CLOSE_OK, _CLOSE_BASE = 1000, 4000
_SIGNALS = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
_STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


def signal_number(name: object) -> int | None:
    """Number of `TERM`, `SIGTERM` or `15`; None where there is no such signal."""
    text = str(name).upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        return int(text) if len(text) < 3 and 0 < int(text) < 65 else None
    return _SIGNALS.get(text)


def pieces(data: bytes) -> Iterator[memoryview]:
    """Cut output into the payloads of frames."""
    view = memoryview(data)
    return (view[at : at + PAYLOAD_MAX] for at in range(0, len(view), PAYLOAD_MAX))


def error_lines(message: str) -> bytes:
    """What stderr says where a command could not be started."""
    return f"sprite: {message}\n".encode()


class WebSocketViewer:
    """A viewer whose frames go over a WebSocket.

    Args:
        socket: of somebody else, who passes on what comes on it; None makes one of its own.

    Attributes:
        session: what is viewed; None before, after its exit, and where it could not be started.
        end_ports: ends that it is told of the ports that the session opens.
    """

    def __init__(self, connection: Connection, socket: WebSocket | None = None) -> None:
        self._connection = connection
        self.socket = socket or WebSocket(
            connection, on_message=self.message, on_writable=self.writable, on_lost=self.lost
        )
        self._tty = False
        self.session: Session | None = None
        self.end_ports: Callable[[], None] = lambda: None

    def begin(self, session: Session, cursors: dict[int, int] | None, rows: int = 0, cols: int = 0) -> None:
        """Say what is viewed and from where on, which goes before all output (contract 3.5), and view it.

        Args:
            cursors: as of `Session.attach`.
        """
        self.session = session
        self._introduce(
            session_id=session.id,
            command=session.command,
            created=int(session.created.timestamp()),
            rows=rows,
            cols=cols,
            is_owner=cursors is None,
            tty=session.tty,
            offsets=_named(cursors or dict.fromkeys(STREAMS, 0)),
        )
        session.attach(self, cursors)

    def refused(self, command: Command, message: str, code: int) -> None:
        """Say of a command that could not be started what is said of one that fails at once."""
        self._introduce(
            session_id="0",
            command=command.text,
            created=0,
            rows=command.rows,
            cols=command.cols,
            is_owner=True,
            tty=command.tty,
            offsets=_named(dict.fromkeys(STREAMS, 0)),
        )
        self.output(STDERR, error_lines(message))
        self.exited(code)

    def _introduce(self, *, tty: bool, **info: Any) -> None:
        self._tty = tty
        self.say(type="session_info", tty=tty, **info)

    # ---- Viewer ----

    def output(self, stream: int, data: bytes) -> bool:
        prefix = b"" if self._tty else bytes((stream,))
        return self.socket.send_binary(*((prefix, piece) for piece in pieces(data)))

    def skipped(self, stream: int, start: int, end: int) -> None:
        self.say(type="dropped", stream=_STREAM_NAMES[stream], start=start, end=end)

    def exited(self, code: int) -> None:
        """No client understands all the others' ways to be told (contract 3.4)."""
        self.leave()
        if self._tty:
            told = json.dumps({"type": "exit", "exit_code": code})
            self.socket.close(_CLOSE_OK if code == 0 else _CLOSE_BASE + code, told)
        else:
            self.socket.close(_CLOSE_OK, bytes((EXIT, code & 0xFF)))

    def pause_input(self, paused: bool) -> None:
        self._connection.pause_reading(paused)

    # ---- what comes from the client ----

    def writable(self) -> None:
        if self.session is not None:
            self.session.resume(self)

    def lost(self) -> None:
        session = self.session
        self.leave()
        if session is not None:
            session.detach(self)

    def leave(self) -> None:
        """View nothing any more."""
        self.session = None
        self.end_ports()

    def message(self, binary: bool, data: bytes) -> None:
        """A message of the client's; what is not understood is ignored, as newer clients may say more."""
        if self.session is None:
            return
        if not binary:
            self.instruction(data)
        elif self._tty:
            self.session.write(data)
        elif data[:1] == bytes((_STDIN,)):
            self.session.write(data[1:])
        elif data[:1] == bytes((_STDIN_EOF,)):
            self.session.end_input()

    def instruction(self, data: bytes) -> bool:
        """Do what a text asks for. False where it asks for nothing that is known."""
        asked = parsed_object(data)
        session = self.session
        if asked is None or session is None:
            return False
        if asked.get("type") == "resize":
            rows, cols = asked.get("rows"), asked.get("cols")
            if isinstance(rows, int) and isinstance(cols, int) and 0 < rows < 1 << 16 and 0 < cols < 1 << 16:
                session.resize(rows, cols)
            return True
        if asked.get("type") == "signal":
            if (number := signal_number(asked.get("signal"))) is not None:
                session.signal(number)
            return True
        return False

    def tell(self, message: dict[str, Any]) -> None:
        """Say what is no output. Not to a client that does not read, for which it would pile up."""
        if self._connection.writable:
            self.say(**message)

    def say(self, **what: Any) -> None:
        """Send a text, which clients that do not know its type ignore."""
        self.socket.send_text(json.dumps(what))


class AttachedViewer(WebSocketViewer):
    """A viewer that came later.

    One client, which attaches without input of its own, says so at once by an end of input, before it can know what it
    attached to: to a terminal that is a `^D`. The input is not his alone, so such a first message means nothing.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._first = True

    def message(self, binary: bool, data: bytes) -> None:
        first, self._first = self._first, False
        if not (first and binary and data == bytes((_STDIN_EOF,))):
            super().message(binary, data)


def _named(cursors: dict[int, int]) -> dict[str, int]:
    return {_STREAM_NAMES[stream]: at for stream, at in cursors.items()}


def parsed_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object that `data` is; None where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # deep nesting is found out by the latter
        return None
    return value if isinstance(value, dict) else None
