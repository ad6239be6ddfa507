"""The file of a sprite's services, read and written by the files' helper inside, as root there."""

from __future__ import annotations

import asyncio
import errno
import logging

from ballpoint.agent.files.errors import FileError
from ballpoint.agent.files.helper import Helper, Turns
from ballpoint.agent.files.request import Operation
from ballpoint.agent.services.definition import FILE_MAX, Definition, dump, load
from ballpoint.agent.spawn_types import FileSpawner
from ballpoint.core.errors import BallpointError, UnavailableError

log = logging.getLogger("agent.services")

PATH = "/.sprite/services.json"
_DAMAGED = ".damaged"


class Disk:
    """Where definitions are kept.

    Args:
        path: of the file, inside.
    """

    def __init__(self, spawner: FileSpawner, path: str = PATH) -> None:
        self._spawner = spawner
        self._turns = Turns(most=2, waiting=8, stuck=4)
        self._path = path

    async def load(self) -> dict[str, tuple[Definition, bool]]:
        """All services that there are, each with whether it was stopped.

        A file that is none is put aside, and there are none.

        Raises:
            BallpointError: the disk does not answer, or its kernel says no: nothing is known.
        """
        try:
            data = await self._run("read", self._path, "0", str(FILE_MAX), "0")
        except _EmptyError:
            data = b""
        except FileError as error:
            if error.number == errno.ENOENT:
                return {}
            if error.number not in (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENOTDIR):
                raise
            await self._put_aside(error.message)
            return {}
        try:
            return load(data)
        except BallpointError as error:
            await self._put_aside(error.message)
            return {}

    async def save(self, services: dict[str, tuple[Definition, bool]]) -> None:
        """Replace the file in one step; it is on the disk when this returns. A failure changes nothing.

        Raises:
            BallpointError: the disk is full, or does not answer.
        """
        await self._run("write", self._path, "600", "1", "1", "-", body=dump(services.values()))

    async def _put_aside(self, reason: str) -> None:
        log.warning("%s is no list of services (%s): it is kept as %s%s", self._path, reason, self._path, _DAMAGED)
        await self._run("rename", self._path, self._path + _DAMAGED)

    async def _run(self, *arguments: str, body: bytes | None = None) -> bytes:
        operation = Operation(tuple(each.encode() for each in arguments), self._path, "root")
        return await _Operation(self._spawner, self._turns, operation, body).result


class _EmptyError(Exception):
    """The file has no bytes."""


class _Operation:
    """One helper's work, awaited."""

    def __init__(self, spawner: FileSpawner, turns: Turns, operation: Operation, body: bytes | None) -> None:
        self.result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._spawner = spawner
        self._turns = turns
        self._operation = operation
        self._body = body
        self._parts: list[bytes] = []
        self._helper: Helper | None = None
        turns.take(self._start)

    def _start(self) -> None:
        try:
            self._helper = Helper(self._spawner, self._operation, self, self._turns, body=self._body is not None)
        except UnavailableError as error:
            self._turns.release()
            self.answer_ends(error)
            return
        if self._body is not None and self._helper.write(self._body):
            self._helper.end_body()

    # ---- Listener ----

    def answer_begins(self, words: list[bytes]) -> None:
        if words[0] == b"*" and not self.result.done():
            self.result.set_exception(_EmptyError())

    def answer(self, data: bytes) -> bool:
        self._parts.append(data)
        return True

    def answer_ends(self, error: BallpointError | None) -> None:
        if self.result.done():
            return
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(b"".join(self._parts))

    def body_taken(self) -> None:
        assert self._helper is not None
        self._helper.end_body()

    def client_stalls(self) -> None:
        """There is no client."""
