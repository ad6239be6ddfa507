"""What a sprite may put in the way: nothing hangs, nothing is read that is no file, nothing leads elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from ballpoint.agent.files import helper
from tests.agent.files.world import FilesWorld, named
from tests.agent.world import DEADLINE, eventually

DEEP = 300


def special(root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "tty", 0o666 | stat.S_IFCHR, os.makedev(5, 0))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))


@pytest.mark.parametrize("name", ["fifo", "null", "tty", "socket", "link"])
async def test_what_is_no_file_is_neither_read_nor_written(world: FilesWorld, name: str) -> None:
    special(world.root)
    (world.root / "link").symlink_to("fifo")
    (world.root / "file").write_text("x")
    path = world.path(name)
    for answer in [
        await world.get("read", path=path),
        await world.put(b"data", path=path),
        await world.post("copy", source=path, dest=world.path("new")),
        await world.post("copy", source=world.path("file"), dest=path),
    ]:
        assert (answer.status, answer.json["code"]) == (400, "EINVAL")
    assert not (world.root / "new").exists()
    assert named(await world.get("list", path=path)) == [name]
    assert (await world.post("chmod", path=path, mode="0600")).status == 200
    assert (await world.delete(path=path)).status == 200


async def test_directories(world: FilesWorld) -> None:
    (world.root / "dir").mkdir()
    for path in ("dir", "dir/", "dir/.", "dir/..", "new/"):
        assert (await world.put(b"data", path=world.path(path))).json["code"] == "EISDIR", path
    assert (await world.get("read", path=world.path("dir"))).json["code"] == "EISDIR"
    assert (await world.put(b"data", path="/")).json["code"] == "EISDIR"


async def test_nobody_who_waits_at_a_fifo_is_let_through(world: FilesWorld) -> None:
    os.mkfifo(world.root / "fifo")
    through = threading.Event()

    def write() -> None:
        fd = os.open(world.root / "fifo", os.O_WRONLY)
        through.set()
        os.close(fd)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(20):
        assert (await world.get("read", path=world.path("fifo"))).status == 400
    assert not through.is_set()
    os.close(os.open(world.root / "fifo", os.O_RDONLY | os.O_NONBLOCK))
    await asyncio.to_thread(writer.join, DEADLINE)
    assert through.is_set()


async def test_links_that_turn_in_circles(world: FilesWorld) -> None:
    (world.root / "a").symlink_to("b")
    (world.root / "b").symlink_to("a")
    for answer in [
        await world.get("read", path=world.path("a")),
        await world.put(b"x", path=world.path("a")),
        await world.get("list", path=world.path("a/b")),
    ]:
        assert (answer.status, answer.json["code"]) == (400, "ELOOP")


async def test_names_that_are_too_long(world: FilesWorld) -> None:
    for name in ("x" * 256, "x/" * 3000, "x" * 5000):
        for answer in [
            await world.get("read", path=world.path(name)),
            await world.put(b"x", path=world.path(name), mkdirParents="true"),
            await world.delete(path=world.path(name)),
            await world.post("rename", source=world.path(name), dest=world.path("y")),
        ]:
            assert (answer.status, answer.json["code"]) == (400, "ENAMETOOLONG"), len(name)
    # Within the limit of a path, and of no use by way of a directory that makes it longer.
    assert (await world.get("read", path="y" * 4000, workingDir="/" + "d/" * 100)).status == 400


def deep_tree(root: Path, levels: int) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


async def test_trees_as_deep_as_is_allowed(world: FilesWorld) -> None:
    deep_tree(world.root, 200)
    top = world.path("d")
    assert named(await world.get("list", path=top, recursive="true"))[-1] == "end"
    assert (await world.post("copy", source=top, dest=world.path("copy"), recursive=True)).json["count"] == 201
    assert (await world.post("chmod", path=top, mode="0700", recursive=True)).json["count"] == 201
    assert (await world.delete(path=top, recursive="true")).json["count"] == 201
    assert os.listdir(world.root) == ["copy"]


async def test_trees_that_are_too_deep(world: FilesWorld) -> None:
    deep_tree(world.root, DEEP)
    top = world.path("d")
    listing = (await world.get("list", path=top, recursive="true")).json
    assert listing["errors"][0]["code"] == "ENAMETOOLONG"
    for answer in [
        await world.post("copy", source=top, dest=world.path("copy"), recursive=True),
        await world.post("chmod", path=top, mode="0700", recursive=True),
        await world.post("chown", path=top, uid=0, recursive=True),
        await world.delete(path=top, recursive="true"),
    ]:
        assert (answer.status, answer.json["code"]) == (400, "ENAMETOOLONG")
        assert answer.json["path"].startswith(world.path("d/d/d"))
    # A part of it may be deleted, so all of it can be.
    assert (await world.delete(path=top + "/d" * 100, recursive="true")).status == 200
    assert (await world.delete(path=top, recursive="true")).status == 200


async def test_what_is_swapped_meanwhile_leads_nowhere(world: FilesWorld) -> None:
    """Two names take turns at being a directory and a link to one that must not be touched."""
    victim = world.root / "victim"
    victim.mkdir()
    for number in range(20):
        (victim / f"{number}").write_text("precious")
    (victim / "0").chmod(0o640)
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            tree, name = world.root / "tree", world.root / "tree/sub"
            try:
                tree.mkdir(exist_ok=True)
                name.mkdir()
                (name / "file").write_text("x")
                os.rename(name, world.root / f"aside{number}")
                name.symlink_to(victim)
                name.unlink()
            except OSError:  # the test's own deletions come between
                pass

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(40):
            tree = world.path("tree")
            await world.delete(path=tree, recursive="true")
            await world.post("chmod", path=tree, mode="0777", recursive=True)
            await world.post("chown", path=tree, uid=1, recursive=True)
            answer = await world.get("list", path=tree, recursive="true")
            if answer.status == 200:
                assert not any("/sub/1" in entry["path"] for entry in answer.json["entries"])
    finally:
        stop.set()
        await asyncio.to_thread(swapper.join)
    assert sorted(os.listdir(victim)) == sorted(str(number) for number in range(20))
    assert (victim / "0").stat().st_mode & 0o777 == 0o640
    assert {path.stat().st_uid for path in victim.iterdir()} == {os.getuid()}


async def test_a_file_that_becomes_a_fifo_under_the_call(world: FilesWorld) -> None:
    name, stop = world.root / "name", threading.Event()
    os.mkfifo(world.root / "fifo")
    (world.root / "file").write_text("content")

    def swap() -> None:
        while not stop.is_set():
            for source in ("fifo", "file"):
                os.link(world.root / source, world.root / "next")
                os.rename(world.root / "next", name)
                if (world.root / "next").exists():  # rename(2) of two names of one file does nothing
                    os.unlink(world.root / "next")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(150):
            answer = await world.get("read", path=name)
            assert (answer.status, answer.body) == (200, b"content") or answer.status in (400, 404)
    finally:
        stop.set()
        await asyncio.to_thread(swapper.join)


# ---- what does not answer ----


def put_helper(world: FilesWorld, script: str) -> None:
    """Another program in the helper's place."""
    program = world.root / "helper"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    world.files.program = str(program)


