"""`sprite-env`: the program itself over the whole way to the API, and the one of the image in a sprite."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ballpoint import __version__
from ballpoint.agent.inside import InsideServer
from ballpoint.core.errors import UnavailableError
from tests.api.double import ALICE, NodeDouble, app_of
from tests.inside.conftest import Make
from tests.node.questions import World
from tests.support.nodes import shell

PROGRAM = resources.files("ballpoint.image") / "recipes/files/.sprite/bin/sprite-env"
DEADLINE = 60.0


@dataclass
class Said:
    code: int
    out: str
    err: str


class Env:
    """The program beside a socket of a sprite named `one`, and the node behind it."""

    def __init__(self, folder: Path) -> None:
        self.node = NodeDouble()
        self.view = self.node.put("one", ALICE)
        self.world = World(folder, app_of(self.node))
        self.server = InsideServer(self.world.control)
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
async def env(tmp_path: Path) -> AsyncIterator[Env]:
    made = Env(tmp_path)
    await made.start()
    yield made
    await made.close()


async def test_info_and_version(env: Env) -> None:
    said = await env("info")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["sprite_url"] == env.view.url
    assert (await env("version")).out == f"{__version__}\n"


async def test_checkpoints_from_the_first_to_the_last(env: Env) -> None:
    said = await env("checkpoints", "create", "--comment", 'it\'s \u00fc\n"quoted"')
    assert (said.code, said.out.splitlines()[-1]) == (0, "one has the checkpoint v0")
    assert (await env("checkpoints", "create", "--durable")).code == 0
    asked = [arguments for verb, arguments in env.node.asked if verb == "checkpoint"]
    assert asked == [
        {"comment": 'it\'s \u00fc\n"quoted"', "wait_durable": False},
        {"comment": "", "wait_durable": True},
    ]
    listed = (await env("checkpoints", "list")).out
    assert [re.split(r"  +", line) for line in listed.splitlines()] == [
        ["ID", "CREATED", "DURABLE", "COMMENT"],
        ["v0", "2026-01-02T03:04:05Z", "not yet", 'it\'s \u00fc "quoted"'],
        ["v1", "2026-01-02T03:04:05Z", "yes"],
    ]
    assert [each["id"] for each in json.loads((await env("checkpoints", "list", "--json")).out)] == ["v0", "v1"]
    assert "v0" not in (await env("checkpoints", "list", "--history", "v1")).out
    assert env.node.asked[-1] == ("checkpoints", {"include_auto": False})
    await env("checkpoints", "list", "--include-auto")
    assert env.node.asked[-1] == ("checkpoints", {"include_auto": True})
    assert json.loads((await env("checkpoints", "get", "v0")).out)["comment"].startswith("it's")
    assert (await env("checkpoints", "restore", "v0")).out.splitlines()[-1] == "one runs from v0"
    assert await env("checkpoints", "delete", "v0") == Said(0, "", "")
    assert json.loads((await env("checkpoints", "list", "--json")).out)[0]["id"] == "v1"


async def test_sync(env: Env) -> None:
    said = await env("sync")
    assert (said.code, json.loads(said.out)["lag_seconds"]) == (0, None)


@pytest.mark.parametrize("verb", ["get", "restore", "delete"])
async def test_a_checkpoint_that_is_not_there(env: Env, verb: str) -> None:
    for strange in ("v7", "../..", "a b", "v0?x=y", "v0\n", "\udcff"):
        said = await env("checkpoints", verb, strange)
        assert (said.code, said.out, said.err.startswith("sprite-env: there is no ")) == (1, "", True), said


async def test_a_failure_on_the_way_is_no_success(env: Env) -> None:
    env.node.late_failure = RuntimeError("a defect")
    said = await env("checkpoints", "create")
    assert (said.code, said.out) == (1, "the disk is kept\n")
    assert said.err.startswith("sprite-env: ")
    env.node.late_failure = UnavailableError("the store is away", hint="wait for it")
    said = await env("checkpoints", "create")
    assert said == Said(1, "the disk is kept\n", "sprite-env: the store is away (wait for it)\n")


async def test_curl(env: Env) -> None:
    said = await env("curl", "/v1/info")
    assert (said.code, json.loads(said.out)["name"]) == (0, "one")
    assert (await env("curl", "v1/info")).out == said.out
    assert (await env("curl", "/v1/checkpoint", "-d", '{"comment": "c"}')).code == 0
    assert (await env("curl", "/v1/checkpoint", "-X", "POST", "-d", "{}")).code == 0
    assert await env("curl", "-X", "DELETE", "/v1/checkpoints/v0") == Said(0, "", "")
    refused = await env("curl", "/v1/sprites")
    assert (refused.code, json.loads(refused.out)["error"]) == (1, "not_found")


async def test_without_a_node(env: Env) -> None:
    env.world.connection.close()
    said = await env("info")
    assert (said.code, said.out) == (1, "")
    assert "not" in said.err
    await env.server.close()
    for _ in range(2):  # first nobody listens, then there is no socket
        said = await env("checkpoints", "create")
        assert said.code == 1
        assert said.err.startswith(f"sprite-env: {env.path} does not answer: ")
        env.path.unlink(missing_ok=True)


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("checkpoints",), ("checkpoints", "get"), ("curl",)])
async def test_it_says_how_it_is_used(env: Env, arguments: tuple[str, ...]) -> None:
    said = await env(*arguments)
    assert (said.code, said.out, said.err.startswith("usage: sprite-env")) == (2, "", True)


async def test_whoever_has_read_enough_is_no_failure(env: Env) -> None:
    command = f"{sys.executable} -IS {env.program} info | true; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        _, err = await process.communicate()
    assert err == b""


@pytest.mark.node
@pytest.mark.host
def test_it_is_in_a_sprite(make_sprite: Make) -> None:
    sprite: Any = make_sprite()
    for user in ("sprite", "root"):
        code, said = shell(sprite, "sprite-env info", user=user)
        assert code == 0, said
        assert json.loads(said)["name"] == sprite.name
    assert shell(sprite, "setpriv --reuid 4321 --clear-groups /.sprite/bin/sprite-env version", user="root") == (
        0,
        f"{__version__}\n",
    )
    assert shell(sprite, "su - sprite -c 'sprite-env version'", user="root")[0] == 0
    # The links are the image's own: a new disk holds nothing of them.
    assert shell(sprite, "readlink /.sprite/api.sock /.sprite/checkpoints") == (
        0,
        "../run/sprite/api.sock\n../run/sprite/checkpoints\n",
    )
