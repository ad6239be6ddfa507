"""An agent's sessions on a real unix socket, with real processes of the host instead of a container's."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ballpoint.agent.anchor import Anchor
from ballpoint.agent.ports.handover import HandOver
from ballpoint.agent.ports.listening import Ports
from ballpoint.agent.ports.network import Network
from ballpoint.agent.ports.proxy import ProxyRoutes
from ballpoint.agent.ports.watch import WatchRoutes
from ballpoint.agent.server import Routes, serve
from ballpoint.agent.sessions.exec import ExecRoutes
from ballpoint.agent.sessions.journal import Journals
from ballpoint.agent.sessions.sessions import Sessions
from ballpoint.agent.spawn_types import ProcessSpec, SpawnError, peek, reap
from ballpoint.core.errors import InternalError

ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/root", "COLOR": "blue"}
PREAMBLE = b'{"caller": "test"}\n'
# For what must happen. Seconds.
DEADLINE = 20.0
_READ = 1 << 18


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds, for what has no event."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def descriptors() -> dict[str, str]:
    """This process's open descriptors, and what each is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Gate:
    """What processes wait at with `read x < "$GATE"` until the test opens it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open(self) -> None:
        """Let up to a hundred pass, who wait or will come."""
        os.write(self._fd, b"\n" * 100)

    def close(self) -> None:
        os.close(self._fd)


class PlainSpawner:
    """Starts processes of the host: session leaders, as in a container, but with its namespaces and user.

    Attributes:
        late: a session leader is made of the process only some time after its start, as a container's helper does.
        started: how many.
        unreaped: those that ended and were not let go of.
    """

    def __init__(self) -> None:
        self.late: Gate | None = None
        self.started = 0
        self.unreaped: set[int] = set()

    def open_pty(self, rows: int, cols: int) -> tuple[int, int]:
        master, slave = os.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        return master, slave

    def spawn(self, spec: ProcessSpec) -> tuple[int, int]:
        argv = list(spec.argv) or ["bash"]
        program = spec.path or argv[0]
        leader = self.late is None
        if self.late is not None:
            argv = ["sh", "-c", 'read x < "$0"; exec setsid "$@"', self.late.path, *argv]
        elif spec.tty:
            argv, leader = ["setsid", "--ctty", *argv], False
        elif spec.cwd is not None or spec.path is not None:
            go = 'cd -- "$0" || exit 126; exec -a "$2" -- "$1" "${@:3}"'
            argv = ["bash", "-c", go, spec.cwd or ".", program, *argv]
        streams = (spec.stdin, spec.stdout, spec.stderr)
        try:
            pid = os.posix_spawnp(
                argv[0],
                argv,
                spec.env,
                setsid=leader,
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},  # as the real one
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)],
            )
        except FileNotFoundError as error:
            raise SpawnError(127, f"{program}: command not found") from error
        except OSError as error:
            raise SpawnError(126, f"{program}: {error.strerror}") from error
        self.started += 1
        return pid, os.pidfd_open(pid)

    def wait(self, pid: int, pidfd: int) -> int:
        status = peek(pid, pidfd)
        assert status is not None
        return status

    def reap(self, pid: int) -> None:
        reap(pid, self.unreaped)


class KeptFds(Anchor):
    """What an anchor does, without its process."""

    def __init__(self, room: int = 100) -> None:
        self.fds: dict[str, int] = {}
        self._room = room

    def __contains__(self, name: str) -> bool:
        return name in self.fds

    def keep(self, fds: Mapping[str, int]) -> None:
        if len(self.fds.keys() | fds.keys()) > self._room:
            raise InternalError("no room")
        self.forget(fds.keys())
        self.fds.update({name: os.dup(fd) for name, fd in fds.items()})

    def get(self, name: str) -> int | None:
        return os.dup(self.fds[name]) if name in self.fds else None

    def forget(self, names: Collection[str]) -> None:
        for name in names:
            if name in self.fds:
                os.close(self.fds.pop(name))

    def names(self) -> list[str]:
        return list(self.fds)

    def exit_status(self, pid: int) -> int | None:
        return None


@dataclass
class Heard:
    """What an exec said.

    Attributes:
        info: the first text frame.
        frames: stream and payload of every output frame.
        terminal: every exit frame, in order; one, if all is well.
        after: bytes of output that came after the first exit frame.
        idle: how many empty frames came.
        close_code: of the WebSocket.
    """

    info: dict[str, Any] = field(default_factory=dict)
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    terminal: list[int] = field(default_factory=list)
    after: bytes = b""
    idle: int = 0
    close_code: int | None = None

    def take(self, message: str | bytes, tty: bool = False) -> None:
        if isinstance(message, str):
            content = json.loads(message)
            if content["type"] == "session_info":
                assert not self.info
                assert not self.frames
                self.info = content
            else:
                assert content["type"] == "exit"
                self.terminal.append(content["exit_code"])
            return
        if not message:
            self.idle += 1
            return
        stream, data = (1, message) if tty else (message[0], message[1:])
        if stream == 3:
            assert len(data) == 1
            self.terminal.append(data[0])
            return
        assert stream in (1, 2)
        if self.terminal:
            self.after += data
        self.frames.append((stream, data))

    def _of(self, stream: int) -> bytes:
        return b"".join(data for given, data in self.frames if given == stream)

    @property
    def stdout(self) -> bytes:
        return self._of(1)

    @property
    def stderr(self) -> bytes:
        return self._of(2)

    @property
    def told(self) -> tuple[bytes, bytes, list[int], bytes]:
        """All that matters of a command: stdout, stderr, exit frames, and what came too late."""
        return self.stdout, self.stderr, self.terminal, self.after


@dataclass
class Answer:
    """A response of known length."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A raw connection to the agent, after its preamble."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> Wire:
        self.writer.write(data)
        return self

    def close(self) -> None:
        self.writer.close()

    async def ended(self) -> None:
        """Close it, and wait until nothing is left of it."""
        self.close()
        with suppress(OSError):  # how it ended is of no interest
            async with asyncio.timeout(DEADLINE):
                await self.writer.wait_closed()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(DEADLINE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        return int(line.split(" ")[1]), {
            name.lower(): value for name, _, value in (each.partition(": ") for each in rest)
        }

    async def rest(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def answer(self) -> Answer:
        status, fields = await self.head()
        return Answer(status, fields, await self.rest())

    async def frame(self) -> bytes | None:
        """The next chunk of a chunked body; None at its end."""
        async with asyncio.timeout(DEADLINE):
            size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
            data = await self.reader.readexactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2] if size else None

    async def frames(self) -> Heard:
        heard = Heard()
        while (frame := await self.frame()) is not None:
            heard.take(frame)
        assert await self.rest() == b""
        return heard


def target(argv: Iterable[str], query: dict[str, Any]) -> str:
    """`/exec` with a query; a value may be a sequence, for a name that is repeated."""
    fields = [("cmd", word) for word in argv] + list(query.items())
    return f"/exec?{urlencode(fields, doseq=True, errors='surrogateescape')}"


class World:
    """The agent under test, and clients for it.

    Attributes:
        saved: states of the sessions there are, as the next agent would find them.
        started: how many processes there have been.
        failures: what the event loop caught because nobody else did.
        server: what clients are connected to.
    """

    def __init__(self, folder: Path, anchor: Anchor | None = None, journal_bytes: int = 64 << 20) -> None:
        self._folder = folder
        self._journal = -1
        self.journal_bytes = journal_bytes
        self._path = str(folder / "agent.sock")
        self._gates: list[Gate] = []  # one descriptor each
        self.failures: list[dict[str, Any]] = []
        self.spawner = PlainSpawner()
        self.routes = Routes()
        self.sessions = Sessions(self.spawner, anchor, self.journals())
        self.network = Network(None)
        self._wires: list[Wire] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.failures.append(context))

    def journals(self) -> Journals:
        """What an agent of this world keeps its sessions' output in; the next agent's finds what was there."""
        place = self._folder / "journal"
        place.mkdir(exist_ok=True)
        if self._journal < 0:
            self._journal = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return Journals(self._journal, self.journal_bytes)

    @property
    def saved(self) -> list[dict[str, Any]]:
        return [session.state() for session in self.sessions]

    @property
    def started(self) -> int:
        return self.spawner.started

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen(128)
        ports = Ports(self.network)
        ExecRoutes(self.sessions, lambda: ENVIRONMENT, ports).add_to(self.routes)
        ProxyRoutes(self.network).add_to(self.routes)
        WatchRoutes(ports).add_to(self.routes)
        self.handover = HandOver(self.network, lambda: self.routes.serving())
        self.server = await serve(listener, self.routes, self.handover)

    async def close(self) -> None:
        """End what a test left running."""
        for gate in self._gates:
            gate.open()
        self.server.close()
        for session in self.sessions:
            session.signal(signal.SIGKILL)
        await eventually(lambda: len(self.sessions) == 0)
        for wire in self._wires:  # their transports end with the loop, or somewhere in another test
            await wire.ended()
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def close_gates(self) -> None:
        """Once nobody is left who might still come to one."""
        for gate in self._gates:
            gate.close()
        self._gates.clear()

    @property
    def gates(self) -> int:
        return len(self._gates)

    def gate(self) -> Gate:
        made = Gate(self._folder / f"gate-{len(self._gates)}")
        self._gates.append(made)
        return made

    # ---- clients ----

    def connected_raw(self) -> socket.socket:
        """A connection whose first line is still to be sent."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        return sock

    def connected(self) -> socket.socket:
        sock = self.connected_raw()
        sock.sendall(PREAMBLE)
        return sock

    async def wire(self, preamble: bytes = PREAMBLE) -> Wire:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
        writer.write(preamble)
        self._wires.append(Wire(reader, writer))
        return self._wires[-1]

    async def ask(self, request: str, fields: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send a request (`GET /exec`) and read its response."""
        lines = [
            f"{request} HTTP/1.1",
            "Host: agent",
            *(f"{name}: {value}" for name, value in (fields or {}).items()),
            "",
            "",
        ]
        wire = (await self.wire()).send("\r\n".join(lines).encode() + body)
        try:
            return await wire.answer()
        finally:
            wire.close()

    def open(self, *argv: str, max_queue: Any = 16, **query: Any) -> connect:
        """A WebSocket with an exec; to be awaited, or entered."""
        return self.websocket(target(argv, query), max_queue)

    def attach(self, session_id: str, max_queue: Any = 16, **query: Any) -> connect:
        """A WebSocket that watches a session."""
        return self.websocket(f"/exec/{session_id}?{urlencode(query)}", max_queue)

    def control(self, agent: str | None = None, **query: Any) -> connect:
        """A control socket, of the client that calls itself `agent`."""
        return self.websocket(f"/control?{urlencode(query, doseq=True)}", user_agent_header=agent)

    def websocket(self, path: str, max_queue: int | None = 16, **options: Any) -> connect:
        """A WebSocket; to be awaited, or entered."""
        return connect(
            f"ws://agent{path}",
            sock=self.connected(),
            max_queue=max_queue,
            **options,
            compression=None,
            max_size=None,
            proxy=None,
            ping_interval=None,
            open_timeout=DEADLINE,
        )

    async def run(self, *argv: str, send: Iterable[bytes | str] = (), **query: Any) -> Heard:
        """Run `argv` over a WebSocket to its end; `send` goes out at once."""
        async with self.open(*argv, **query) as client:
            with suppress(ConnectionClosed):  # a quick command has ended before its input
                for message in send:
                    await client.send(message)
            return await listen(client, tty=query.get("tty") == "true")

    async def post(self, *argv: str, body: bytes | None = None, **query: Any) -> Heard:
        """Run `argv` over HTTP to its end."""
        wire = await self.posted(*argv, body=body, **query)
        try:
            return await wire.frames()
        finally:
            wire.close()

    async def posted(self, *argv: str, body: bytes | None = None, **query: Any) -> Wire:
        """Begin an exec over HTTP; its response's head has come."""
        if body is not None:
            query["stdin"] = "true"
        wire = (await self.wire()).send(post_head(argv, query, f"Content-Length: {len(body or b'')}")).send(body or b"")
        status, fields = await wire.head()
        assert (status, fields["transfer-encoding"]) == (200, "chunked")
        return wire


def post_head(argv: Iterable[str], query: dict[str, Any], *fields: str) -> bytes:
    return "\r\n".join([f"POST {target(argv, query)} HTTP/1.1", "Host: agent", *fields, "", ""]).encode()


async def listen(client: ClientConnection, tty: bool = False, heard: Heard | None = None) -> Heard:
    """Take all that comes until the WebSocket is closed."""
    heard = heard or Heard()
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                heard.take(await client.recv(), tty)
        except ConnectionClosed as closed:
            heard.close_code = closed.rcvd.code if closed.rcvd is not None else None
    return heard


async def stalled(progress: Callable[[], int], most: int) -> int:
    """How far something gets that is expected to be held back: where it stays for a second, or beyond `most`."""
    async with asyncio.timeout(DEADLINE):
        while True:
            before = progress()
            await asyncio.sleep(1)
            if progress() == before or before > most:
                return before


async def output_until(client: ClientConnection, marker: bytes, tty: bool = False) -> Heard:
    """Take what comes until `marker` is in stdout or stderr."""
    heard = Heard()
    async with asyncio.timeout(DEADLINE):
        while marker not in heard.stdout and marker not in heard.stderr:
            heard.take(await client.recv(), tty)
    return heard