async def test_a_helper_that_says_nothing_is_given_up(world: FilesWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "SILENT_SECONDS", 0.3)
    put_helper(world, "exec sleep 1000")
    for answer in [
        await world.get("read", path="/some/path"),
        await world.put(b"x", path="/some/path"),
        await world.post("copy", source="/some/path", dest="/other"),
    ]:
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        assert "/some/path" in answer.json["message"]
        assert answer.json["path"] == "/some/path"
        assert answer.json["hint"].startswith("the file system there does not answer")
        assert answer.fields["retry-after"] == "2"
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in world.files.pids))


async def test_a_helper_that_gets_on_has_its_time(world: FilesWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "SILENT_SECONDS", 1.5)
    put_helper(world, "for i in $(seq 40); do sleep 0.05; echo .; done; echo =; echo '{}'")
    assert (await world.get("list", path="/x")).json == {}


async def test_a_read_that_stops_in_the_middle_is_cut(world: FilesWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = world.root / "go-on"
    put_helper(world, f"echo '= 1000 0 1000'; until [ -e {go_on} ]; do sleep 0.05; done; echo some; exec sleep 1000")
    wire = await world.begin_read(path="/x")
    assert (await wire.head())[0] == 200
    monkeypatch.setattr(helper, "SILENT_SECONDS", 0.3)
    go_on.touch()
    assert await wire.rest() in (b"some\n", b"")
    wire.close()


@pytest.mark.parametrize(
    "says", ["kill -9 $$", "exit 0", "echo nonsense", "echo =; exit 3", "head -c 10000 /dev/zero", "echo '! 5'"]
)
async def test_a_helper_that_breaks(world: FilesWorld, says: str) -> None:
    put_helper(world, says)
    answer = await world.get("list", path="/x")
    assert answer.status in (500, 503)
    assert answer.json["code"] == "EIO"


async def test_those_that_do_not_end_are_counted(world: FilesWorld) -> None:
    """Those that FUSE holds for good are tested inside (tests/inside/test_files.py)."""
    world.turns.stuck = 3
    answer = await world.get("list", path=world.root)
    assert answer.status == 503
    assert "a file system inside the sprite does not answer" in answer.json["hint"]
    world.turns.stuck = 0
    assert (await world.get("list", path=world.root)).status == 200


async def test_no_helper_can_be_started(world: FilesWorld) -> None:
    world.files.refuses = "cannot start a process: No such file or directory"
    for answer in [await world.get("list", path="/x"), await world.put(b"x" * 100_000, path="/x")]:
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
    assert world.turns.running == 0


# ---- turns, and clients that go ----


async def test_only_some_run_at_once_and_the_others_wait(world: FilesWorld) -> None:
    gate = world.gate()
    real = world.files.program
    put_helper(world, f'read x < "{gate.path}"; exec "{real}" "$@"')
    (world.root / "file").write_text("here")
    reads = [asyncio.ensure_future(world.get("read", path=world.path("file"))) for _ in range(6)]
    writes = [asyncio.ensure_future(world.put(b"x" * 300_000, path=world.path(f"w{n}"))) for n in range(2)]
    await eventually(lambda: world.turns.running == 4 and len(world.turns._waiting) == 4)
    answer = await world.get("read", path=world.path("file"))
    assert (answer.status, answer.json["message"]) == (503, "too many operations on files at once")
    assert len(world.files.pids) == 4
    gate.open()
    assert [answer.body for answer in await asyncio.gather(*reads)] == [b"here"] * 6
    assert [answer.status for answer in await asyncio.gather(*writes)] == [200] * 2
    assert [(world.root / f"w{n}").stat().st_size for n in range(2)] == [300_000] * 2


async def test_whoever_goes_takes_along_what_runs_and_what_waits(world: FilesWorld) -> None:
    put_helper(world, "exec sleep 1000")
    wires = [await world.begin_read(path="/x") for _ in range(4)]
    await eventually(lambda: world.turns.running == 4)
    waiting = [await world.begin_read(path="/x"), await world.begin_write("Content-Length: 10", path="/x")]
    await eventually(lambda: len(world.turns._waiting) == 2)
    for wire in waiting:
        wire.close()
    await eventually(lambda: not world.turns._waiting)
    for wire in wires:
        wire.close()
    await eventually(lambda: world.turns.running == world.turns.stuck == 0)
    assert len(world.files.pids) == 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in world.files.pids)


