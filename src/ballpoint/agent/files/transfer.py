"""What becomes of one request about files: a body that goes in, bytes or JSON that come out."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

from ballpoint.agent.files.errors import FileError, error_body
from ballpoint.agent.files.helper import Helper, Turns
from ballpoint.agent.files.request import Operation
from ballpoint.agent.server import Connection
from ballpoint.agent.spawn_types import FileSpawner
from ballpoint.core.errors import BallpointError, UnavailableError

_RETRY_AFTER_SECONDS = 2
# Of a result that is told with its length.
_WHOLE_MAX = 64 * 1024


def respond_error(connection: Connection, error: BallpointError, path: str) -> None:
    """Answer with an error, where nothing was answered yet."""
    body, fields = error_body(error, path), {}
    if error.status == UnavailableError.status:
        body["retry_after_seconds"] = _RETRY_AFTER_SECONDS
        fields["retry-after"] = str(_RETRY_AFTER_SECONDS)
    connection.respond(error.status, body, headers=fields)


class Transfer:
    """One operation for one request: it waits for its turn, then passes on what its helper says.

    It is the connection's handler and the helper's listener. Its result is JSON.
    """

    def __init__(self, connection: Connection, spawner: FileSpawner, turns: Turns, operation: Operation) -> None:
        self._connection = connection
        self._spawner = spawner
        self._turns = turns
        self._operation = operation
        self._helper: Helper | None = None
        self._over = False
        self._responded = False
        self._chunked = False
        self._whole: list[bytes] = []
        self._size = 0

    def begin(self) -> None:
        """Raises: UnavailableError: too many run or wait."""
        self._turns.take(self._start)

    def _start(self) -> None:
        try:
            self._helper = self._make_helper()
        except UnavailableError as error:
            self._turns.release()
            self.answer_ends(error)

    def _make_helper(self) -> Helper:
        return Helper(self._spawner, self._operation, self, self._turns)

    # ---- Handler ----

    def data(self, data: bytes) -> None:
        """A body that nobody asked for."""

    def end(self) -> None:
        pass

    def writable(self) -> None:
        if self._helper is not None:
            self._helper.go_on()

    def lost(self) -> None:
        self._over = True
        if self._helper is not None:
            self._helper.cancel()
        else:
            self._turns.give_up(self._start)

    # ---- Listener ----

    def answer_begins(self, words: list[bytes]) -> None:
        pass

    def answer(self, data: bytes) -> bool:
        if self._chunked:
            return self._send_chunk(data)
        self._whole.append(data)
        self._size += len(data)
        if self._size <= _WHOLE_MAX:
            return True
        self._respond(200, {"content-type": "application/json", "transfer-encoding": "chunked"})
        return self._send_chunk(b"".join(self._whole))

    def answer_ends(self, error: BallpointError | None) -> None:
        if self._over:
            return
        self._over = True
        if error is not None:
            self._fail(error)
        elif self._chunked:
            self._connection.send(b"0\r\n\r\n")
            self._connection.close()
        else:
            self._finish()

    def body_taken(self) -> None:
        pass

    def client_stalls(self) -> None:
        self._connection.abort()

    # ---- the response ----

    def _respond(self, status: int, fields: dict[str, str]) -> None:
        self._responded = True
        self._chunked = "transfer-encoding" in fields
        self._connection.start_response(status, {**fields, "connection": "close"})

    def _send_chunk(self, data: bytes) -> bool:
        return self._connection.send(b"%x\r\n" % len(data), data, b"\r\n")

    def _fail(self, error: BallpointError) -> None:
        if self._responded:
            self._connection.abort()  # a response that is cut says that something is wrong
        else:
            respond_error(self._connection, error, self._operation.path)

    def _finish(self) -> None:
        body = b"".join(self._whole)
        self._respond(200, {"content-type": "application/json", "content-length": str(len(body))})
        self._connection.send(body)
        self._connection.close()


class Reading(Transfer):
    """The bytes of a file."""

    _left = 0
    _direct = False

    def _make_helper(self) -> Helper:
        client = self._connection.fileno()
        operation = replace(self._operation, arguments=(*self._operation.arguments, b"1"))
        return Helper(self._spawner, operation, self, self._turns, client=client)

    def answer_begins(self, words: list[bytes]) -> None:
        fields = {"content-type": "application/octet-stream", "accept-ranges": "bytes"}
        if words[0] == b"*":
            self._unsatisfiable(int(words[1]))
            return
        self._direct = words[0] == b"@"
        length, first, size = map(int, words[1:])
        status = 200
        if self._operation.arguments[2:] != (b"-", b"-"):
            status = 206
            fields["content-range"] = f"bytes {first}-{first + length - 1}/{size}"
        if length < 0:
            fields["transfer-encoding"] = "chunked"
        else:
            fields["content-length"] = str(length)
            self._left = 0 if self._direct else length
        self._respond(status, fields)

    def answer(self, data: bytes) -> bool:
        if self._direct:
            return True  # only that it gets on
        if self._chunked:
            return self._send_chunk(data)
        self._left -= len(data)
        return self._connection.send(data)

    def _unsatisfiable(self, size: int) -> None:
        """RFC 9110 15.5.17."""
        error = RangeError(self._operation.path)
        fields = {"content-range": f"bytes */{size}"}
        self._over = True
        self._connection.respond(error.status, error_body(error, self._operation.path), headers=fields)

    def _finish(self) -> None:
        if self._left == 0:
            self._connection.close()
        else:
            self._connection.abort()


class Writing(Transfer):
    """A file's new content, from the request's body.

    Args:
        length: of the body, where it is so large that the helper shall read it from the client itself.
    """

    def __init__(
        self,
        connection: Connection,
        spawner: FileSpawner,
        turns: Turns,
        operation: Operation,
        length: int | None = None,
    ) -> None:
        arguments = (*operation.arguments, b"-" if length is None else str(length).encode())
        super().__init__(connection, spawner, turns, replace(operation, arguments=arguments))
        self._lends = length is not None
        self._early: list[bytes] = []
        self._held = False
        self._whole_body = False

    def begin(self) -> None:
        if self._lends:
            # What the connection has read with the head comes right after this.
            self._hold()
            asyncio.get_running_loop().call_soon(self._begin_late)
            return
        super().begin()
        if self._helper is None and not self._over:
            self._hold()

    def _begin_late(self) -> None:
        if self._over:
            return
        try:
            super().begin()
        except UnavailableError as error:
            self.answer_ends(error)

    def _make_helper(self) -> Helper:
        client = self._connection.lend() if self._lends else None
        return Helper(self._spawner, self._operation, self, self._turns, body=True, client=client)

    def _start(self) -> None:
        super()._start()
        if self._helper is not None and (not self._early or self._give_early()):
            self.body_taken()

    def _give_early(self) -> bool:
        """What was read before the helper was there, or while it took no more."""
        assert self._helper is not None
        early, self._early = b"".join(self._early), []
        if not self._helper.write(early):
            self._hold()
            return False
        return True

    def data(self, data: bytes) -> None:
        if self._over:
            return
        if self._helper is None or self._held:
            self._early.append(data)
        elif not self._helper.write(data):
            self._hold()

    def end(self) -> None:
        self._whole_body = True
        if self._helper is not None and not self._held:
            self._helper.end_body()

    def body_taken(self) -> None:
        assert self._helper is not None
        if self._early and not self._give_early():
            return
        if self._lends:
            self._helper.end_body()
            return
        if self._held:
            self._held = False
            self._connection.pause_reading(False)
        if self._whole_body:
            self._helper.end_body()

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._connection.pause_reading(True)


class RangeError(FileError):
    """The file has no such bytes."""

    status = 416

    def __init__(self, path: str) -> None:
        super().__init__(errno.EINVAL, path)
        self.message = f"{path}: there are no such bytes"
