"""Listing, deleting, renaming, copying, and who may do what: as the contract and its clients have it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from tests.agent.files.world import FilesWorld, named, target


def make(root: Path, *names: str) -> None:
    """Files, each holding its own name; directories, where a name ends in a slash."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- list ----


async def test_a_directory_is_listed_in_order(world: FilesWorld) -> None:
    make(world.root, "b", "a", "C", ".hidden", "sub/", "sub/not this")
    (world.root / "link").symlink_to("nowhere")
    os.chmod(world.root / "a", 0o4711)
    os.utime(world.root / "a", ns=(0, 1_700_000_000_123_456_789))
    answer = await world.get("list", path=world.root)
    assert named(answer) == [".hidden", "C", "a", "b", "link", "sub"]
    assert answer.json["path"] == str(world.root)
    entries = {entry["name"]: entry for entry in answer.json["entries"]}
    assert entries["a"] == {
        "name": "a", "path": world.path("a"), "type": "file", "size": 1, "mode": "4711", "isDir": False,
        "modTime": "2023-11-14T22:13:20.123456Z",
    }  # fmt: skip
    assert [entries[name]["type"] for name in ("sub", "link")] == ["directory", "symlink"]
    assert [entries[name]["isDir"] for name in ("sub", "link")] == [True, False]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entries["sub"]["modTime"])


async def test_a_file_is_listed_as_its_one_entry(world: FilesWorld) -> None:
    make(world.root, "file", "sub/")
    (world.root / "link").symlink_to("file")
    (world.root / "dangling").symlink_to("nowhere")
    for name in ("file", "link"):  # as stat(2): what it leads to
        [entry] = (await world.get("list", path=world.path(name))).json["entries"]
        assert (entry["name"], entry["path"], entry["type"], entry["size"]) == (name, world.path(name), "file", 4)
    assert named(await world.get("list", path=world.path("sub"))) == []
    for name in ("dangling", "nosuch"):
        answer = await world.get("list", path=world.path(name))
        assert (answer.status, answer.json["code"], answer.json["path"]) == (404, "ENOENT", world.path(name))
    assert (await world.get("list", path=world.path("file/below"))).json["code"] == "ENOTDIR"


async def test_listing_a_tree(world: FilesWorld) -> None:
    make(world.root, "a/b/c.py", "a/b.py", "a.py", "z/", "a/b/d.txt")
    (world.root / "a/loop").symlink_to("..")
    answer = await world.get("list", path=world.root, recursive="true")
    paths = [entry["path"].removeprefix(f"{world.root}/") for entry in answer.json["entries"]]
    assert paths == ["a", "a/b", "a/b/c.py", "a/b/d.txt", "a/b.py", "a/loop", "a.py", "z"]
    answer = await world.get("list", path=world.root, recursive="true", pattern="*.py")
    assert named(answer) == ["c.py", "b.py", "a.py"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["[x]", "a.py", "ab", "b.txt", "é.py"]), ("?.py", ["a.py", "é.py"]), ("[ab].*", ["a.py", "b.txt"]),
        ("[!a]*.py", ["é.py"]), ("[a-c]?", ["ab"]), ("[à-ï].py", ["é.py"]), (r"\[x\]", ["[x]"]), ("[x]", []),
        ("a*y", ["a.py"]), ("*.*", ["a.py", "b.txt", "é.py"]), ("[", []), ("a", []), ("*?*?*?*y", ["a.py", "é.py"]),
    ],
)  # fmt: skip
async def test_patterns(world: FilesWorld, pattern: str, found: list[str]) -> None:
    make(world.root, "a.py", "b.txt", "é.py", "ab", "[x]")
    assert named(await world.get("list", path=world.root, pattern=pattern)) == found


async def test_a_pattern_that_is_hard_to_match(world: FilesWorld) -> None:
    make(world.root, "a" * 250)
    assert named(await world.get("list", path=world.root, pattern="*a" * 100 + "b")) == []


