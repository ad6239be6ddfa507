"""Files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from sprites import exceptions
from sprites.exceptions import DirectoryNotEmptyError, FileNotFoundError_, FilesystemError

from ballpoint.core import ids
from tests.sdk.table import Kit, row
from tests.support.nodes import shell

_PURE = (
    "name", "stem", "suffix", "suffixes", "parent", "parents", "parts", "is_absolute", "is_relative_to", "joinpath",
    "with_name", "with_stem", "with_suffix", "relative_to",
)  # fmt: skip


def place(kit: Kit) -> tuple[str, str]:
    """A directory of the row's own, as a path and below the home; it is not there yet."""
    below = f"files-{ids.new_instance_id()}"
    return f"/home/sprite/{below}", below


def said(kit: Kit, script: str) -> str:
    """What a script says of the files, as their owner sees them."""
    code, text = shell(kit.node.client().sprite(kit.name), script)
    assert code == 0, text
    return text


@row("Sprite.filesystem", "Filesystem", "Filesystem.root", "Filesystem.cwd", "Filesystem.path", "Path")
async def filesystem(kit: Kit) -> None:
    fs = kit.sprite.filesystem("/etc")
    assert (str(fs.root), str(fs.cwd), str(fs.path("a", "b")), str(fs / "a")) == ("/", "/etc", "/etc/a/b", "/etc/a")
    assert "passwd" in await kit.do(fs.cwd.listdir)
    assert "etc" in await kit.do(kit.sprite.filesystem().cwd.listdir)


@row(*(f"Path.{name}" for name in _PURE))
async def arithmetic(kit: Kit) -> None:
    """As pathlib does it; `parents` of a relative path and `relative_to`, which stays absolute, are the SDK's own."""
    path = kit.sprite.filesystem("/srv") / "a/b.tar.gz"
    pure = PurePosixPath("/srv/a/b.tar.gz")
    for name in ("name", "stem", "suffix", "suffixes", "parts"):
        assert getattr(path, name) == getattr(pure, name)
    assert (str(path.parent), [str(each) for each in path.parents]) == ("/srv/a", ["/srv/a", "/srv", "/"])
    assert path.is_absolute() and path.is_relative_to("/srv") and not path.is_relative_to("/etc")
    assert str(path.joinpath("c", "d")) == str(pure.joinpath("c", "d"))
    assert str(path.with_name("x")) == str(pure.with_name("x"))
    assert str(path.with_stem("x")) == str(pure.with_stem("x"))
    assert str(path.with_suffix(".y")) == str(pure.with_suffix(".y"))
    assert str(path.relative_to("/srv")) == "/srv/a/b.tar.gz"


@row("Path.write_text", "Path.read_text", "Path.write_bytes", "Path.read_bytes")
async def contents(kit: Kit) -> None:
    top, below = place(kit)
    fs = kit.sprite.filesystem(top)
    await kit.do((fs / "text").write_text, "grüße\n")
    assert await kit.do((fs / "text").read_text) == "grüße\n"
    data = os.urandom(3 << 20)
    await kit.do((fs / "deep/er/data").write_bytes, data, mode=0o600)
    assert await kit.do((fs / "deep/er/data").read_bytes) == data
    assert said(kit, f"stat -c '%a %U' {below}/deep/er/data {below}/deep") == "600 sprite\n755 sprite\n"
    await kit.do((fs / "binary").write_bytes, b"\0\xff")
    assert await kit.do((fs / "binary").read_bytes) == b"\0\xff"


@row("Path.exists", "Path.is_file", "Path.is_dir", "Path.stat", "types.FileStat", "types.FileStat.is_file")
async def questions(kit: Kit) -> None:
    top, _ = place(kit)
    fs = kit.sprite.filesystem(top)
    file = fs / "file"
    for question in (file.exists, file.is_file, file.is_dir, fs.cwd.exists):
        assert not await kit.do(question)
    await kit.do(file.write_text, "grüße\n")
    assert await kit.do(file.exists) and await kit.do(file.is_file) and not await kit.do(file.is_dir)
    stat = await kit.do(file.stat)
    assert (stat.name, stat.path, stat.size, stat.mode) == ("file", str(file), 8, "0644")
    assert stat.is_file and not stat.is_dir and stat.mod_time.tzinfo is not None
    # The SDK asks for a listing and takes its first entry: of a directory, it says what its first child is.
    await kit.do((fs / "only/directory/file").write_text, "")
    assert await kit.do((fs / "only").is_dir) and not await kit.do((fs / "only/directory").is_dir)
    await kit.do((fs / "empty").mkdir)
    assert not await kit.do((fs / "empty").exists) and "empty" in await kit.do(fs.cwd.listdir)


