"""Nothing stays behind: the fixture of every test compares the descriptors; here are the ways that are rarer."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ballpoint.agent import spawn
from ballpoint.agent.inner import Inner
from ballpoint.agent.spawn import ContainerSpawner
from ballpoint.agent.spawn_types import ProcessSpec, SpawnError
from tests.agent.world import ENVIRONMENT, KeptFds, World, descriptors, eventually, output_until, post_head


async def test_two_hundred_sessions(world: World) -> None:
    before = descriptors().keys()
    for number in range(200):
        kind = number % 5
        if kind == 0:
            assert (await world.run("sh", "-c", "echo x; exit 3")).terminal == [3]
        elif kind == 1:
            assert (await world.post("cat", body=b"x")).stdout == b"x"
        elif kind == 2:
            assert (await world.run("true", tty="true")).terminal == [0]
        elif kind == 3:
            assert (await world.run("no-such-command")).terminal == [127]
        else:
            async with world.open("sh", "-c", "echo ready; exec sleep 600", max_run_after_disconnect="1ms") as client:
                await output_until(client, b"ready")
                client.transport.abort()
    await eventually(lambda: len(world.sessions) == 0)
    await eventually(lambda: descriptors().keys() == before)
    assert world.saved == []


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open `count` more descriptors."""
    used = {int(name) for name in descriptors()}
    limit = next(limit for limit in range(1 << 20) if limit - sum(number < limit for number in used) == count)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", range(1, 7))
async def test_out_of_descriptors(world: World, room: int) -> None:
    before = len(descriptors())
    wire = await world.wire()
    await eventually(lambda: len(descriptors()) == before + 2)  # its server's side is there
    wire.send(post_head(["true"], {}, "Content-Length: 0"))
    with room_for(room):
        assert (await wire.head())[0] == 200
        heard = await wire.frames()
    assert (heard.stdout, heard.terminal) == (b"", [126])
    assert b"Too many open files" in heard.stderr
    wire.close()
    assert (await world.run("echo", "again")).stdout == b"again\n"


def test_a_process_nobody_could_watch_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "PROGRAM", "/bin/cat")
    before = descriptors().keys()
    spawner = ContainerSpawner(Inner(os.getpid(), os.pidfd_open(os.getpid()), -1, None, None, None), [], KeptFds())
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with room_for(0), pytest.raises(SpawnError) as refused:
            spawner.spawn(ProcessSpec((), None, ENVIRONMENT, None, read, null, null))
        assert refused.value.exit_code == 126
        os.close(read)
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
    finally:
        for name in descriptors().keys() - before:
            os.close(int(name))