async def test_special_files_are_shown_and_not_touched(world: FilesWorld) -> None:
    os.mkfifo(world.root / "fifo")
    os.mknod(world.root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    answer = await world.get("list", path=world.root)
    assert [(entry["name"], entry["type"]) for entry in answer.json["entries"]] == [
        ("fifo", "fifo"),
        ("null", "device"),
    ]


async def test_names_that_are_no_text(world: FilesWorld) -> None:
    names = [b"\xff\xfe", b'a\tb\nc"\\', b"\xed\xa0\x80", "ü€😀".encode(), b"\xf4\x90\x80\x80", b"\xc3"]
    for name in names:
        (Path(os.fsdecode(bytes(world.root) + b"/" + name))).write_text("x")
    listed = named(await world.get("list", path=world.root))
    assert listed == [
        'a\tb\nc"\\', "\ufffd", "ü€😀", "\ufffd\ufffd\ufffd", "\ufffd\ufffd\ufffd\ufffd", "\ufffd\ufffd",
    ]  # fmt: skip


async def test_a_hundred_thousand_entries(world: FilesWorld) -> None:
    """They come in pieces, while others are served."""
    big = world.root / "big"
    big.mkdir()
    first = os.open(big / "0", os.O_CREAT | os.O_WRONLY)
    os.close(first)
    for number in range(1, 60_000):
        os.link(big / "0", big / f"{number}")
    for number in range(60_000, 100_000):
        (big / f"{number}").symlink_to("0")
    wire = (await world.wire()).send(f"GET {target('list', {'path': big})} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
    status, fields = await wire.head()
    assert (status, fields["transfer-encoding"]) == (200, "chunked")
    assert (await world.get("read", path=big / "0")).status == 200
    size = 0
    last = b""
    while (part := await wire.frame()) is not None:
        size, last = size + len(part), part
    assert last.endswith(b'"count":100000}')
    assert size > 10 << 20
    wire.close()


# ---- delete ----


async def test_deleting(world: FilesWorld) -> None:
    make(world.root, "file", "empty/", "full/file")
    (world.root / "link").symlink_to("full")
    for name in ("file", "empty", "link"):
        answer = await world.delete(path=world.path(name))
        assert (answer.status, answer.json) == (200, {"deleted": [world.path(name)], "count": 1})
    answer = await world.delete(path=world.path("full"), recursive="false")
    assert (answer.status, answer.json["code"]) == (409, "ENOTEMPTY")
    assert tree(world.root) == ["full", "full/file"]
    answer = await world.delete(path=world.path("full"), recursive="true")
    assert answer.json == {"deleted": [world.path("full/file"), world.path("full")], "count": 2}
    assert (await world.delete(path=world.path("full"))).status == 404


async def test_deleting_by_a_body(world: FilesWorld) -> None:
    make(world.root, "full/file")
    body = f'{{"path": "full", "workingDir": "{world.root}", "recursive": true}}'.encode()
    answer = await world.ask("DELETE /fs/delete", {"content-length": str(len(body))}, body)
    assert (answer.status, answer.json["count"]) == (200, 2)


async def test_deleting_a_tree_follows_no_link(world: FilesWorld) -> None:
    make(world.root, "kept/file", "gone/sub/file")
    (world.root / "gone/sub/out").symlink_to("../../kept")
    (world.root / "gone/up").symlink_to("/")
    assert (await world.delete(path=world.path("gone/"), recursive="true")).json["count"] == 5
    assert tree(world.root) == ["kept", "kept/file"]


@pytest.mark.parametrize("path", ["/", "//", ".", "..", "sub/..", "sub/.", "/."])
async def test_what_has_no_name_is_not_deleted(world: FilesWorld, path: str) -> None:
    make(world.root, "sub/file")
    answer = await world.delete(path=path, workingDir=world.root, recursive="true")
    assert (answer.status, answer.json["code"]) == (400, "EINVAL")
    assert tree(world.root) == ["sub", "sub/file"]


async def test_many_are_counted_and_not_all_listed(world: FilesWorld) -> None:
    big = world.root / "big"
    big.mkdir()
    for number in range(30_000):
        (big / f"{number:05}").symlink_to("0")
    answer = await world.delete(path=big, recursive="true")
    assert answer.status == 200
    assert answer.json["count"] == 30_001 and answer.json["truncated"] is True
    assert 0 < len(answer.json["deleted"]) < 30_000
    assert tree(world.root) == []


# ---- rename ----


async def test_renaming(world: FilesWorld) -> None:
    make(world.root, "a", "b", "dir/x", "other/", "full/y")
    answer = await world.post("rename", source="a", dest="b", workingDir=str(world.root))
    assert (answer.status, answer.json) == (200, {"source": world.path("a"), "dest": world.path("b")})
    assert (world.root / "b").read_text() == "a"
    assert (await world.post("rename", source=world.path("dir"), dest=world.path("other"))).status == 200
    for source, dest, status, code in [
        ("other", "full", 409, "ENOTEMPTY"), ("b", "full", 400, "EISDIR"), ("full", "b", 400, "ENOTDIR"),
        ("nosuch", "x", 404, "ENOENT"), ("b", "no/x", 404, "ENOENT"), ("full", "full/in", 400, "EINVAL"),
    ]:  # fmt: skip
        answer = await world.post("rename", source=world.path(source), dest=world.path(dest))
        assert (answer.status, answer.json["code"]) == (status, code), (source, dest)
    assert tree(world.root) == ["b", "full", "full/y", "other", "other/x"]


# ---- copy ----


async def test_copying_a_file(world: FilesWorld) -> None:
    make(world.root, "a", "b", "dir/")
    os.chmod(world.root / "a", 0o755)
    former = (world.root / "b").stat().st_mode
    answer = await world.post("copy", source="a", dest="new", workingDir=str(world.root))
    pair = {"source": world.path("a"), "dest": world.path("new")}
    assert answer.json == {"copied": [pair], "count": 1, "totalBytes": 1, **pair}
    assert ((world.root / "new").read_text(), mode_of(world.root / "new")) == ("a", 0o755)
    assert (await world.post("copy", source=world.path("a"), dest=world.path("b"))).status == 200
    assert ((world.root / "b").read_text(), (world.root / "b").stat().st_mode) == ("a", former)
    for source, dest, code in [
        ("a", "a", "EINVAL"), ("a", "dir", "EISDIR"), ("nosuch", "x", "ENOENT"), ("a", "no/x", "ENOENT"),
        ("dir", "x", "EISDIR"),
    ]:  # fmt: skip
        answer = await world.post("copy", source=world.path(source), dest=world.path(dest))
        assert answer.json["code"] == code, (source, dest)
    assert (world.root / "a").read_text() == "a"


async def test_copying_onto_another_name_of_itself_keeps_it(world: FilesWorld) -> None:
    make(world.root, "a")
    os.link(world.root / "a", world.root / "same")
    (world.root / "link").symlink_to("a")
    for dest in ("same", "link"):
        answer = await world.post("copy", source=world.path("a"), dest=world.path(dest))
        assert (answer.status, answer.json["code"]) == (400, "EINVAL")
    assert (world.root / "a").read_text() == "a"


async def test_copying_a_tree(world: FilesWorld) -> None:
    make(world.root, "src/a/b", "src/c", "src/empty/", "outside")
    os.chmod(world.root / "src/a", 0o700)
    (world.root / "src/link").symlink_to("../outside")
    (world.root / "src/loop").symlink_to(".")
    os.mkfifo(world.root / "src/fifo")
    answer = await world.post("copy", source=world.path("src"), dest=world.path("dst"), recursive=True)
    assert (answer.status, answer.json["count"], answer.json["skipped"]) == (200, 7, 1)
    assert answer.json["totalBytes"] == sum(len(f"src/{name}") for name in ("a/b", "c"))
    assert tree(world.root / "dst") == ["a", "a/b", "c", "empty", "link", "loop"]
    assert os.readlink(world.root / "dst/link") == "../outside"
    assert mode_of(world.root / "dst/a") == 0o700
    make(world.root, "dst/more")
    assert (await world.post("copy", source=world.path("src"), dest=world.path("dst"), recursive=True)).status == 200
    assert "more" in tree(world.root / "dst")  # what is there already stays


async def test_copying_a_tree_into_itself_ends(world: FilesWorld) -> None:
    make(world.root, "src/a", "src/sub/b")
    for dest in ("src/sub/new", "src/new", "src"):
        answer = await world.post("copy", source=world.path("src"), dest=world.path(dest), recursive=True)
        assert (answer.status, answer.json["code"]) == (400, "EINVAL"), dest
    assert tree(world.root) == ["src", "src/a", "src/sub", "src/sub/b"]


async def test_attributes_are_copied_where_that_is_asked_for(world: FilesWorld) -> None:
    make(world.root, "src/a")
    os.chown(world.root / "src/a", 12, 34)
    os.chmod(world.root / "src/a", 0o4640)
    os.utime(world.root / "src/a", (1, 2))
    os.utime(world.root / "src", (3, 4))
    for name, preserve in (("plain", False), ("kept", True)):
        fields = {"source": world.path("src"), "dest": world.path(name), "recursive": True, "preserveAttrs": preserve}
        assert (await world.post("copy", **fields)).status == 200
    kept, plain = (world.root / "kept/a").stat(), (world.root / "plain/a").stat()
    assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode), kept.st_mtime) == (12, 34, 0o4640, 2)
    assert (world.root / "kept").stat().st_mtime == 4
    assert (plain.st_uid, stat.S_IMODE(plain.st_mode)) == (os.getuid(), 0o640)
    assert plain.st_mtime > 4


