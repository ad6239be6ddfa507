"""`sprite-env services` and `sprite-env tasks`: the program itself, an agent with real services, and the node's API."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ballpoint.agent.inside import InsideServer
from tests.agent.services.conftest import world as services_world
from tests.agent.services.world import ServicesWorld
from tests.agent.world import eventually
from tests.api.double import ALICE, NodeDouble, app_of
from tests.api.test_tasks import START, moment
from tests.api.test_tasks import World as TasksWorld
from tests.inside.conftest import Make
from tests.inside.test_sprite_env import DEADLINE, PROGRAM, Said
from tests.node.questions import World
from tests.support.nodes import shell

services = services_world


class Env:
    """The program beside a socket of a sprite named `one`, its agent's services, and the node behind it."""

    def __init__(self, folder: Path, services: ServicesWorld) -> None:
        self.services = services
        self.tasks = TasksWorld()
        node = NodeDouble()
        node.put("one", ALICE)
        self.world = World(folder, app_of(node, tasks=self.tasks.holds))
        self.server = InsideServer(self.world.control, services.routes)
        self.path = folder / "api.sock"
        self.program = folder / "sprite-env"
        self.program.write_text(PROGRAM.read_text().replace('"/.sprite/api.sock"', repr(str(self.path))))

    async def start(self) -> None:
        await self.world.connected()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(8)
        await self.server.start(listener)

    async def close(self) -> None:
        await self.server.close()
        await self.world.close()

    async def __call__(self, *arguments: str) -> Said:
        command = (sys.executable, "-IS", str(self.program), *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
        assert process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return Said(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def env(tmp_path: Path, services: ServicesWorld) -> AsyncIterator[Env]:
    folder = tmp_path / "env"
    folder.mkdir()
    made = Env(folder, services)
    await made.start()
    yield made
    await made.close()


async def test_a_service_from_its_creation_to_its_end(env: Env) -> None:
    said = await env("services", "create", "db", "--cmd", "sleep", "--args", "1000", "--no-stream")
    assert said == Said(0, "started\n", "")
    said = await env(
        "services", "create", "web", "--cmd", "bash", "--arg=-c", "--arg", "echo a,b $A; echo bad >&2; exit 4",
        "--env", "A=x,B=y=z", "--dir", "/usr", "--needs", "db", "--http-port", "3000", "--duration", "60s",
    )  # fmt: skip
    assert said == Said(1, "started\na,b x\n", "bad\nexited with 4\n")
    item = json.loads((await env("services", "get", "web")).out)
    del item["state"]
    assert item == {
        "name": "web", "cmd": "bash", "args": ["-c", "echo a,b $A; echo bad >&2; exit 4"], "needs": ["db"],
        "http_port": 3000, "env": {"A": "x", "B": "y=z"}, "dir": "/usr",
    }  # fmt: skip
    table = [re.split(r"  +", line) for line in (await env("services", "list")).out.splitlines()]
    assert [row[0] for row in table] == ["NAME", "db", "web"]
    assert table[1][1] == "running"
    assert [each["name"] for each in json.loads((await env("services", "list", "--json")).out)] == ["db", "web"]
    said = await env("services", "logs", "web", "--lines", "2")
    assert (sorted([said.out, said.err]), said.code) == (["a,b x\n", "bad\n"], 0)
    assert (await env("services", "signal", "db", "URG")) == Said(0, "", "")
    assert (await env("services", "stop", "db")).out == "stopping\nstopped (143)\n"
    assert (await env("services", "start", "db", "--no-stream")).out == "started\n"
    assert (await env("services", "restart", "db", "--no-stream")).out == "stopping\nstopped (143)\nstarted\n"
    said = await env("services", "delete", "db")
    assert (said.code, said.err) == (1, "sprite-env: the service 'db' is needed by web (delete those first)\n")
    for name in ("web", "db"):
        assert await env("services", "delete", name) == Said(0, "", "")
    assert env.services.services.listing() == []


async def test_arguments_may_begin_with_a_hyphen(env: Env) -> None:
    said = await env("services", "create", "web", "--cmd", "true", "--args", "-e,-c", "--arg", "-x y", "--no-stream")
    assert said == Said(0, "started\n", "")
    assert json.loads((await env("services", "get", "web")).out)["args"] == ["-e", "-c", "-x y"]
    assert (await env("services", "create", "web", "--cmd", "true", "--args")).code == 2
    assert await env("services", "delete", "web") == Said(0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "none"), ("start", "none"), ("stop", "none"), ("restart", "none"), ("delete", "none"), ("logs", "none"),
        ("signal", "none", "TERM"), ("get", "../info"), ("get", "a b"), ("get", "\udcff"),
        ("create", "X", "--cmd", "x"), ("create", "x", "--cmd", "x", "--env", "A"), ("create", "x", "--cmd", "\udcff"),
        ("create", "x", "--cmd", "x", "--needs", "none"), ("create", "x", "--cmd", "x", "--duration", "soon"),
    ],
)  # fmt: skip
async def test_what_is_refused_is_said(env: Env, arguments: tuple[str, ...]) -> None:
    said = await env("services", *arguments)
    assert (said.code, said.out, said.err.startswith("sprite-env: ")) == (1, "", True), said
    assert env.services.services.listing() == []


