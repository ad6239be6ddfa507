"""The routes of commands: run over WebSocket (contract 3) and over HTTP (2.2), listed, attached to, ended (2.3)."""

from __future__ import annotations

from collections.abc import Callable

from ballpoint.agent.ports.listening import Ports
from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.sessions.exec_request import attached_id, parse_command, parse_since
from ballpoint.agent.sessions.frames import AttachedViewer, WebSocketViewer
from ballpoint.agent.sessions.http_viewer import HttpViewer
from ballpoint.agent.sessions.journal import STREAMS
from ballpoint.agent.sessions.kill import Kill
from ballpoint.agent.sessions.multiplexed import Activity, MultiplexedSocket
from ballpoint.agent.sessions.session import Command, Session
from ballpoint.agent.sessions.sessions import Sessions
from ballpoint.agent.spawn_types import SpawnError
from ballpoint.core.errors import GoneError, InvalidError, NotFoundError

# Of its requests on a control socket, input has no first byte that says so (contract 3.7).
_GO = "sprites-go-sdk"
_CAPABILITIES = {"x-sprite-capabilities": "signal"}


class ExecRoutes:
    """The exec routes over one agent's sessions.

    Args:
        environment: the environment a process gets before the request adds to it.
        ports: tells clients over WebSocket what their command listens on.
        activity: is told of commands on control sockets.
    """

    def __init__(
        self,
        sessions: Sessions,
        environment: Callable[[], dict[str, str]],
        ports: Ports | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._sessions = sessions
        self._environment = environment
        self._ports = ports
        self._activity = activity

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/exec", self._get)
        routes.add("HEAD", "/exec", lambda connection, _: connection.respond(200, {}, head_only=True))
        routes.add("POST", "/exec", self._post)
        routes.add("GET", "/exec/*", self._get_session)
        routes.add("POST", "/exec/*/kill", self._kill)
        routes.add("GET", "/control", self._control)

    # ---- what is asked over HTTP ----

    def _get(self, connection: Connection, request: Request) -> Handler | None:
        if request.is_websocket:
            session_id = attached_id(request.query)
            if session_id is not None:
                return self._view(connection, request, session_id)
            return self._run(connection, request)
        listing = self._sessions.listing()
        connection.respond(200, {"sessions": listing, "count": len(listing)})
        return None

    def _get_session(self, connection: Connection, request: Request) -> Handler | None:
        session_id = request.path.rpartition("/")[2]
        if request.is_websocket:
            return self._view(connection, request, session_id)
        session = self._known(session_id)
        if session.exit_code is not None:
            raise NotFoundError("the session has ended", hint="attach to it to read what it wrote")
        connection.respond(200, session.listing())
        return None

    def _kill(self, connection: Connection, request: Request) -> Handler | None:
        session = self._known(request.path.split("/")[2])
        if session.exit_code is not None:
            raise GoneError("the session has ended")
        return Kill(connection, request, session)

    def _post(self, connection: Connection, request: Request) -> Handler | None:
        command = parse_command(request.query, tty_allowed=False, stdin_default=False)
        viewer = HttpViewer(connection)
        try:
            viewer.session = self._sessions.start(command, self._merged(command))
        except SpawnError as error:
            viewer.refused(error.message, error.exit_code)
        else:
            viewer.session.attach(viewer)
        return viewer

    # ---- over WebSocket ----

    def _run(self, connection: Connection, request: Request) -> Handler:
        command = parse_command(request.query, tty_allowed=True, stdin_default=None)
        viewer = WebSocketViewer(connection)
        viewer.socket.accept(request, _CAPABILITIES)
        self.start(command, viewer)
        return viewer.socket

    def _view(self, connection: Connection, request: Request, session_id: str) -> Handler:
        session = self._known(session_id)
        cursors = self.cursors(session, request.query)
        viewer = AttachedViewer(connection)
        viewer.socket.accept(request, _CAPABILITIES)
        viewer.begin(session, cursors)
        self._tell_ports(viewer)
        return viewer.socket

    def _control(self, connection: Connection, request: Request) -> Handler:
        if not request.is_websocket:
            raise InvalidError("this is a WebSocket's address", hint="RFC 6455, version 13")
        raw_input = request.headers.get("user-agent", "").startswith(_GO)
        control = MultiplexedSocket(connection, self, self._activity, raw_input=raw_input)
        control.accept(request)
        return control.socket

    # ---- what a control socket does, too ----

    def start(self, command: Command, viewer: WebSocketViewer) -> None:
        """Run `command` for the viewer, or tell him why it cannot be run."""
        try:
            session = self._sessions.start(command, self._merged(command))
        except SpawnError as error:
            viewer.refused(command, error.message, error.exit_code)
        else:
            viewer.begin(session, None, command.rows, command.cols)
            self._tell_ports(viewer)

    def attach(self, session_id: str, query: str, viewer: WebSocketViewer) -> None:
        """Let the viewer see a session. Raises NotFoundError, InvalidError."""
        session = self._known(session_id)
        viewer.begin(session, self.cursors(session, query))
        self._tell_ports(viewer)

    def cursors(self, session: Session, query: str) -> dict[int, int]:
        """From where on a viewer sees a session: what he asks for, or of a terminal the last lines, or all.

        Raises:
            InvalidError: he asks for what was not written yet.
        """
        journal = session.journal
        since = parse_since(query)
        if since is None:
            return {stream: journal.start(stream) for stream in STREAMS} if not session.tty else session.last_lines()
        cursors = {}
        for stream, at in zip(STREAMS, since, strict=True):
            end = journal.end(stream)
            if at is not None and at > end:
                raise InvalidError(
                    f"since is {at}, but only {end} bytes were written", hint="since=0 is from the first"
                )
            cursors[stream] = end if at is None else at
        return cursors

    def _tell_ports(self, viewer: WebSocketViewer) -> None:
        if self._ports is not None and viewer.session is not None:
            viewer.end_ports = self._ports.of_session(viewer.session.pid, viewer.tell)

    def _known(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError("there is no such session")
        return session

    def _merged(self, command: Command) -> dict[str, str]:
        terminal = {"TERM": "xterm-256color"} if command.tty else {}
        return {**terminal, **self._environment(), **command.env}