async def test_holes_are_copied_as_holes(world: FilesWorld) -> None:
    with (world.root / "sparse").open("wb") as file:
        file.seek(1 << 33)
        file.write(b"end")
        file.truncate(1 << 34)
    answer = await world.post("copy", source=world.path("sparse"), dest=world.path("copy"))
    assert (answer.status, answer.json["totalBytes"]) == (200, 1 << 34)
    made = (world.root / "copy").stat()
    assert made.st_size == 1 << 34
    assert made.st_blocks * 512 < 1 << 20
    with (world.root / "copy").open("rb") as file:
        file.seek(1 << 33)
        assert file.read(4) == b"end\0"


# ---- chmod, chown ----


async def test_modes(world: FilesWorld) -> None:
    make(world.root, "file", "dir/sub/x")
    (world.root / "dir/link").symlink_to("../file")
    answer = await world.post("chmod", path="file", workingDir=str(world.root), mode="4755")
    one = {"path": world.path("file"), "mode": "4755"}
    assert answer.json == {"affected": [one], "count": 1, **one}
    answer = await world.post("chmod", path=world.path("dir"), mode="0500", recursive=True)
    assert [each["path"].removeprefix(f"{world.root}/") for each in answer.json["affected"]] == [
        "dir/sub/x", "dir/sub", "dir",
    ]  # fmt: skip
    assert [mode_of(world.root / name) for name in ("dir", "dir/sub", "dir/sub/x")] == [0o500] * 3
    assert mode_of(world.root / "file") == 0o4755  # by way of the link
    for mode in ("rwx", "", "8", "17777", 493, None):
        assert (await world.post("chmod", path=world.path("file"), mode=mode)).status == 400
    assert (await world.post("chmod", path=world.path("nosuch"), mode="0644")).json["code"] == "ENOENT"