async def test_tasks(env: Env) -> None:
    assert (await env("tasks", "list")).out.split() == ["STARTED", "EXPIRES", "NAME"]
    said = await env("tasks", "create", "my build/1", "--expire", "5m")
    assert (said.code, "no name of a task" in said.err) == (1, True)
    said = await env("tasks", "create", "my build", "--expire", "5m")
    assert json.loads(said.out) == {"name": "my build", "started_at": moment(0), "expires_at": moment(300)}
    assert (await env("tasks", "create", "my build")).code == 1
    assert json.loads((await env("tasks", "update", "my build", "--expire", "30")).out)["expires_at"] == moment(30)
    assert json.loads((await env("tasks", "get", "my build")).out)["name"] == "my build"
    lines = (await env("tasks", "list")).out.splitlines()
    assert re.split(r"  +", lines[1]) == ["2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z", "my build"]
    assert [each.name for each in env.tasks.holds.holds("s-one")] == ["my build"]
    assert json.loads((await env("tasks", "list", "--json")).out)[0]["name"] == "my build"
    assert await env("tasks", "delete", "my build") == Said(0, "", "")
    assert (await env("tasks", "delete", "my build")).err.startswith("sprite-env: there is no task")
    assert env.tasks.clock.now() == START


async def test_a_stream_that_nobody_reads_ends_with_its_connection(env: Env) -> None:
    await env("services", "create", "web", "--cmd", "sleep", "--args", "1000", "--no-stream")
    reader, writer = await asyncio.open_unix_connection(str(env.path))
    writer.write(b"GET /v1/services/web/logs?duration=60s HTTP/1.1\r\nHost: sprite\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    assert env.server.connections == 1
    writer.close()
    await eventually(lambda: env.server.connections == 0)
    await eventually(lambda: not env.services.services._readers)


@pytest.mark.node
@pytest.mark.host
def test_it_is_in_a_sprite(make_sprite: Make) -> None:
    sprite: Any = make_sprite()
    create = "sprite-env services create web --cmd bash --args -c --arg 'echo on; exec sleep inf' --duration 2s"
    code, said = shell(sprite, create)
    assert (code, said.split()) == (0, ["started", "on"])
    assert shell(sprite, "sprite-env services get web | grep -c '\"running\"'") == (0, "1\n")
    assert (
        shell(sprite, "sprite-env tasks create build --expire 1m && sprite-env tasks list --json | grep -c build")[0]
        == 0
    )
    for name in ("llm.txt", "llm-dev.txt", "docs/agent-context.md", "docs/languages.md"):
        assert shell(sprite, f"test -s /.sprite/{name}") == (0, "")
    assert "services" in shell(sprite, "cat /.sprite/llm.txt")[1]
