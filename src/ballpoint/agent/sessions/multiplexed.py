"""The control socket (contract 3.7): commands one after the other on one WebSocket.

What is `control:` and JSON begins and ends an operation; everything else is as on a socket of the operation's own.
"""

from __future__ import annotations

import json
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from ballpoint.agent.server import Connection, Request
from ballpoint.agent.sessions.exec_request import check_texts, command_of
from ballpoint.agent.sessions.frames import EXIT, WebSocketViewer, parsed_object
from ballpoint.agent.sessions.session import Command
from ballpoint.agent.websocket import WebSocket
from ballpoint.core.errors import BallpointError

_PREFIX = "control:"
_EOF = b"\x04"


class Execs(Protocol):
    """What runs commands."""

    def start(self, command: Command, viewer: WebSocketViewer) -> None:
        """Run a command for the viewer, or tell him why it cannot be run."""
        ...

    def attach(self, session_id: str, query: str, viewer: WebSocketViewer) -> None:
        """Let the viewer see a session. Raises NotFoundError, InvalidError."""
        ...


class Activity(Protocol):
    """Who is to know what keeps the sprite awake: a control socket alone does not, but a command on it."""

    def began(self) -> None: ...

    def ended(self) -> None: ...


class MultiplexedSocket:
    """One control socket.

    Args:
        activity: is told of each operation; None where nobody wants to know.
        raw_input: its client sends input without a first byte that says so, as one official client does.
    """

    def __init__(self, connection: Connection, execs: Execs, activity: Activity | None, *, raw_input: bool) -> None:
        self._activity = activity
        self._connection = connection
        self._execs = execs
        self._raw_input = raw_input
        self._operation: _Operation | None = None
        self.socket = WebSocket(connection, on_message=self._message, on_writable=self._writable, on_lost=self._lost)

    def accept(self, request: Request) -> None:
        """Answer the upgrade, and begin what its query asks for."""
        self.socket.accept(request, {"x-sprite-capabilities": "signal"})
        fields = parse_qsl(request.query, keep_blank_values=True, errors="surrogateescape")
        operation = dict(reversed(fields)).get("op")
        if operation is not None:
            self._begin(operation, fields)

    def ended(self, code: int) -> None:
        """The operation has ended; the next may begin."""
        self._end()
        self._say("op.complete", exitCode=code)

    # ---- what comes from the client ----

    def _message(self, binary: bool, data: bytes) -> None:
        if not binary and data.startswith(_PREFIX.encode()):
            self._control(parsed_object(data[len(_PREFIX) :]))
        elif self._operation is not None:
            self._operation.message(binary, data)
        elif not binary:
            self._unprefixed(parsed_object(data))
        # else: input that crossed the end of its command

    def _control(self, asked: dict[str, Any] | None) -> None:
        if asked is None or asked.get("type") != "op.start":
            self._say("op.error", error="this is no operation: control:{type: op.start, op, args}")
            return
        if self._operation is not None:
            self._say("op.error", error="an operation is under way on this socket")
            return
        arguments = asked.get("args")
        self._begin(str(asked.get("op")), _fields(arguments if isinstance(arguments, dict) else {}))

    def _unprefixed(self, asked: dict[str, Any] | None) -> None:
        """Another form of one client, for what is served elsewhere: it goes there when it is told so."""
        if asked is not None and asked.get("type") == "op.start":
            error = f"{str(asked.get('op'))[:64]} is not served on a control socket"
            self.socket.send_text(json.dumps({"type": "op.error", "args": {"error": error}}))

    def _begin(self, operation: str, fields: list[tuple[str, str]]) -> None:
        if operation != "exec":
            self._say("op.error", error=f"there is no operation {operation[:64]!r}")
            return
        named = dict(reversed(fields))
        viewer = _Operation(self, self._connection, self.socket, raw_input=self._raw_input or "path" in named)
        self._operation = viewer
        if self._activity is not None:
            self._activity.began()
        try:
            check_texts(fields)
            if named.get("id") and not named.get("cmd"):
                self._execs.attach(named["id"], urlencode(fields, errors="surrogateescape"), viewer)
            else:
                self._execs.start(command_of(fields, tty_allowed=True, stdin_default=False), viewer)
        except BallpointError as error:
            self._end()
            self._say("op.error", error=error.message)

    def _end(self) -> None:
        self._operation = None
        if self._activity is not None:
            self._activity.ended()

    def _writable(self) -> None:
        if self._operation is not None:
            self._operation.writable()

    def _lost(self) -> None:
        operation = self._operation
        if operation is not None:
            self._end()
            operation.lost()

    def _say(self, kind: str, **arguments: Any) -> None:
        self.socket.send_text(_PREFIX + json.dumps({"type": kind, "args": arguments}))


class _Operation(WebSocketViewer):
    """A command on a control socket."""

    def __init__(self, owner: MultiplexedSocket, connection: Connection, socket: WebSocket, *, raw_input: bool) -> None:
        super().__init__(connection, socket)
        self._owner = owner
        self._raw_input = raw_input

    def exited(self, code: int) -> None:
        """First as on a socket of its own: one client ends with that, the others only with what follows."""
        self.leave()
        if self._tty:
            self.say(type="exit", exit_code=code)
        else:
            self.socket.send_binary((bytes((EXIT, code & 0xFF)),))
        self._owner.ended(code)

    def message(self, binary: bool, data: bytes) -> None:
        if self._raw_input and binary and not self._tty:
            if self.session is not None:
                self.session.end_input() if data == _EOF else self.session.write(data)
        # One client sends its instructions as binary messages here.
        elif not (binary and data[:1] == b"{" and self.instruction(data)):
            super().message(binary, data)


def _fields(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """An operation's arguments as the fields of a query, as which they are read."""
    fields = []
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool):
                each = "true" if each else "false"
            if each is not None:
                fields.append((name, str(each)))
    return fields
