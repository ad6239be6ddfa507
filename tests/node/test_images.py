"""A node removes images that nobody uses, and says which it uses itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.uses import Uses
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


def old_image(cache: Path, like: Image, digest: str) -> Path:
    """One that `like` has replaced long ago."""
    directory = cache / "images" / digest
    directory.mkdir()
    (directory / "image.erofs").write_bytes(b"old")
    record = {**json.loads(Catalogue(cache).record(like.digest).read_text()), "built_at": "2001-01-01T00:00:00Z"}
    (directory / "image.json").write_text(json.dumps({**record, "size": 3}))
    os.utime(directory / "image.json", (1e9, 1e9))
    return directory


def test_a_node_removes_what_nobody_uses(own_node: TestNode, slim_image: Image, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    place = cache / "images" / slim_image.digest
    place.mkdir(parents=True)
    os.link(slim_image.path, place / "image.erofs")
    (place / "image.json").write_bytes(Catalogue(slim_image.path.parents[2]).record(slim_image.digest).read_bytes())
    unused, of_another = (old_image(cache, slim_image, digit * 64) for digit in "ab")
    Uses(cache).record("other", tmp_path / "other", [of_another.name])
    os.utime(of_another / "image.json", (1e9, 1e9))

    own_node.options += ["--cache", str(cache)]
    own_node.start()
    eventually(lambda: not unused.exists())
    assert of_another.exists()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo $((6 * 7))") == (0, "42\n")
    own_node.terminate()
    kept = Uses(cache).read()
    assert (kept[own_node.id].data, kept[own_node.id].digests) == (own_node.data, (slim_image.digest,))

    own_node.start()
    own_node.client().delete_sprite(sprite.name)
    own_node.terminate()
    assert set(Uses(cache).read()) == {"other"}
