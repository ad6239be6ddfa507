"""What is said of a sprite, and what the store makes of it: destroys, settings and restores, also half-way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ballpoint.store.url import open_store
from ballpoint.volume.sync.recover import Found, inventory
from tests.node.test_lost import directory
from tests.node.test_store_away import server_of
from tests.support.checkpoints import checkpoint, content, disk, new_sprite, post, restore, write
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually, eventually_async

pytestmark = pytest.mark.node


async def in_store(node: TestNode, sprite: Any) -> Found:
    """What the store has of a sprite."""
    url = node.options[node.options.index("--store") + 1] if "--store" in node.options else ""
    store = open_store(url or (node.data / "store").as_uri())
    try:
        (found,) = [
            each async for each in inventory(store) if isinstance(each, Found) and each.settings["name"] == sprite.name
        ]
        return found
    finally:
        await store.close()


@pytest.fixture
def silent(own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A started node whose store can be made to say nothing: the server's pid."""
    with server_of(own_node, tmp_path / "server", monkeypatch) as server:
        try:
            own_node.start()
            yield server
        finally:
            os.kill(server, signal.SIGCONT)
            own_node.down()


async def test_what_is_destroyed_while_it_is_saved_stays_in_the_trash(own_node: TestNode) -> None:
    node = own_node.start()
    sprite = new_sprite(node)
    busy = "(while :; do head -c 8M /dev/urandom > busy; sync; done) >/dev/null 2>&1 & echo $!"
    assert shell(sprite, busy)[0] == 0
    assert post(node, sprite, "sync").is_success
    said: list[int] = []
    syncing = [threading.Thread(target=lambda: said.append(post(node, sprite, "sync").status_code)) for _ in range(3)]
    for each in syncing:
        each.start()
    assert node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 204
    for each in syncing:
        each.join()
    assert set(said) <= {200, 404, 409}
    assert (await in_store(node, sprite)).trashed is not None


def test_of_many_who_destroy_a_sprite_nobody_brings_it_back(own_node: TestNode) -> None:
    node = own_node.start()
    sprite = new_sprite(node)
    write(sprite, "kept")
    assert post(node, sprite, "sync").is_success
    here = directory(node, sprite)
    said: list[int] = []

    def destroy() -> None:
        said.append(node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code)

    destroying = [threading.Thread(target=destroy) for _ in range(4)]
    for each in destroying:
        each.start()
    for each in destroying:
        each.join()
    assert 204 in said and set(said) <= {204, 404, 409}, said
    assert node.api("GET", f"/v1/sprites/{sprite.name}").status_code == 404
    assert not here.exists()


async def test_a_destroy_that_was_refused_is_taken_back_of_one_that_sleeps(own_node: TestNode, silent: int) -> None:
    node = own_node
    sprite = new_sprite(node)
    write(sprite, "kept")
    assert post(node, sprite, "sleep").is_success
    assert post(node, sprite, "sync").is_success
    eventually(lambda: disk(node, sprite)["lag_seconds"] is None, 60)
    os.kill(silent, signal.SIGSTOP)
    answer = node.api("DELETE", f"/v1/sprites/{sprite.name}")
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    os.kill(silent, signal.SIGCONT)  # what was asked for may be carried out now

    async def lives() -> bool:
        return disk(node, sprite)["lag_seconds"] is None and (await in_store(node, sprite)).trashed is None

    await eventually_async(lives, 120)
    assert content(sprite) == "kept"
    assert node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 204


async def test_settings_come_into_the_store_by_themselves_also_of_one_that_sleeps(own_node: TestNode) -> None:
    node = own_node.start()
    sleeps, runs = new_sprite(node, labels=["old"]), new_sprite(node, labels=["old"])
    assert post(node, sleeps, "sleep").is_success
    for sprite in (sleeps, runs):
        assert post(node, sprite, "sync").is_success
        settings = {"labels": ["new"], "url_settings": {"auth": "public"}}
        assert node.api("PUT", f"/v1/sprites/{sprite.name}", json=settings).is_success

    async def known() -> bool:
        found = [(await in_store(node, sprite)).settings for sprite in (sleeps, runs)]
        return all((each["labels"], each["url_settings"]["auth"]) == (["new"], "public") for each in found)

    await eventually_async(known, 60)


def test_a_restore_says_where_it_is_not_durable_yet(own_node: TestNode, silent: int) -> None:
    node = own_node
    sprite = new_sprite(node)
    write(sprite, "first")
    assert checkpoint(node, sprite, params={"wait": "durable"}) == "v0"
    write(sprite, "second")

    def durable() -> bool:
        told = [each["data"] for each in restore(node, sprite, "v0")]
        assert content(sprite) == "first"
        return not any("not yet durable" in each for each in told)

    eventually(durable)
    os.kill(silent, signal.SIGSTOP)
    write(sprite, "third")
    told = [each["data"] for each in restore(node, sprite, "v0")]
    assert any("not yet durable" in each for each in told), told
    assert content(sprite) == "first"


def test_a_sync_of_a_sprite_that_is_being_stopped_is_of_all_that_it_wrote(own_node: TestNode) -> None:
    node = own_node.start()
    sprite = new_sprite(node)
    assert post(node, sprite, "sync").is_success
    for number in range(3):
        assert shell(sprite, f"head -c 30M /dev/urandom > data && echo {number} > file")[0] == 0
        sleeping = threading.Thread(target=post, args=(node, sprite, "sleep"))
        sleeping.start()
        answer = post(node, sprite, "sync")
        sleeping.join()
        assert answer.is_success, answer.text
        (directory(node, sprite) / "disk.img").unlink()
        assert content(sprite) == str(number)
