"""Watching files over a WebSocket: what happens is told, by the path under which it was asked for."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.agent.files.world import FilesWorld, next_message
from tests.agent.world import DEADLINE, eventually


async def subscribe(client: ClientConnection, *paths: str | Path, **more: Any) -> dict[str, Any]:
    await client.send(json.dumps({"type": "subscribe", "paths": [str(path) for path in paths], **more}))
    async with asyncio.timeout(DEADLINE):
        return await next_message(client)


async def told(client: ClientConnection, until: tuple[str, str], root: Path) -> list[tuple[str, str]]:
    """Events, each as what happened and the path below `root`, up to the one that is waited for."""
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(DEADLINE):
        while not found or found[-1] != until:
            message = await next_message(client)
            assert message["type"] == "event", message
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", message["timestamp"])
            found.append((message["event"], message["path"].removeprefix(f"{root}/")))
    return found


async def test_what_happens_in_a_directory(world: FilesWorld) -> None:
    root = world.root
    (root / "sub").mkdir()
    async with world.watch() as client:
        answer = await subscribe(client, ".", workingDir=str(root))
        assert answer == {"type": "subscribed", "paths": [f"{root}"]}
        (root / "a").write_text("12345")
        assert await told(client, ("write", "a"), root) == [("create", "a"), ("write", "a")]
        (root / "a").chmod(0o600)
        assert await told(client, ("chmod", "a"), root) == [("chmod", "a")]
        os.rename(root / "a", root / "b")
        assert await told(client, ("create", "b"), root) == [("rename", "a"), ("create", "b")]
        (root / "b").unlink()
        assert await told(client, ("remove", "b"), root) == [("remove", "b")]
        (root / "sub/below").write_text("x")  # not asked for
        (root / "end").mkdir()
        assert await told(client, ("create", "end"), root) == [("create", "end")]


async def test_events_say_what_a_path_is(world: FilesWorld) -> None:
    async with world.watch() as client:
        await subscribe(client, world.root)
        (world.root / "file").symlink_to("x" * 17)
        message = await next_message(client)
        assert {key: message[key] for key in ("type", "path", "event", "size", "isDir")} == {
            "type": "event", "path": world.path("file"), "event": "create", "size": 17, "isDir": False,
        }  # fmt: skip
        (world.root / "dir").mkdir()
        assert (await next_message(client))["isDir"] is True


async def test_one_file(world: FilesWorld) -> None:
    file = world.root / "file"
    file.write_text("x")
    async with world.watch() as client:
        assert (await subscribe(client, file))["paths"] == [str(file)]
        (world.root / "other").write_text("y")
        with file.open("a") as writer:
            writer.write("more")
        assert await told(client, ("write", "file"), world.root) == [("write", "file")]
        file.unlink()
        assert ("remove", "file") in await told(client, ("remove", "file"), world.root)


async def test_below_and_below_what_comes(world: FilesWorld) -> None:
    root = world.root
    (root / "a/b").mkdir(parents=True)
    (root / "out").symlink_to("/")
    async with world.watch() as client:
        await subscribe(client, root, recursive=True)
        (root / "a/b/file").write_text("x")
        await told(client, ("write", "a/b/file"), root)
        (root / "new/deep/er").mkdir(parents=True)
        (root / "new/deep/er/file").write_text("x")
        events = await told(client, ("create", "new/deep/er/file"), root)
        assert ("create", "new") in events and ("create", "new/deep") in events
        os.rename(root / "new", root / "moved")
        assert ("rename", "new") in await told(client, ("create", "moved"), root)
        await told(client, ("create", "moved/deep/er/file"), root)
        (root / "moved/deep/er/file").write_text("again")
        await told(client, ("write", "moved/deep/er/file"), root)


async def test_what_moves_out_is_watched_no_more(world: FilesWorld, tmp_path: Path) -> None:
    root = world.root
    (root / "sub/deep").mkdir(parents=True)
    async with world.watch() as client:
        await subscribe(client, root, recursive=True)
        os.rename(root / "sub", tmp_path / "elsewhere")
        await told(client, ("rename", "sub"), root)
        (tmp_path / "elsewhere/deep/file").write_text("x")
        (root / "end").mkdir()
        assert await told(client, ("create", "end"), root) == [("create", "end")]


async def test_several_subscriptions_on_one_socket(world: FilesWorld) -> None:
    (world.root / "a").mkdir()
    (world.root / "b").mkdir()
    async with world.watch() as client:
        await subscribe(client, world.path("a"))
        await subscribe(client, world.path("b"))
        (world.root / "a/x").mkdir()
        await told(client, ("create", "a/x"), world.root)
        (world.root / "b/x").mkdir()
        await told(client, ("create", "b/x"), world.root)


async def test_what_cannot_be_watched(world: FilesWorld) -> None:
    async with world.watch() as client:
        for path, code in [(world.path("nosuch"), "ENOENT"), ("x" * 5000, "ENAMETOOLONG")]:
            answer = await subscribe(client, path)
            assert (answer["type"], answer["code"]) == ("error", code)
            assert answer["message"]
        for bad in ("nonsense", "[]", '{"type": "subscribe"}', '{"type": "subscribe", "paths": []}',
                    '{"type": "subscribe", "paths": [1]}',
                    '{"type": "subscribe", "paths": ["/"], "recursive": "perhaps"}',
                    json.dumps({"type": "subscribe", "paths": ["/"] * 65})):  # fmt: skip
            await client.send(bad)
            assert (await next_message(client))["type"] == "error", bad
        await client.send('{"type": "of a later version"}')
        assert (await subscribe(client, world.root))["type"] == "subscribed"


async def test_too_many_subscriptions(world: FilesWorld) -> None:
    async with world.watch() as client:
        for _ in range(8):
            assert (await subscribe(client, world.root))["type"] == "subscribed"
        assert (await subscribe(client, world.root))["error"] == "unavailable"
        async with world.watch() as second:
            for _ in range(8):
                assert (await subscribe(second, world.root))["type"] == "subscribed"
            async with world.watch() as third:  # of the whole sprite
                assert (await subscribe(third, world.root))["error"] == "unavailable"


async def test_more_than_is_taken_is_said_to_be_lost(world: FilesWorld) -> None:
    names = [world.root / ("x" * 200 + str(number)) for number in range(30_000)]
    async with world.watch() as client:
        await subscribe(client, world.root)
        client.transport.pause_reading()
        for _ in range(2):
            for name in names:
                name.symlink_to("x")
            for name in names:
                name.unlink()
        client.transport.resume_reading()
        async with asyncio.timeout(DEADLINE):
            while (message := await next_message(client))["type"] == "event":
                pass
        assert "lost" in message["message"]


async def test_a_client_that_goes_ends_its_helper(world: FilesWorld) -> None:
    client = await world.watch()
    await subscribe(client, world.root)
    [pid] = world.files.pids
    client.transport.abort()
    await eventually(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_watch_whose_helper_dies_ends_its_socket(world: FilesWorld) -> None:
    async with world.watch() as client:
        await subscribe(client, world.root)
        os.kill(world.files.pids[0], 9)
        async with asyncio.timeout(DEADLINE):
            assert (await next_message(client))["type"] == "error"
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


async def test_it_is_a_websocket(world: FilesWorld) -> None:
    answer = await world.get("watch")
    assert (answer.status, answer.json["error"]) == (400, "invalid")
