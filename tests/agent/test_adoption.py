"""An agent that dies: the next one goes on with its sessions, from what the anchor kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballpoint.agent.sessions.session import STDERR, STDOUT
from ballpoint.agent.sessions.sessions import Sessions
from tests.agent.world import Heard, KeptFds, World, eventually, listen, output_until


class Anchored:
    """An agent with an anchor, and its successors."""

    def __init__(self, folder: Path) -> None:
        self.anchor = KeptFds()
        self.world = World(folder, self.anchor)

    def die(self) -> None:
        """Let the agent be no more: nobody reads its descriptors, and its own copies are closed."""
        loop = asyncio.get_running_loop()
        for session in self.world.sessions:
            for fd in {*session.descriptors().values()}:
                loop.remove_reader(fd)
                loop.remove_writer(fd)
                os.close(fd)

    def succeed(self) -> Sessions:
        made = Sessions(self.world.spawner, self.anchor, self.world.journals())
        made.adopt()
        self.world.sessions = made
        return made

    def lose(self, short: str) -> None:
        """Let the anchor not have one of a session's descriptors."""
        self.anchor.forget([name for name in self.anchor.names() if name.endswith(f".{short}")])


class Viewer:
    """A client that is there again."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.ended = asyncio.Event()

    def output(self, stream: int, data: bytes) -> bool:
        assert not self.heard.terminal
        self.heard.frames.append((stream, data))
        return True

    def skipped(self, stream: int, start: int, end: int) -> None:
        raise AssertionError

    def exited(self, code: int) -> None:
        self.heard.terminal.append(code)
        self.ended.set()

    def pause_input(self, paused: bool) -> None:
        pass


def _successor(anchored: Anchored) -> Sessions:
    anchored.die()
    return anchored.succeed()


@pytest.fixture
async def anchored(tmp_path: Path) -> AsyncIterator[Anchored]:
    made = Anchored(tmp_path)
    await made.world.start()
    yield made
    await made.world.close()
    assert made.world.failures == []
    await eventually(lambda: made.anchor.fds == {})
    made.world.close_gates()


async def test_all_goes_on(anchored: Anchored) -> None:
    world = anchored.world
    async with world.open("sh", "-c", "echo ready; read line; echo got $line; cat; exit 7", stdin="true") as client:
        info = (await output_until(client, b"ready\n")).info
        before = (await world.ask("GET /exec")).json["sessions"][0]
        after = _successor(anchored)
        (listing,) = after.listing()
        same = ("id", "command", "created", "tty")
        assert [listing[name] for name in same] == [before[name] for name in same]
        session = after.get(info["session_id"])
        assert session is not None
        viewer = Viewer()
        session.attach(viewer, {STDOUT: len(b"ready\n"), STDERR: 0})
        session.write(b"this\nrest")
        session.end_input()
        await viewer.ended.wait()
        assert viewer.heard.told == (b"got this\nrest", b"", [7], b"")
        client.transport.abort()
    assert after.listing() == []


async def test_a_terminal_goes_on(anchored: Anchored) -> None:
    world = anchored.world
    async with world.open("sh", "-c", "echo ready; read line; stty size; exit 7", tty="true") as client:
        info = (await output_until(client, b"ready", tty=True)).info
        session = _successor(anchored).get(info["session_id"])
        assert session is not None
        viewer = Viewer()
        session.attach(viewer, {STDOUT: 0, STDERR: 0})
        session.resize(33, 77)
        session.write(b"x\n")
        await viewer.ended.wait()
        assert viewer.heard.stdout.endswith(b"33 77\r\n")
        assert viewer.heard.terminal == [7]
        client.transport.abort()


async def test_its_time_without_a_client_begins(anchored: Anchored) -> None:
    async with anchored.world.open("sh", "-c", "echo ready; exec sleep 600", max_run_after_disconnect="10ms") as client:
        await output_until(client, b"ready")
        after = _successor(anchored)
        assert len(after) == 1
        await eventually(lambda: len(after) == 0)
        client.transport.abort()


async def test_it_ended_meanwhile(anchored: Anchored, tmp_path: Path) -> None:
    async with anchored.world.open("sh", "-c", "echo ready; exec sleep 600") as client:
        info = (await output_until(client, b"ready")).info
        anchored.die()
        os.kill(int(info["session_id"]), signal.SIGKILL)
        after = anchored.succeed()
        await eventually(lambda: len(after) == 0)
        client.transport.abort()


@pytest.mark.parametrize("lost", ["s", "p"])
async def test_it_died_between_two_steps(anchored: Anchored, tmp_path: Path, lost: str) -> None:
    """What is left of a session that was beginning or ending is taken care of, and its process is not cut off."""
    gate, result = anchored.world.gate(), tmp_path / "result"
    script = f"echo ready; read x < {gate.path}; head -c 3000000 /dev/zero; echo $? > {result}"
    async with anchored.world.open("sh", "-c", script) as client:
        info = (await output_until(client, b"ready")).info
        anchored.die()
        anchored.lose(lost)
        after = anchored.succeed()
        assert after.listing() == []
        gate.open()
        await eventually(lambda: anchored.anchor.names() == [])
        assert result.read_text() == "0\n"
        client.transport.abort()
    os.waitpid(int(info["session_id"]), 0)


async def test_background_children_go_on_writing(anchored: Anchored, tmp_path: Path) -> None:
    """Their exec has ended, and so has the agent; they get no SIGPIPE all the same."""
    gate, result = anchored.world.gate(), tmp_path / "result"
    script = f"(read x < {gate.path}; head -c 3000000 /dev/zero; echo $? > {result}) &"
    assert (await anchored.world.run("sh", "-c", script)).terminal == [0]
    (kept,) = (name for name in anchored.anchor.names() if name.endswith(f".{STDOUT}"))
    # The dead agent's own copies are out of reach here; the anchor's must not depend on them.
    Sessions(anchored.world.spawner, anchored.anchor).adopt()
    assert kept in anchored.anchor.names()
    gate.open()
    await eventually(lambda: anchored.anchor.names() == [])
    assert result.read_text() == "0\n"


async def test_no_more_sessions_than_the_anchor_keeps(tmp_path: Path) -> None:
    world = World(tmp_path, KeptFds(room=6))
    await world.start()
    async with world.open("sh", "-c", "echo ready; cat", stdin="true") as client:
        await output_until(client, b"ready\n")
        heard = await world.run("sleep", "600")
        assert (heard.terminal, heard.stderr) == ([126], b"sprite: too many commands run in this sprite\n")
        await client.send(b"\4")
        assert (await listen(client)).terminal == [0]
    await eventually(lambda: len(world.sessions) == 0)
    assert (await world.run("echo", "again")).stdout == b"again\n"
    await world.close()
    assert world.failures == []