@row("Path.mkdir", "Path.iterdir", "Path.listdir", "Path.rmdir", "Path.rmtree", "Path.unlink")
async def directories(kit: Kit) -> None:
    top, below = place(kit)
    fs = kit.sprite.filesystem(top)
    await kit.do(fs.cwd.mkdir)
    assert said(kit, f"stat -c '%a %U' {below}; ls -A {below}") == "755 sprite\n"
    await kit.do((fs / "a/b/c").mkdir, parents=True)
    await kit.do((fs / "a/b").mkdir, exist_ok=True)
    await kit.do((fs / "file").write_text, "")
    assert await kit.do(fs.cwd.listdir) == ["a", "file"]
    iterator = fs.cwd.iterdir() if kit.kind == "async" else await kit.do(fs.cwd.iterdir)
    assert [str(path) for path in await kit.all_of(iterator)] == [f"{top}/a", f"{top}/file"]
    with pytest.raises(DirectoryNotEmptyError):
        await kit.do((fs / "a").rmdir)
    await kit.do((fs / "a/b/c").rmdir)
    await kit.do((fs / "a").rmtree)
    await kit.do((fs / "file").unlink)
    await kit.do((fs / "file").unlink, missing_ok=True)
    assert await kit.do(fs.cwd.listdir) == []


@row("Path.rename", "Path.replace", "Path.copy_to", "Path.chmod", "Path.touch")
async def changes(kit: Kit) -> None:
    top, _ = place(kit)
    fs = kit.sprite.filesystem(top)
    await kit.do((fs / "d/file").write_text, "one")
    await kit.do((fs / "d/file").chmod, 0o750)
    assert (await kit.do((fs / "d/file").stat)).mode == "0750"
    await kit.do((fs / "d").chmod, 0o700, recursive=True)
    assert (await kit.do((fs / "d/file").stat)).mode == "0700"
    moved = await kit.do((fs / "d/file").rename, "moved")
    assert (str(moved), await kit.do(moved.read_text)) == (f"{top}/d/moved", "one")
    await kit.do((fs / "other").write_text, "is replaced")
    await kit.do(moved.replace, fs / "other")
    assert await kit.do((fs / "other").read_text) == "one"
    await kit.do((fs / "other").copy_to, "copy")
    await kit.do((fs / "other").copy_to, fs / "d/copy")
    await kit.do((fs / "d").copy_to, fs / "d2")
    assert await kit.do((fs / "d2/copy").read_text) == "one"
    await kit.do((fs / "touched").touch)
    await kit.do((fs / "touched").touch)
    assert await kit.do((fs / "touched").read_bytes) == b""
    with pytest.raises(FilesystemError, match="exists"):
        await kit.do((fs / "touched").touch, exist_ok=False)
    assert await kit.do(fs.cwd.listdir) == ["copy", "d", "d2", "other", "touched"]


@row(*(f"exceptions.{name}" for name in (
    "FileNotFoundError_", "IsADirectoryError_", "NotADirectoryError_", "DirectoryNotEmptyError", "PermissionError_",
    "FilesystemError")))  # fmt: skip
async def errors(kit: Kit) -> None:
    top, _ = place(kit)
    fs = kit.sprite.filesystem(top)
    await kit.do((fs / "full/file").write_text, "x")
    attempts: list[tuple[Callable[..., Any], tuple[Any, ...], type[FilesystemError]]] = [
        ((fs / "nosuch").read_text, (), FileNotFoundError_),
        ((fs / "nosuch").unlink, (), FileNotFoundError_),
        ((fs / "nosuch").stat, (), FileNotFoundError_),
        ((fs / "full").read_text, (), exceptions.IsADirectoryError_),
        ((fs / "full").write_text, ("x",), exceptions.IsADirectoryError_),
        ((fs / "full/file/below").read_text, (), exceptions.NotADirectoryError_),
        ((fs / "full").rmdir, (), DirectoryNotEmptyError),
        ((fs / "/etc/shadow").read_text, (), exceptions.PermissionError_),
        ((fs / "/etc/new").write_text, ("x",), exceptions.PermissionError_),
        ((fs / "full").rename, (fs / "full/in",), FilesystemError),
    ]
    for attempt, arguments, error in attempts:
        with pytest.raises(FilesystemError) as caught:
            await kit.do(attempt, *arguments)
        assert type(caught.value) is error
