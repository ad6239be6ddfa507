"""Services on a real unix socket, with the real helpers, on the host instead of in a container; time is the test's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ballpoint.agent.services.disk import Disk
from ballpoint.agent.services.routes import ServiceRoutes
from ballpoint.agent.services.services import Services
from ballpoint.agent.spawn_types import ProcessSpec, SpawnError, peek, reap
from ballpoint.core import ids
from ballpoint.host.cgroup import Cgroup, Hierarchies
from ballpoint.runtime.container.programs import ensure_programs
from tests.agent.files.world import PlainFiles
from tests.agent.world import DEADLINE, ENVIRONMENT, Answer, KeptFds, Wire, World, eventually
from tests.support.nodes import CACHE

# What a shell does first to be in a group; the end of 8 says that it is.
_JOIN = 'echo 0 >&9 || exit 126; exec 8>&- 9>&-; cd -- "$0" || exit 126; exec "$@"'


class HandClock:
    """Time that only a test moves. `asleep` says for how long each sleeper still sleeps."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._began = self._now
        self._sleepers: list[tuple[datetime, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._began).total_seconds()

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + timedelta(seconds=seconds), woken))
        await woken

    @property
    def asleep(self) -> list[float]:
        return [(until - self._now).total_seconds() for until, woken in self._sleepers if not woken.done()]

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        for until, woken in self._sleepers:
            if until <= self._now and not woken.done():
                woken.set_result(None)
        self._sleepers = [(until, woken) for until, woken in self._sleepers if not woken.done()]


class PlainServices:
    """Starts services and helpers that stay on the host.

    Attributes:
        refuses: why none can be started.
        spawned, logs: pids of services, and of those that write logs.
    """

    def __init__(self) -> None:
        self.program = str(ensure_programs(CACHE) / "svclog")
        self.unreaped: set[int] = set()
        self.refuses = ""
        self.spawned: list[int] = []
        self.logs: list[int] = []

    def spawn_in(self, spec: ProcessSpec, procs: int) -> tuple[int, int]:
        if self.refuses:
            raise SpawnError(126, self.refuses)
        argv = ["sh", "-c", _JOIN, spec.cwd or "/", *spec.argv]
        streams = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((spec.stdin, spec.stdout, spec.stderr))]
        reader, writer = os.pipe()
        pid = os.posix_spawnp(
            "sh",
            argv,
            spec.env,
            setsid=True,
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            file_actions=[*streams, (os.POSIX_SPAWN_DUP2, writer, 8), (os.POSIX_SPAWN_DUP2, procs, 9)],
        )
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        self.spawned.append(pid)
        return pid, os.pidfd_open(pid)

    def start_log(self, arguments: Sequence[str], streams: tuple[int, int, int]) -> tuple[int, int]:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
        pid = os.posix_spawn(self.program, ["svclog", "-", *arguments], {}, file_actions=actions)
        if arguments[0] == "write":
            self.logs.append(pid)
        return pid, os.pidfd_open(pid)

    def wait(self, pid: int, pidfd: int) -> int:
        status = peek(pid, pidfd)
        assert status is not None
        return status

    def reap(self, pid: int) -> None:
        reap(pid, self.unreaped)


