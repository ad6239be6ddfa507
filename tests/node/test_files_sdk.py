"""Files by the official SDK, every method that it has, on a real node."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sprites import AsyncSpritesClient
from sprites.async_filesystem import AsyncSpriteFilesystem, AsyncSpritePath
from sprites.exceptions import (
    DirectoryNotEmptyError,
    FileNotFoundError_,
    FilesystemError,
    IsADirectoryError_,
    NotADirectoryError_,
    PermissionError_,
)
from sprites.filesystem import SpriteFilesystem, SpritePath

from ballpoint.core import ids
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node

# What both kinds of paths ask a server; the rest is arithmetic with paths.
REMOTE = {
    "exists", "is_file", "is_dir", "stat", "read_bytes", "read_text", "write_bytes", "write_text", "iterdir", "listdir",
    "mkdir", "unlink", "rmdir", "rmtree", "rename", "replace", "copy_to", "chmod", "touch",
}  # fmt: skip
LOCAL = {
    "name", "stem", "suffix", "suffixes", "parent", "parents", "parts", "is_absolute", "is_relative_to", "joinpath",
    "with_name", "with_stem", "with_suffix", "relative_to",
}  # fmt: skip


@pytest.fixture(scope="module")
def sprite(node: TestNode) -> Iterator[Any]:
    name = f"t-{ids.new_instance_id()}"
    yield node.client().create_sprite(name)
    assert node.api("DELETE", f"/v1/sprites/{name}").status_code == 204


@pytest.mark.parametrize("kind", [SpritePath, AsyncSpritePath])
def test_no_method_is_left_out(kind: type) -> None:
    """A later SDK that can do more fails here, until this page covers it."""
    public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    assert public == REMOTE | LOCAL


def test_every_method(sprite: Any) -> None:
    fs: SpriteFilesystem = sprite.filesystem("/home/sprite/sync")
    top = fs.cwd
    assert not top.exists()
    top.mkdir()
    assert shell(sprite, "stat -c '%a %U' sync; ls -A sync")[1] == "755 sprite\n"
    file = fs / "file.txt"
    assert not (file.exists() or file.is_file() or file.is_dir())
    file.write_text("grüße\n")
    assert file.exists() and file.is_file() and not file.is_dir()
    assert file.read_text() == "grüße\n"
    stat = file.stat()
    assert (stat.name, stat.path, stat.size, stat.mode, stat.is_dir) == ("file.txt", str(file), 8, "0644", False)
    assert stat.mod_time.tzinfo is not None
    data = os.urandom(3 << 20)
    (fs / "deep/er/data").write_bytes(data, mode=0o600)
    assert (fs / "deep/er/data").read_bytes() == data
    assert shell(sprite, "stat -c %a sync/deep/er/data sync/deep/er")[1] == "600\n755\n"
    assert sorted(top.listdir()) == ["deep", "file.txt"]
    assert [path.name for path in top.iterdir()] == ["deep", "file.txt"]
    assert top.is_dir()  # its first child is a directory: the SDK's way to ask
    (fs / "a/b/c").mkdir(parents=True)
    (fs / "a/b").mkdir(exist_ok=True)
    file.chmod(0o750)
    assert file.stat().mode == "0750"
    (fs / "deep").chmod(0o700, recursive=True)
    assert (fs / "deep/er/data").stat().mode == "0700"
    moved = file.rename("moved.txt")
    assert (moved.read_text(), file.exists()) == ("grüße\n", False)
    (fs / "other").write_text("replaced")
    moved.replace(fs / "other")
    assert (fs / "other").read_text() == "grüße\n"
    (fs / "other").copy_to("copy")
    (fs / "deep").copy_to(fs / "deep2")
    assert ((fs / "copy").read_text(), (fs / "deep2/er/data").read_bytes()) == ("grüße\n", data)
    (fs / "touched").touch()
    (fs / "touched").touch()
    with pytest.raises(FilesystemError, match="exists"):
        (fs / "touched").touch(exist_ok=False)
    assert (fs / "touched").read_bytes() == b""
    (fs / "touched").unlink()
    (fs / "touched").unlink(missing_ok=True)
    (fs / "a/b/c").rmdir()
    (fs / "deep").rmtree()
    assert sorted(top.listdir()) == ["a", "copy", "deep2", "other"]
    assert fs.root.is_dir() in (True, False)
    assert "etc" in fs.root.listdir()
    assert fs.path("x", "y").parent.name == "x"


def test_every_error(sprite: Any) -> None:
    fs: SpriteFilesystem = sprite.filesystem("/home/sprite/errors")
    (fs / "full/file").write_text("x")
    attempts: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: (fs / "nosuch").read_text(), FileNotFoundError_),
        (lambda: (fs / "nosuch").unlink(), FileNotFoundError_),
        (lambda: (fs / "nosuch").stat(), FileNotFoundError_),
        (lambda: (fs / "full").read_text(), IsADirectoryError_),
        (lambda: (fs / "full").write_text("x"), IsADirectoryError_),
        (lambda: (fs / "full/file/below").read_text(), NotADirectoryError_),
        (lambda: (fs / "full").rmdir(), DirectoryNotEmptyError),
        (lambda: (fs / "/etc/shadow").read_text(), PermissionError_),
        (lambda: (fs / "/etc/new").write_text("x"), PermissionError_),
        (lambda: (fs / "full").rename(fs / "full/in"), FilesystemError),
    ]
    for attempt, error in attempts:
        with pytest.raises(error) as caught:
            attempt()
        assert type(caught.value) is error


async def test_every_method_async(node: TestNode, sprite: Any) -> None:
    async with AsyncSpritesClient(token=node.token, base_url=node.url, timeout=60.0) as client:
        fs: AsyncSpriteFilesystem = (await client.get_sprite(sprite.name)).filesystem("/home/sprite/async")
        top = fs.cwd
        await top.mkdir()
        file = fs / "file"
        assert not await file.exists()
        await file.write_text("text")
        assert await file.exists() and await file.is_file() and not await file.is_dir()
        assert (await file.read_text(), (await file.stat()).size) == ("text", 4)
        await (fs / "d/data").write_bytes(b"\0\xff", mode=0o600)
        assert await (fs / "d/data").read_bytes() == b"\0\xff"
        assert await top.listdir() == ["d", "file"]
        assert [path.name async for path in top.iterdir()] == ["d", "file"]
        await file.chmod(0o755)
        moved = await file.rename("moved")
        await moved.replace(fs / "again")
        await (fs / "again").copy_to(fs / "copy")
        await (fs / "copy").touch()
        assert await (fs / "copy").read_text() == "text"
        await (fs / "copy").unlink()
        with pytest.raises(DirectoryNotEmptyError):
            await (fs / "d").rmdir()
        await (fs / "d").rmtree()
        await (fs / "empty").mkdir()
        await (fs / "empty").rmdir()
        assert await top.listdir() == ["again"]
