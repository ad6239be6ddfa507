"""The client of the measurements: one process, plain HTTP and the `websockets` library over TCP."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect

_SECONDS = 600.0
_STDOUT, _EXIT = 1, 3
_CONTROL = "control:"


@dataclass(frozen=True)
class Exec:
    """One command. Times are of perf_counter, in seconds; `first` is its first output's, or its end's."""

    started: float
    opened: float
    first: float
    exited: float
    closed: float
    code: int
    received: int

    @property
    def total(self) -> float:
        return self.exited - self.started


@dataclass(frozen=True)
class Birth:
    """A create with the sprite's first command."""

    name: str
    started: float
    created: float
    first: Exec

    @property
    def total(self) -> float:
        """TTI: from the create's first byte to the first command's exit frame."""
        return self.first.exited - self.started


class Client:
    """Talks to one node."""

    def __init__(self, url: str, token: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self.host, self.port = address.hostname, address.port
        self._token = token

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request on a connection of its own. RuntimeError where the answer is no success."""
        connection = await Http.open(self)
        try:
            return await connection.request(method, path, body)
        finally:
            connection.close()

    async def create(self, name: str, command: tuple[str, ...] = ("/bin/true",)) -> Birth:
        """A new sprite and its first command, which must succeed."""
        started = perf_counter()
        await self.request("POST", "/v1/sprites", {"name": name})
        created = perf_counter()
        first = await self.exec(name, *command)
        if first.code != 0:
            raise RuntimeError(f"{command} ended with {first.code}")
        return Birth(name, started, created, first)

    async def delete(self, name: str) -> None:
        await self.request("DELETE", f"/v1/sprites/{name}")

    async def sync(self, name: str) -> None:
        """Returns once the store has everything."""
        await self.request("POST", f"/v1/sprites/{name}/sync")

    async def checkpoint(self, name: str) -> str:
        """Make a checkpoint, which must succeed. Returns its id."""
        await self.steps(f"/v1/sprites/{name}/checkpoint")
        made = await self.request("GET", f"/v1/sprites/{name}/checkpoints")
        return str(made[-1]["id"])

    async def steps(self, path: str) -> None:
        """POST what is answered step by step, to its last step. RuntimeError where that is not `complete`."""
        last = (await self.request("POST", path))[-1]
        if last["type"] != "complete":
            raise RuntimeError(f"{path}: {last}")

    async def download(self, path: str) -> int:
        """Read a response to its end, by a thread of its own. Returns the bytes of its body."""
        return await asyncio.to_thread(self._transfer, "GET", path, None, 0)

    async def upload(self, path: str, source: Path) -> None:
        """Send a file as the body of a PUT, by a thread of its own; returns with the answer."""
        await asyncio.to_thread(self._transfer, "PUT", path, source, source.stat().st_size)

    def _transfer(self, method: str, path: str, source: Path | None, size: int) -> int:
        connection = HTTPConnection(self.host, self.port, timeout=_SECONDS)
        try:
            connection.putrequest(method, path)
            connection.putheader("Authorization", f"Bearer {self._token}")
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            if source is not None:
                with source.open("rb") as file:
                    connection.sock.sendfile(file)
            answer = connection.getresponse()
            buffer, received = bytearray(1 << 20), 0
            while count := answer.readinto(buffer):
                received += count
            if answer.status != 200:
                raise RuntimeError(f"{method} {path}: {answer.status}: {bytes(buffer[:300]).decode(errors='replace')}")
            return received
        finally:
            connection.close()

    async def run(self, name: str, *command: str) -> Exec:
        """A command that must succeed."""
        done = await self.exec(name, *command)
        if done.code != 0:
            raise RuntimeError(f"{command[0]} ended with {done.code}")
        return done

    async def exec(self, name: str, *command: str) -> Exec:
        """A command on a WebSocket of its own; returns once the connection is closed."""
        query = urlencode([*(("cmd", word) for word in command), ("stdin", "false")])
        return await self.read(f"ws://{self.host}:{self.port}/v1/sprites/{name}/exec?{query}")

    async def control(self, name: str) -> Control:
        """A control socket of a sprite; the caller closes it."""
        return Control(await self._connect(f"ws://{self.host}:{self.port}/v1/sprites/{name}/control"))

    async def _connect(self, url: str) -> ClientConnection:
        return await connect(
            url,
            additional_headers={"Authorization": f"Bearer {self._token}"},
            compression=None,
            max_size=None,
            proxy=None,
            ping_interval=None,
            open_timeout=None,
        )

    async def read(self, url: str) -> Exec:
        """Read one exec WebSocket to its end."""
        started = perf_counter()
        async with asyncio.timeout(_SECONDS):
            socket = await self._connect(url)
            opened = perf_counter()
            received, first = 0, None
            while True:
                message = await socket.recv()
                if not message or isinstance(message, str):
                    continue
                if message[0] == _STDOUT:
                    first = first or perf_counter()
                    received += len(message) - 1
                elif message[0] == _EXIT:
                    break
            exited = perf_counter()
            await socket.wait_closed()
            return Exec(started, opened, first or exited, exited, perf_counter(), message[1], received)


class Control:
    """Commands one after the other on one WebSocket (contract 3.7)."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def exec(self, *command: str) -> float:
        """Seconds of a command that must succeed, until its operation is complete."""
        started = perf_counter()
        await self._socket.send(_CONTROL + json.dumps({"type": "op.start", "op": "exec", "args": {"cmd": command}}))
        code = None
        async with asyncio.timeout(_SECONDS):
            while True:
                message = await self._socket.recv()
                if isinstance(message, bytes):
                    code = message[1] if message[0] == _EXIT else code
                elif message.startswith(_CONTROL):
                    told = json.loads(message.removeprefix(_CONTROL))
                    if told["type"] in ("op.complete", "op.error"):
                        break
        if code != 0:
            raise RuntimeError(f"{command[0]} ended with {code}: {told}")
        return perf_counter() - started

    async def close(self) -> None:
        await self._socket.close()


class Http:
    """A connection for requests one after the other."""

    def __init__(self, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = client
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, client: Client) -> Http:
        return cls(client, *await asyncio.open_connection(client.host, client.port))

    async def request(self, method: str, path: str, body: Any = None, *, expected: int | None = None) -> Any:
        """The answer's JSON; of NDJSON a list. RuntimeError where it has neither the `expected` status nor success."""
        content = b"" if body is None else json.dumps(body).encode()
        fields = ["Content-Type: application/json"] if content else []
        async with asyncio.timeout(_SECONDS):
            self._ask(method, path, f"{self._client.host}:{self._client.port}", content, fields)
            answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *fields = answer.splitlines()
            if any(field.lower() == "transfer-encoding: chunked" for field in fields):
                data = await self._chunks()
            else:
                length = next((int(f.split(":")[1]) for f in fields if f.lower().startswith("content-length:")), 0)
                data = await self._reader.readexactly(length)
        status = int(line.split()[1])
        if not 200 <= status < 300 and status != expected:
            raise RuntimeError(f"{method} {path}: {line}: {data[:300].decode(errors='replace')}")
        if any(field.lower() == "content-type: application/x-ndjson" for field in fields):
            return [json.loads(each) for each in data.splitlines()]
        return json.loads(data) if data else None

    async def first_byte(self, path: str, host: str) -> float:
        """When the first byte came of a body that is asked for at a sprite's URL. RuntimeError where none is served."""
        async with asyncio.timeout(_SECONDS):
            self._ask("GET", path, host, b"", [])
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.split()[1] != "200":
                raise RuntimeError(f"{host}{path}: {head}")
            await self._reader.readexactly(1)
            return perf_counter()

    def _ask(self, method: str, path: str, host: str, content: bytes, fields: list[str]) -> None:
        head = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {self._client._token}"]
        head += [f"Content-Length: {len(content)}", *fields]
        self._writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + content)

    async def _chunks(self) -> bytes:
        """A body of chunks (RFC 9112, 7.1), to the last one."""
        body = bytearray()
        while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(len(b"\r\n"))
        while await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return bytes(body)

    def close(self) -> None:
        self._writer.close()