class ServicesWorld(World):
    """An agent that serves services.

    Attributes:
        file: where their definitions are.
        logs: the directory of their logs.
        clock: theirs.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.disk_directory = folder / "disk"
        self.disk_directory.mkdir()
        self.file = self.disk_directory / "services.json"
        self.logs = folder / "logs"
        self.clock = HandClock()
        self.files = PlainFiles()
        self.plain = PlainServices()
        self.anchor = KeptFds(1000)
        self.cgroup = Cgroup(Hierarchies.detect(), f"ballpoint-test-{ids.new_instance_id()}")
        self.cgroup.make()
        self.groups = self.cgroup.open_directory()
        self.services = self.agent()

    def agent(self) -> Services:
        """What an agent has of services; the next one's finds what was kept."""
        return Services(
            self.plain,
            Disk(self.files, str(self.file)),
            self.groups,
            self.anchor,
            lambda: ENVIRONMENT,
            clock=self.clock,
            log_directory=str(self.logs),
        )

    async def start(self) -> None:
        await super().start()
        ServiceRoutes(self.services, self.clock).add_to(self.routes)

    async def next_agent(self) -> None:
        """The agent is killed, and another takes its place."""
        await self.services.close()
        self.services = self.agent()
        ServiceRoutes(self.services, self.clock).add_to(self.routes)
        self.services.adopt()

    async def next_start(self) -> None:
        """The sprite ends, with all that runs in it, and starts again."""
        await self.services.close()
        self.end_processes()
        self.anchor.forget(list(self.anchor.fds))
        self.services = self.agent()
        ServiceRoutes(self.services, self.clock).add_to(self.routes)
        self.services.wake(self.file.exists())

    def end_processes(self) -> None:
        self.cgroup.end(DEADLINE)
        self.cgroup.make()
        os.close(self.groups)
        self.groups = self.cgroup.open_directory()
        for pid in [*self.plain.spawned, *self.plain.logs]:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    async def close(self) -> None:
        try:
            for service in list(self.services._services.values()):
                service.stop(0)
                await service.over()
            await super().close()
            await eventually(lambda: not self.services._readers)
            await self.services.close()
        finally:
            self.cgroup.end(DEADLINE)
            os.close(self.groups)
            self.anchor.forget(list(self.anchor.fds))

    # ---- clients ----

    async def call(self, method: str, path: str = "", body: Any = None) -> Answer:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"content-length": str(len(data))} if data else {}
        answer = await self.ask(f"{method} /services{path}", fields, data)
        if "transfer-encoding" in answer.fields:
            rest, whole = answer.body, b""
            while rest != b"0\r\n\r\n":
                size, _, rest = rest.partition(b"\r\n")
                whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            answer.body = whole
        return answer

    async def events(self, method: str, path: str, body: Any = None) -> list[dict[str, Any]]:
        return lines_of(await self.call(method, path, body))

    async def put(self, name: str, *argv: str, duration: str = "0", **more: Any) -> list[dict[str, Any]]:
        body = {"cmd": argv[0], "args": list(argv[1:]), **more}
        return await self.events("PUT", f"/{name}?duration={duration}", body)

    async def shell(self, name: str, script: str, **more: Any) -> list[dict[str, Any]]:
        return await self.put(name, "bash", "-c", script, **more)

    async def state(self, name: str) -> dict[str, Any]:
        answer = await self.call("GET", f"/{name}")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json["state"]
        return found

    async def becomes(self, name: str, status: str) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            while (state := await self.state(name))["status"] != status:
                await asyncio.sleep(0.01)
        return state

    async def begun(self, method: str, path: str, body: Any = None) -> Wire:
        """A request whose answer's head has come."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /services{path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(data)}\r\n\r\n"
        wire = (await self.wire()).send(head.encode() + data)
        status, _ = await wire.head()
        assert status == 200
        return wire

    def members(self, name: str) -> list[int]:
        """Who lives in a service's group."""
        return self.cgroup.child(f"svc-{name}").pids()

    def log(self, name: str) -> list[str]:
        """Its lines without their times."""
        return [line[25:] for line in (self.logs / f"{name}.log").read_text().splitlines()]

    def service(self, name: str) -> Any:
        return self.services._services[name]


def lines_of(answer: Answer) -> list[dict[str, Any]]:
    """The lines of an answer that is whole."""
    assert answer.status == 200, answer.body
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert found[-1]["type"] == "complete", found
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in found]


async def next_event(wire: Wire) -> dict[str, Any]:
    frame = await wire.frame()
    assert frame is not None
    found: dict[str, Any] = json.loads(frame)
    return found


async def next_of(wire: Wire, kind: str) -> dict[str, Any]:
    """The next line of a kind; others are passed over."""
    while (event := await next_event(wire))["type"] != kind:
        pass
    return event
