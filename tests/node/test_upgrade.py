"""A sprite is put on the node's present image, with all that is its own, and can be put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ballpoint.core import ids
from ballpoint.image.catalogue import Catalogue, Image
from tests.crash import armed
from tests.node.test_images import cache_with, rebuild
from tests.support.host import traces
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

# Up to the last two the sprite is on its old image.
STEPS = [
    "checkpoint: the record names it",
    "restore: the sprite runs over its new disk, too",
    "restore: the record names it",
    "restore: the disk is replaced",
    "restore: what ran before has ended",
]
REPLACED = STEPS[-2:]


@pytest.fixture
def upgraded(own_node: TestNode, slim_image: Image, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A sprite on an older image than its node's, and the digest of the newer."""
    cache = cache_with(slim_image, tmp_path / "cache")
    own_node.options += ["--cache", str(cache)]
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    script = "echo mine > file; echo changed | sudo tee /etc/motd > /dev/null; sudo rm /etc/fstab; sync"
    assert shell(sprite, script)[0] == 0
    own_node.terminate()
    newer = rebuild(slim_image, cache).name
    own_node.start()
    yield own_node.client().get_sprite(sprite.name), newer


def view(node: TestNode, name: str) -> dict[str, Any]:
    return dict(node.api("GET", f"/v1/sprites/{name}").json())


WHAT_IS_ITS_OWN = "cat file /etc/motd; ls /etc/fstab 2>&1 | grep -c 'No such'"


def test_an_upgrade_and_the_way_back(own_node: TestNode, slim_image: Image, upgraded: tuple[Any, str]) -> None:
    sprite, newer = upgraded
    assert view(own_node, sprite.name)["version"] == slim_image.digest
    assert shell(sprite, "sleep 600 & echo late > late; sleep 0.1")[0] == 0
    assert own_node.api("POST", f"/v1/sprites/{sprite.name}/upgrade").status_code == 204
    shown = view(own_node, sprite.name)
    assert (shown["version"], shown["status"]) == (newer, "running")
    assert shell(sprite, f"{WHAT_IS_ITS_OWN}; cat late; pgrep sleep") == (1, "mine\nchanged\n1\nlate\n")

    # There is nothing to do any more, and nothing is done.
    assert shell(sprite, "sleep 600 > /dev/null & :")[0] == 0
    assert own_node.api("POST", f"/v1/sprites/{sprite.name}/upgrade").status_code == 204
    assert shell(sprite, "pgrep -c sleep") == (0, "1\n")

    autos = own_node.api("GET", f"/v1/sprites/{sprite.name}/checkpoints?includeAuto=true").json()
    (before,) = (each["id"] for each in autos if each["comment"].startswith("before it was upgraded"))
    assert shell(sprite, "echo more > more")[0] == 0
    # The image of a checkpoint stays, though no sprite is on it.
    own_node.terminate()
    own_node.start()
    assert Catalogue(own_node.data.parent / "cache").has(slim_image.digest)
    lines = own_node.api("POST", f"/v1/sprites/{sprite.name}/checkpoints/{before}/restore").text.splitlines()
    assert json.loads(lines[-1])["type"] == "complete"
    assert view(own_node, sprite.name)["version"] == slim_image.digest
    again = own_node.client().get_sprite(sprite.name)
    assert shell(again, f"{WHAT_IS_ITS_OWN}; ls more late") == (
        2,
        "mine\nchanged\n1\nlate\nls: cannot access 'more': No such file or directory\n",
    )


def next_node(node: TestNode, former: int, name: str) -> None:
    """Wait until another process answers for the node."""
    eventually(lambda: node.processes("node") not in ([], [former]), 60)
    eventually(lambda: node.api("GET", f"/v1/sprites/{name}").status_code == 200, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_dies_in_the_middle_leaves_either_image_whole(
    root: None, slim_image: Image, tmp_path: Path
) -> None:
    cache, die_at = cache_with(slim_image, tmp_path / "cache"), tmp_path / "die_at"
    node = TestNode(tmp_path / "data", ["--cache", str(cache)], program=armed.as_command(die_at))
    try:
        node.start()
        node.options += ["--listen", node.url.removeprefix("http://")]
        names = [f"t-{number}" for number in range(len(STEPS))]
        for name in names:
            script = "echo mine > file; echo changed | sudo tee /etc/motd > /dev/null; sudo rm /etc/fstab; sync"
            assert shell(node.client().create_sprite(name), script)[0] == 0
        node.terminate()
        newer = rebuild(slim_image, cache).name
        node.start()
        for name, step in zip(names, STEPS, strict=True):
            (process,) = node.processes("node")
            armed.arm(die_at, step)
            with suppress(httpx2.TransportError):
                assert node.api("POST", f"/v1/sprites/{name}/upgrade").status_code == 503
            die_at.unlink()
            next_node(node, process, name)
            version = view(node, name)["version"]
            assert version == (newer if step in REPLACED else slim_image.digest), step
            sprite = node.client().get_sprite(name)
            assert shell(sprite, WHAT_IS_ITS_OWN) == (0, "mine\nchanged\n1\n")
            assert node.api("POST", f"/v1/sprites/{name}/upgrade").status_code == 204
            assert view(node, name)["version"] == newer
            assert shell(sprite, WHAT_IS_ITS_OWN) == (0, "mine\nchanged\n1\n")
    finally:
        node.down()
    found = traces(node.id, node.data)
    assert found == dict.fromkeys(found, [])
