"""Sprites: making, finding, changing and destroying them; and the client itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import sprites
from sprites import ListOptions, SpriteConfig, SpriteInfo, URLSettings
from sprites.exceptions import NotFoundError

from ballpoint.core import ids
from tests.sdk.table import Kit, destroy, new_name, row


@row("sprites.__version__")
async def version_of_the_package(kit: Kit) -> None:
    assert sprites.__version__ == version("sprites-py")


@row("Client", "Client.create_sprite", "Sprite", "types.SpriteConfig", "types.URLSettings")
async def create(kit: Kit) -> None:
    client = kit.new_client()
    made = await kit.made(
        config=SpriteConfig(ram_mb=512, cpus=1),
        url_settings=URLSettings(auth="public", private_access="admins"),
        labels=["a", "b"],
        wait_for_capacity=True,
        runtime="dev",
    )
    assert (made.status, made.organization_name, made.labels) == ("running", kit.node.org, ["a", "b"])
    # The SDK sends a configuration and reads none.
    config = kit.node.api("GET", f"/v1/sprites/{made.name}").json()["config"]
    assert (config["ram_mb"], config["cpus"], made.config) == (512, 1, None)
    assert (made.url_settings.auth, made.url_settings.private_access) == ("public", "admins")
    assert made.url.startswith("http") and made.name in made.url
    assert made.id and made.version and made.created_at <= made.updated_at
    await kit.do(client.close if kit.kind == "sync" else client.aclose)


@row("Client.get_sprite", "Client.sprite", "Sprite")
async def get(kit: Kit) -> None:
    found = await kit.do(kit.client.get_sprite, kit.name)
    assert (found.name, found.status) == (kit.name, "running")
    handle = kit.client.sprite(kit.name)  # asks nothing
    assert (handle.name, handle.id) == (kit.name, None)
    assert kit.client.sprite("no-such").name == "no-such"


@row("Client.list_sprites", "types.ListOptions", "types.SpriteList", "types.SpriteInfo")
async def listing(kit: Kit) -> None:
    prefix = f"t-{ids.new_instance_id()[:4]}-"
    names = sorted(f"{prefix}{number}" for number in range(2))
    for name in names:
        await kit.do(kit.client.create_sprite, name)
        kit.stack.callback(destroy, kit.node, name)
    first = await kit.do(kit.client.list_sprites, ListOptions(prefix=prefix, max_results=1, bulk_load=True))
    assert [(type(each), each.name) for each in first.sprites] == [(SpriteInfo, names[0])]
    assert first.has_more and first.running >= len(names)
    assert (first.sprites[0].organization, first.sprites[0].status) == (kit.node.org, "running")
    rest = ListOptions(prefix=prefix, max_results=100, continuation_token=first.next_continuation_token)
    last = await kit.do(kit.client.list_sprites, rest)
    assert [each.name for each in last.sprites] == names[1:]
    assert not last.has_more and last.next_continuation_token is None
    assert kit.name in [each.name for each in (await kit.do(kit.client.list_sprites)).sprites]


@row("Client.list_all_sprites")
async def listing_all(kit: Kit) -> None:
    assert [each.name for each in await kit.do(kit.client.list_all_sprites, kit.name)] == [kit.name]
    assert kit.name in [each.name for each in await kit.do(kit.client.list_all_sprites)]


@row("Client.update_sprite", "Sprite.update", "Client.update_url_settings", "Sprite.update_url_settings")
async def update(kit: Kit) -> None:
    made = await kit.made(labels=["a"])
    changed = await kit.do(kit.client.update_sprite, made.name, labels=["b", "c"])
    assert (changed.labels, changed.url_settings.auth) == (["b", "c"], "sprite")
    changed = await kit.do(made.update, url_settings=URLSettings(auth="public"))
    assert (changed.labels, changed.url_settings.auth) == (["b", "c"], "public")
    assert (await kit.do(made.update, labels=[])).labels == []
    await kit.do(kit.client.update_url_settings, made.name, URLSettings(auth="sprite"))
    await kit.do(made.update_url_settings, URLSettings(private_access="admins"))
    found = (await kit.do(kit.client.get_sprite, made.name)).url_settings
    assert (found.auth, found.private_access) == ("sprite", "admins")


@row("Client.upgrade_sprite", "Sprite.upgrade")
async def upgrade(kit: Kit) -> None:
    made = await kit.made()
    await kit.do(kit.client.upgrade_sprite, made.name)
    await kit.do(made.upgrade)
    assert (await kit.do(made.run, "true")).returncode == 0


@row("Client.destroy_sprite", "Client.delete_sprite", "Sprite.destroy", "Sprite.delete")
async def destroying(kit: Kit) -> None:
    def ways(sprite: Any) -> list[tuple[Callable[..., Any], tuple[str, ...]]]:
        by_name = [(verb, (sprite.name,)) for verb in (kit.client.destroy_sprite, kit.client.delete_sprite)]
        return [*by_name, (sprite.destroy, ()), (sprite.delete, ())]

    for number in range(4):
        made = await kit.made()
        verb, arguments = ways(made)[number]
        await kit.do(verb, *arguments)
        with pytest.raises(NotFoundError):
            await kit.do(kit.client.get_sprite, made.name)
        with pytest.raises(NotFoundError):
            await kit.do(verb, *arguments)


@row("Client.http_client")
async def http_client(kit: Kit) -> None:
    url = f"{kit.node.url}/v1/sprites/{kit.name}"
    assert (await kit.do(kit.client.http_client.get, url)).json()["name"] == kit.name
    answer = await kit.do(kit.client.http_client.put, url, json={"labels": ["mine"]})
    assert (answer.status_code, answer.json()["labels"]) == (200, ["mine"])
    assert (await kit.do(kit.client.http_client.post, f"{url}/wake")).status_code == 200
    assert (await kit.do(kit.client.http_client.delete, f"{url}/policy/privileges")).status_code == 204


@row("client.SpritesClient.close", kinds=("sync",))
async def close(kit: Kit) -> None:
    with kit.new_client() as client:
        assert client.get_sprite(kit.name).name == kit.name
    with pytest.raises(RuntimeError, match="closed"):
        client.get_sprite(kit.name)


@row("async_client.AsyncSpritesClient.aclose", "control.close_control_pools", kinds=("async",), commands=True)
async def aclose(kit: Kit) -> None:
    async with kit.new_client() as client:
        sprite = client.sprite(kit.name)
        await sprite.run("true")
        assert sprite.has_control_connection() == kit.control
    assert not sprite.has_control_connection()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get_sprite(new_name())
