"""The routes for files on a real unix socket, with the real helper, which acts on the host, not in a container."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect

from ballpoint.agent.files.helper import Turns
from ballpoint.agent.files.routes import FileRoutes
from ballpoint.agent.spawn_types import SpawnError, peek
from ballpoint.runtime.container.programs import ensure_programs
from tests.agent.world import DEADLINE, Answer, Wire, World, eventually
from tests.support.nodes import CACHE


class PlainFiles:
    """Starts helpers that stay on the host.

    Attributes:
        program: what is started; a test may put another into its place.
        users: whose rights each should have had.
        pids: of those that were started.
        refuses: why none can be started.
    """

    def __init__(self) -> None:
        self.program = str(ensure_programs(CACHE) / "files")
        self.users: list[str] = []
        self.pids: list[int] = []
        self.refuses = ""

    def start_files(self, user: str, arguments: Sequence[bytes], streams: tuple[int, int, int]) -> tuple[int, int]:
        if self.refuses:
            raise SpawnError(126, self.refuses)
        self.users.append(user)
        command: list[str | bytes] = ["files", "-", "1", user, *arguments]
        pid = os.posix_spawn(
            self.program,
            command,
            {"PATH": os.environ["PATH"]},
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            setsigmask=(),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)],
        )
        self.pids.append(pid)
        return pid, os.pidfd_open(pid)

    def wait(self, pid: int, pidfd: int) -> int:
        status = peek(pid, pidfd)
        assert status is not None
        return status

    def reap(self, pid: int) -> None:
        os.waitpid(pid, 0)


def target(verb: str, query: dict[str, Any]) -> str:
    return f"/fs/{verb}?{urlencode(query, errors='surrogateescape')}"


class FilesWorld(World):
    """An agent that serves files.

    Attributes:
        turns: how many operations run at once.
        spawner_of_files: starts their helpers.
        root: a directory for tests.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.turns = Turns(most=4, waiting=4, stuck=3)
        self.files = PlainFiles()
        self.root = folder / "root"
        self.root.mkdir()

    async def start(self) -> None:
        await super().start()
        FileRoutes(self.files, self.turns).add_to(self.routes)

    async def close(self) -> None:
        await super().close()
        await eventually(lambda: self.turns.running == self.turns.stuck == 0)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    # ---- clients ----

    async def ask(self, request: str, fields: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send a request and read its response, whose body may come in chunks."""
        answer = await super().ask(request, fields, body)
        if "transfer-encoding" in answer.fields:
            rest, whole = answer.body, b""
            while rest != b"0\r\n\r\n":
                size, _, rest = rest.partition(b"\r\n")
                whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            answer.body = whole
        return answer

    async def get(self, verb: str, fields: dict[str, str] | None = None, **query: Any) -> Answer:
        return await self.ask(f"GET {target(verb, query)}", fields)

    async def put(self, body: bytes, **query: Any) -> Answer:
        return await self.ask(f"PUT {target('write', query)}", {"content-length": str(len(body))}, body)

    async def delete(self, **query: Any) -> Answer:
        return await self.ask(f"DELETE {target('delete', query)}")

    async def post(self, verb: str, **content: Any) -> Answer:  # type: ignore[override]
        body = json.dumps(content).encode()
        return await self.ask(f"POST /fs/{verb}", {"content-length": str(len(body))}, body)

    async def begin_write(self, *fields: str, **query: Any) -> Wire:
        """The head of a write has gone out."""
        lines = [f"PUT {target('write', query)} HTTP/1.1", "Host: agent", *fields, "", ""]
        return (await self.wire()).send("\r\n".join(lines).encode())

    async def begin_read(self, **query: Any) -> Wire:
        """The head of a read has gone out."""
        return (await self.wire()).send(f"GET {target('read', query)} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())

    def watch(self) -> connect:
        return connect(
            "ws://agent/fs/watch",
            sock=self.connected(),
            compression=None,
            max_size=None,
            proxy=None,
            ping_interval=None,
            open_timeout=DEADLINE,
        )


def named(answer: Answer) -> list[str]:
    """Names in a listing."""
    assert answer.status == 200, answer.body
    assert answer.json["count"] == len(answer.json["entries"])
    return [entry["name"] for entry in answer.json["entries"]]


async def unchunked(wire: Wire) -> bytes:
    """A chunked body to its end."""
    parts = []
    while (part := await wire.frame()) is not None:
        parts.append(part)
    assert await wire.rest() == b""
    return b"".join(parts)


async def next_message(client: ClientConnection) -> dict[str, Any]:
    """The next text; what keeps a client patient is passed over."""
    while True:
        message = await client.recv()
        if message:
            assert isinstance(message, str)
            content = json.loads(message)
            assert isinstance(content, dict)
            return content