async def test_owners(world: FilesWorld) -> None:
    make(world.root, "file", "dir/sub/x")
    (world.root / "dir/link").symlink_to("../file")
    answer = await world.post("chown", path=world.path("file"), uid=1, gid="daemon")
    assert answer.json["affected"] == [{"path": world.path("file"), "uid": 1, "gid": 1}]
    answer = await world.post("chown", path=world.path("file"), uid="2")
    assert answer.json["affected"] == [{"path": world.path("file"), "uid": 2, "gid": 1}]
    answer = await world.post("chown", path=world.path("dir"), uid="daemon", recursive=True)
    assert answer.json["count"] == 4
    assert {path.lstat().st_uid for path in [world.root / "dir", *(world.root / "dir").rglob("*")]} == {1}
    assert (world.root / "file").stat().st_uid == 2
    bad: tuple[object, ...] = ("nosuchuser", "-1", -1, 1 << 40, "a b", True, [], "-", 1.5)
    for uid in bad:
        assert (await world.post("chown", path=world.path("file"), uid=uid)).status == 400, uid
    assert (await world.post("chown", path=world.path("file"))).status == 400
    assert (world.root / "file").stat().st_uid == 2


async def test_as_root(world: FilesWorld) -> None:
    make(world.root, "file")
    await world.get("list", path=world.root)
    await world.get("list", path=world.root, asRoot="true")
    await world.post("chmod", path=world.path("file"), mode="0600", asRoot=True)
    assert world.files.users == ["sprite", "root", "root"]
