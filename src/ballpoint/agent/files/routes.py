"""The routes below /fs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ballpoint.agent.files.helper import Turns
from ballpoint.agent.files.request import (
    BODY_MAX,
    Fields,
    Operation,
    chmod_operation,
    chown_operation,
    copy_operation,
    delete_operation,
    fields_of_body,
    fields_of_query,
    list_operation,
    read_operation,
    rename_operation,
    write_operation,
)
from ballpoint.agent.files.transfer import Reading, Transfer, Writing, respond_error
from ballpoint.agent.files.watch import Watching
from ballpoint.agent.server import Connection, Handler, Request, Routes
from ballpoint.agent.spawn_types import FileSpawner
from ballpoint.core.errors import BallpointError, InvalidError

_WATCHES_MAX = 16
# A body that a helper reads from the client itself: more than a connection can have read with the head.
_LARGE = 1 << 20


class FileRoutes:
    """Serves a sprite's files by helpers that `spawner` starts."""

    def __init__(self, spawner: FileSpawner, turns: Turns | None = None) -> None:
        self._spawner = spawner
        self._turns = turns or Turns()
        self._watches = Turns(most=_WATCHES_MAX, waiting=0)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/fs/read", self._read)
        routes.add("PUT", "/fs/write", self._write)
        routes.add("GET", "/fs/list", self._list)
        routes.add("DELETE", "/fs/delete", self._delete)
        routes.add("POST", "/fs/rename", self._by_body(rename_operation))
        routes.add("POST", "/fs/copy", self._by_body(copy_operation))
        routes.add("POST", "/fs/chmod", self._by_body(chmod_operation))
        routes.add("POST", "/fs/chown", self._by_body(chown_operation))
        routes.add("GET", "/fs/watch", self._watch)

    def _read(self, connection: Connection, request: Request) -> Handler | None:
        wanted = None if "if-range" in request.headers else request.headers.get("range")
        return self._by_query(connection, request, lambda fields: read_operation(fields, wanted), Reading)

    def _write(self, connection: Connection, request: Request) -> Handler | None:
        text = request.headers.get("content-length", "")
        length = int(text) if text.isascii() and text.isdigit() and int(text) >= _LARGE else None
        kind = partial(Writing, length=length)
        return self._by_query(connection, request, write_operation, kind)

    def _list(self, connection: Connection, request: Request) -> Handler | None:
        return self._by_query(connection, request, list_operation, Transfer)

    def _delete(self, connection: Connection, request: Request) -> Handler | None:
        if request.has_body:
            return _Body(connection, lambda fields: self._run(connection, delete_operation(fields)))
        return self._by_query(connection, request, delete_operation, Transfer)

    def _by_body(self, read: Callable[[Fields], Operation]) -> Callable[[Connection, Request], Handler | None]:
        def route(connection: Connection, request: Request) -> Handler | None:
            return _Body(connection, lambda fields: self._run(connection, read(fields)))

        return route

    def _by_query(
        self,
        connection: Connection,
        request: Request,
        read: Callable[[Fields], Operation],
        kind: Callable[..., Transfer],
    ) -> Handler | None:
        about = ""
        try:
            fields = fields_of_query(request.query)
            about = fields.about
            return self._run(connection, read(fields), kind)
        except BallpointError as error:
            respond_error(connection, error, about)
            return None

    def _run(self, connection: Connection, operation: Operation, kind: Callable[..., Transfer] = Transfer) -> Transfer:
        transfer = kind(connection, self._spawner, self._turns, operation)
        transfer.begin()
        return transfer

    def _watch(self, connection: Connection, request: Request) -> Handler | None:
        if not request.is_websocket:
            raise InvalidError("watch is a WebSocket", hint="RFC 6455, version 13")
        watching = Watching(connection, self._spawner, self._watches)
        watching.socket.accept(request, {})
        return watching.socket


class _Body:
    """Gathers a request's JSON, then hands on to the operation that it asks for."""

    def __init__(self, connection: Connection, run: Callable[[Fields], Transfer]) -> None:
        self._connection = connection
        self._run = run
        self._body = b""
        self._transfer: Transfer | None = None
        self._refused = False

    def data(self, data: bytes) -> None:
        self._body += data[: BODY_MAX + 1]
        if len(self._body) > BODY_MAX and not self._refused:
            self._refuse(TooLargeError(f"the body is larger than {BODY_MAX} bytes"), "")
        if self._refused:
            self._body = b""

    def end(self) -> None:
        if self._refused:
            return
        about = ""
        try:
            fields = fields_of_body(self._body)
            about = fields.about
            self._transfer = self._run(fields)
        except BallpointError as error:
            self._refuse(error, about)

    def writable(self) -> None:
        if self._transfer is not None:
            self._transfer.writable()

    def lost(self) -> None:
        if self._transfer is not None:
            self._transfer.lost()

    def _refuse(self, error: BallpointError, about: str) -> None:
        self._refused = True
        respond_error(self._connection, error, about)


class TooLargeError(InvalidError):
    """A body larger than any that makes sense."""

    kind = "too_large"
    status = 413