async def test_clients_that_go_at_any_moment_leave_nothing(world: FilesWorld) -> None:
    (world.root / "big").write_bytes(b"x" * (8 << 20))
    for step in range(40):
        reading = await world.begin_read(path=world.path("big"))
        writing = await world.begin_write(f"Content-Length: {4 << 20}", path=world.path("new"))
        writing.send(b"y" * (step * 50_000))
        for _ in range(step % 7):
            await asyncio.sleep(0.001)
        reading.close()
        writing.close()
    await eventually(lambda: world.turns.running == world.turns.stuck == 0 and not world.turns._waiting)
    assert sorted(os.listdir(world.root)) == ["big"]


async def test_a_client_that_stalls_is_cut_off(world: FilesWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "_CLIENT_SECONDS", 0.3)
    # Such a one passes through the agent; of what the helper gives to the client itself, it counts the time, too.
    reading = await world.begin_read(path="/proc/kallsyms")
    writing = await world.begin_write("Content-Length: 1000", path=world.path("new"))
    writing.send(b"some")
    await eventually(lambda: len(world.files.pids) == 2)
    await eventually(lambda: world.turns.running == world.turns.stuck == 0)
    assert not (await reading.rest()).endswith(b"0\r\n\r\n")
    assert await writing.rest() == b""
    assert os.listdir(world.root) == []
    reading.close()
    writing.close()
