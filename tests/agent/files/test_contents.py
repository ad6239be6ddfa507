"""Reading and writing: every byte, whole or refused."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from tests.agent.files.world import FilesWorld, unchunked
from tests.agent.world import DEADLINE, eventually, stalled

BIG = 24 << 20


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, BIG])
async def test_what_is_written_is_read(world: FilesWorld, size: int) -> None:
    data = content(size)
    answer = await world.put(data, path=world.path("file"))
    assert answer.status == 200
    assert answer.json == {"path": world.path("file"), "size": size, "mode": "0644"}
    assert (world.root / "file").read_bytes() == data
    answer = await world.get("read", path=world.path("file"))
    assert (answer.status, answer.fields["content-length"]) == (200, str(size))
    assert answer.fields["content-type"] == "application/octet-stream"
    assert answer.body == data


async def test_a_chunked_body(world: FilesWorld) -> None:
    wire = await world.begin_write("Transfer-Encoding: chunked", path=world.path("file"))
    for _ in range(100):
        wire.send(b"4\r\nword\r\n")
    answer = await wire.send(b"0\r\n\r\n").answer()
    wire.close()
    assert (answer.status, answer.json["size"]) == (200, 400)
    assert (world.root / "file").read_bytes() == b"word" * 100


async def test_paths(world: FilesWorld) -> None:
    (world.root / "sub").mkdir()
    (world.root / "file").write_text("here")
    (world.root / "link").symlink_to("file")
    (world.root / "to-sub").symlink_to("sub")
    base = str(world.root)
    for directory, path in [
        (base, "file"), (base + "/", "./file"), (base, "sub/../file"), (base, "link"), ("/nosuch", f"{base}/file"),
        (base, "to-sub/../file"), (f"{base}/sub", "../link"), ("/", f"{base[1:]}/file"),
    ]:  # fmt: skip
        answer = await world.get("read", path=path, workingDir=directory)
        assert (answer.status, answer.body) == (200, b"here"), (directory, path)
    strange = os.fsdecode(b"\xff\n\"'\\ \xc3\xa9")
    assert (await world.put(b"x", path=strange, workingDir=base)).json["path"].startswith(f"{base}/\ufffd\n\"'")
    assert (world.root / strange).read_bytes() == b"x"
    assert (await world.get("read", path=strange, workingDir=base)).body == b"x"


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=0-", 0, 10), ("bytes=3-5", 3, 6), ("bytes=9-", 9, 10), ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10), ("bytes=5-99999999999", 5, 10), (" BYTES = 1 - 2 ", 1, 3),
    ],
)  # fmt: skip
async def test_ranges(world: FilesWorld, wanted: str, first: int, end: int) -> None:
    (world.root / "ten").write_bytes(b"0123456789")
    answer = await world.get("read", {"range": wanted}, path=world.path("ten"))
    assert answer.status == 206
    assert answer.body == b"0123456789"[first:end]
    assert answer.fields["content-range"] == f"bytes {first}-{end - 1}/10"
    assert answer.fields["content-length"] == str(end - first)


async def test_ranges_that_are_not_there(world: FilesWorld) -> None:
    (world.root / "ten").write_bytes(b"0123456789")
    for wanted in ("bytes=10-", "bytes=99-100", "bytes=-0"):
        answer = await world.get("read", {"range": wanted}, path=world.path("ten"))
        assert (answer.status, answer.fields["content-range"]) == (416, "bytes */10")
        assert (answer.json["code"], answer.json["path"]) == ("EINVAL", world.path("ten"))


async def test_what_is_no_single_range_means_the_whole_file(world: FilesWorld) -> None:
    (world.root / "ten").write_bytes(b"0123456789")
    for wanted in ("bytes=0-1,3-4", "bytes=5-4", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=" + "9" * 40 + "-"):
        answer = await world.get("read", {"range": wanted}, path=world.path("ten"))
        assert (answer.status, answer.body) == (200, b"0123456789"), wanted
    answer = await world.get("read", {"range": "bytes=0-1", "if-range": '"x"'}, path=world.path("ten"))
    assert (answer.status, answer.body) == (200, b"0123456789")


async def test_a_range_of_a_big_file(world: FilesWorld) -> None:
    data = content(BIG)
    (world.root / "big").write_bytes(data)
    answer = await world.get("read", {"range": f"bytes=12345-{BIG - 7}"}, path=world.path("big"))
    assert (answer.status, answer.body) == (206, data[12345 : BIG - 6])


async def test_files_of_the_kernel_are_read_whole(world: FilesWorld) -> None:
    """The sizes that it tells of them are not theirs."""
    answer = await world.get("read", path="/proc/version")
    assert answer.body == Path("/proc/version").read_bytes()
    answer = await world.get("read", path="/sys/kernel/mm/transparent_hugepage/enabled")
    assert answer.body == Path("/sys/kernel/mm/transparent_hugepage/enabled").read_bytes()
    wire = await world.begin_read(path="/proc/kallsyms")
    status, fields = await wire.head()
    assert (status, fields["transfer-encoding"]) == (200, "chunked")
    assert len(await unchunked(wire)) > 1 << 20
    wire.close()


async def test_a_file_that_shrinks_under_its_reader_is_cut_short(world: FilesWorld) -> None:
    (world.root / "big").write_bytes(content(BIG))
    wire = await world.begin_read(path=world.path("big"))
    status, fields = await wire.head()
    assert (status, fields["content-length"]) == (200, str(BIG))
    os.truncate(world.root / "big", 2 << 20)
    got = 0
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        while got < BIG:
            got += len(await wire.reader.readexactly(1 << 16))
    assert got < BIG
    wire.close()


async def test_a_slow_reader_holds_the_helper_back(world: FilesWorld) -> None:
    (world.root / "big").write_bytes(b"\0" * BIG)
    wire = await world.begin_read(path=world.path("big"))
    await wire.head()
    position = Path(f"/proc/{world.files.pids[-1]}/io")

    def read_so_far() -> int:
        return int(position.read_text().split()[1])

    assert await stalled(read_so_far, BIG - (8 << 20)) < BIG - (8 << 20)
    assert len(await wire.rest()) == BIG
    wire.close()


async def test_a_slow_disk_holds_the_writer_back(world: FilesWorld) -> None:
    """The helper is stopped: what the client sends stays with the client, but for what buffers hold."""
    gate = "#!/bin/sh\necho .\nread x < " + world.path("gate") + '\nexec "$REAL" "$@"\n'
    os.mkfifo(world.root / "gate")
    real = world.files.program
    (world.root / "slow").write_text(gate.replace("$REAL", real).replace('"$@"', "$*"))
    (world.root / "slow").chmod(0o755)
    world.files.program = world.path("slow")
    data = content(BIG)
    wire = await world.begin_write(f"Content-Length: {BIG}", path=world.path("file"))
    wire.send(data)

    def left() -> int:
        transport = wire.writer.transport
        assert isinstance(transport, asyncio.WriteTransport)
        return BIG - transport.get_write_buffer_size()

    assert await stalled(left, 8 << 20) < 8 << 20
    assert not (world.root / "file").exists()
    gate_fd = os.open(world.root / "gate", os.O_RDWR)
    os.write(gate_fd, b"\n")
    assert (await wire.answer()).status == 200
    os.close(gate_fd)
    wire.close()
    assert (world.root / "file").read_bytes() == data


@pytest.mark.parametrize("framing", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("former", [None, "what was there before"])
async def test_a_body_that_is_cut_off_leaves_what_was_there(
    world: FilesWorld, framing: str, former: str | None
) -> None:
    if former is not None:
        (world.root / "file").write_text(former)
    wire = await world.begin_write(framing, path=world.path("file"))
    body = b"x" * 3_000_000
    wire.send(b"%x\r\n%b\r\n" % (len(body), body) if "chunked" in framing else body)
    async with asyncio.timeout(DEADLINE):
        await wire.writer.drain()
    await eventually(lambda: world.turns.running == 1)
    wire.close()
    await eventually(lambda: world.turns.running == world.turns.stuck == 0)
    if former is None:
        assert os.listdir(world.root) == []
    else:
        assert os.listdir(world.root) == ["file"]
        assert (world.root / "file").read_text() == former


async def test_an_agent_that_ends_cuts_its_writers_off(world: FilesWorld, tmp_path: Path) -> None:
    """Its end closes the pipe as the end of a body does, and is not taken for one."""
    read, write = os.pipe()
    word_read, word_write = os.pipe()
    out_read, out_write = os.pipe()
    arguments = [b"write", world.path("file").encode(), b"0644", b"0", b"1", b"-"]
    pid, pidfd = world.files.start_files("sprite", arguments, (read, out_write, word_read))
    os.write(write, b"half of it")
    for fd in (write, word_write, read, word_read, out_write):
        os.close(fd)
    with os.fdopen(out_read, "rb") as out:
        said = out.read()
    assert said.startswith(b".\n! 104 ")
    os.waitpid(pid, 0)
    os.close(pidfd)
    assert os.listdir(world.root) == []


# ---- what a write keeps ----


async def test_the_mode_is_that_of_a_new_file(world: FilesWorld) -> None:
    path = world.root / "file"
    assert (await world.put(b"1", path=path, mode="0751")).json["mode"] == "0751"
    assert mode_of(path) == 0o751
    former = path.stat().st_ino
    assert (await world.put(b"22", path=path, mode="0600")).json == {"path": str(path), "size": 2, "mode": "0751"}
    assert (path.read_text(), mode_of(path)) == ("22", 0o751)
    assert path.stat().st_ino != former  # replaced: whoever reads it has the one or the other


async def test_owners_are_kept(world: FilesWorld) -> None:
    path = world.root / "file"
    path.write_text("theirs")
    os.chown(path, 1234, 4321)
    assert (await world.put(b"ours", path=path)).status == 200
    assert (path.read_text(), path.stat().st_uid, path.stat().st_gid) == ("ours", 1234, 4321)


async def test_other_names_links_and_attributes_are_kept(world: FilesWorld) -> None:
    path = world.root / "file"
    path.write_text("a long text that was there")
    os.link(path, world.root / "other")
    (world.root / "link").symlink_to("file")
    (world.root / "dangling").symlink_to("made")
    attributed = world.root / "attributed"
    attributed.write_text("before")
    os.setxattr(attributed, "user.kept", b"value")
    for name, text in [("file", b"by name"), ("other", b"by the other"), ("link", b"by link")]:
        assert (await world.put(text, path=world.root / name)).status == 200
        assert path.read_bytes() == (world.root / "other").read_bytes() == text
    assert (world.root / "link").is_symlink()
    assert (await world.put(b"new", path=world.root / "dangling")).status == 200
    assert (world.root / "made").read_bytes() == b"new"
    assert (await world.put(b"after", path=attributed)).status == 200
    assert (attributed.read_bytes(), os.getxattr(attributed, "user.kept")) == (b"after", b"value")
    assert (await world.put(b"", path=path)).status == 200
    assert path.read_bytes() == b""


async def test_parents(world: FilesWorld) -> None:
    deep = world.path("a/b/c/file")
    answer = await world.put(b"x", path=deep)
    assert (answer.status, answer.json["code"]) == (404, "ENOENT")
    assert os.listdir(world.root) == []
    for flag in ("mkdirParents", "mkdir"):
        assert (await world.put(b"x", path=world.path(f"{flag}/b/c/file"), mode="0600", **{flag: "true"})).status == 200
        assert mode_of(world.root / flag / "b/c") == mode_of(world.root / flag) == 0o755
    assert (await world.put(b"x", path=world.path("one/.keep"), mkdirParents="false")).status == 200
    assert mode_of(world.root / "one") == 0o755
    assert (await world.put(b"x", path=world.path("one/.keep/file"), mkdirParents="true")).json["code"] == "ENOTDIR"


async def test_sync_can_be_left_out(world: FilesWorld) -> None:
    assert (await world.put(b"x", path=world.path("file"), sync="false")).status == 200
    assert (await world.put(b"x", path=world.path("file"), sync="perhaps")).status == 400
