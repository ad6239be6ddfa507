"""The official Python client against the API, with the edge's part played by a few lines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from fastapi import FastAPI
from sprites import SpriteConfig, SpritesClient, URLSettings
from sprites.exceptions import APIError, NotFoundError, SpriteError

from ballpoint.core.errors import UnavailableError
from ballpoint.node import views

from .double import START, NodeDouble, behind_edge


@pytest.fixture
async def sdk(app: FastAPI, node: NodeDouble) -> AsyncIterator[SpritesClient]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(behind_edge(app), http="httptools", lifespan="off", log_config=None))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]
        with SpritesClient(token="acme/o1/t1/value", base_url=f"http://127.0.0.1:{port}") as client:
            yield client
        server.should_exit = True
    listener.close()


async def test_the_life_of_a_sprite(sdk: SpritesClient, node: NodeDouble) -> None:
    made = await asyncio.to_thread(
        sdk.create_sprite, "web", SpriteConfig(ram_mb=512, cpus=1), URLSettings(auth="public"), ["a"], True
    )
    assert made.name == "web"
    assert node.requests[0].config == views.SpriteConfig(ram_mb=512, cpus=1)
    assert node.requests[0].wait_for_capacity
    found = await asyncio.to_thread(sdk.get_sprite, "web")
    assert found.organization_name == "acme"
    assert (found.status, found.created_at, found.last_running_at) == ("running", START, START)
    changed = await asyncio.to_thread(
        sdk.update_sprite, "web", url_settings=URLSettings(private_access="admins"), labels=[]
    )
    assert changed.labels == []
    assert node.sprites["o1", "web"].url_settings == views.UrlSettings(auth="public", private_access="admins")
    await asyncio.to_thread(sdk.destroy_sprite, "web")
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(sdk.get_sprite, "web")


async def test_all_pages_of_a_list(sdk: SpritesClient, node: NodeDouble) -> None:
    names = [f"w{number:03}" for number in range(120)]
    for name in names:
        node.put(name)
    sprites = await asyncio.to_thread(sdk.list_all_sprites, "w")
    assert [sprite.name for sprite in sprites] == names
    page = await asyncio.to_thread(sdk.list_sprites)
    assert (page.running, page.warm, page.cold, page.has_more) == (1, 2, 3, True)


async def test_a_taken_name(sdk: SpritesClient, node: NodeDouble) -> None:
    node.put("web")
    with pytest.raises(SpriteError, match="sprite_exists"):
        await asyncio.to_thread(sdk.create_sprite, "web")


async def test_checkpoints(sdk: SpritesClient, node: NodeDouble) -> None:
    node.put("web")
    sprite = sdk.sprite("web")
    steps = list(await asyncio.to_thread(sprite.create_checkpoint, "before the upgrade"))
    assert [step.type for step in steps] == ["info", "complete"]
    assert "v0" in (steps[-1].data or "")
    assert [step.type for step in await asyncio.to_thread(sprite.create_checkpoint)] == ["info", "complete"]
    found = await asyncio.to_thread(sprite.list_checkpoints)
    assert [(each.id, each.create_time, each.comment, each.history) for each in found] == [
        ("v0", START, "before the upgrade", []),
        ("v1", START, "", ["v0"]),
    ]
    assert [each.id for each in await asyncio.to_thread(sprite.list_checkpoints, "v1")] == ["v1"]
    assert (await asyncio.to_thread(sprite.get_checkpoint, "v0")) == found[0]
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(sprite.get_checkpoint, "v7")
    steps = list(await asyncio.to_thread(sprite.restore_checkpoint, "v0"))
    assert [step.type for step in steps] == ["info", "complete"]
    node.late_failure = UnavailableError("the store is away", hint="ask again")
    (_, last) = await asyncio.to_thread(sprite.restore_checkpoint, "v0")
    assert (last.type, last.error, last.data) == ("error", "the store is away", None)
    with pytest.raises(APIError) as refused:
        await asyncio.to_thread(sprite.restore_checkpoint, "v7")
    assert refused.value.status_code == 404
