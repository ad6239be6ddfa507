"""A node removes images that nobody uses, says which it uses itself, and keeps those of its sprites in the store."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from ballpoint.core import ids
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import NotFoundError, UnavailableError
from ballpoint.core.types import Caller
from ballpoint.image.archive import drop, fetch, keep, kept_images
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.uses import Uses
from ballpoint.node.watch.images import Images
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually, eventually_async


def old_image(cache: Path, like: Image, digest: str) -> Path:
    """One that `like` has replaced long ago."""
    directory = cache / "images" / digest
    directory.mkdir()
    (directory / "image.erofs").write_bytes(b"old")
    record = {**json.loads(Catalogue(cache).record(like.digest).read_text()), "built_at": "2001-01-01T00:00:00Z"}
    (directory / "image.json").write_text(json.dumps({**record, "size": 3}))
    os.utime(directory / "image.json", (1e9, 1e9))
    return directory


def cache_with(image: Image, cache: Path) -> Path:
    """A host's cache that has one image."""
    place = cache / "images" / image.digest
    place.mkdir(parents=True)
    os.link(image.path, place / "image.erofs")
    (place / "image.json").write_bytes(Catalogue(image.path.parents[2]).record(image.digest).read_bytes())
    return cache


def rebuild(image: Image, cache: Path) -> Path:
    """The same image as a later build would give it another digest."""
    made = cache / "images" / "made"
    made.mkdir()
    shutil.copyfile(image.path, made / "image.erofs")
    with (made / "image.erofs").open("ab") as file:
        file.write(bytes(4096))
    record = json.loads(Catalogue(cache).record(image.digest).read_text())
    record |= {"built_at": "2100-01-01T00:00:00Z", "size": image.size + 4096}
    (made / "image.json").write_text(json.dumps(record))
    return made.rename(made.with_name(blake3().update_mmap(made / "image.erofs").hexdigest()))


@pytest.mark.node
def test_a_node_removes_what_nobody_uses(own_node: TestNode, slim_image: Image, tmp_path: Path) -> None:
    cache = cache_with(slim_image, tmp_path / "cache")
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


@pytest.mark.node
def test_a_host_without_a_sprites_image_has_it_from_the_store(
    own_node: TestNode, slim_image: Image, tmp_path: Path
) -> None:
    cache, objects = cache_with(slim_image, tmp_path / "cache"), tmp_path / "objects"
    own_node.options += ["--cache", str(cache), "--store", objects.as_uri()]
    own_node.start()
    assert not (objects / "images").exists()  # nobody is on it yet
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo kept > file") == (0, "")
    eventually(lambda: (objects / "images" / slim_image.digest / "index").exists(), 120)
    own_node.down()

    other = rebuild(slim_image, cache)
    shutil.rmtree(cache / "images" / slim_image.digest)
    own_node.start()
    again = own_node.client().get_sprite(sprite.name)
    assert shell(again, "cat file") == (0, "kept\n")
    assert Catalogue(cache).find(slim_image.digest).size == slim_image.size
    assert own_node.client().get_sprite(own_node.client().create_sprite("fresh").name).name == "fresh"
    eventually(lambda: (objects / "images" / other.name / "index").exists(), 120)


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    (tmp_path / "data").mkdir()
    return NodeConfig(data=tmp_path / "data", cache=tmp_path / "cache", store=(tmp_path / "objects").as_uri())


@pytest.fixture
async def registry(config: NodeConfig) -> AsyncIterator[Registry]:
    made = await Registry.open(url_of(config.registry_file))
    yield made
    await made.close()


def small_image(cache: Path, content: bytes) -> Image:
    digest = blake3(content).hexdigest()
    with Catalogue(cache).receiving(digest) as file:
        assert file is not None
        file.write_bytes(content)
        return Catalogue(cache).admit(digest, recipe="slim", recipe_digest="r", built_at="2026-01-01T00:00:00Z")


async def sprite_on(registry: Registry, image: str) -> None:
    name = f"s-{ids.new_instance_id()}"
    sprite = registry.new_sprite(
        Caller(org_id=(await registry.create_token("acme", ""))[0].org_id, org="acme", token_id="t"), name,
        sprite_id=f"sprite-{name}", volume_id=f"v-{name}", image_digest=image, environment={}, labels=[], config={},
        url_settings={},
    )  # fmt: skip
    await registry.create_sprite(sprite, "a test")


async def test_images_of_sprites_are_put_and_those_that_come_later_too(config: NodeConfig, registry: Registry) -> None:
    store = DirectoryStore(Path(config.store_url.removeprefix("file://")))
    first, second, unused = (small_image(config.cache, content) for content in (b"first", b"second", b"unused"))
    await sprite_on(registry, first.digest)
    images = Images(config, registry, store)
    keeping = asyncio.create_task(images.keep())

    async def kept() -> set[str]:
        return set(await kept_images(store))

    async def first_alone() -> bool:
        return await kept() == {first.digest}

    async def both() -> bool:
        return await kept() == {first.digest, second.digest}

    await eventually_async(first_alone)
    await images.ensure(second.digest)
    await eventually_async(both)
    keeping.cancel()
    assert unused.digest not in await kept()


async def test_an_image_that_went_as_garbage_comes_back_with_the_next_disk_on_it(
    config: NodeConfig, registry: Registry
) -> None:
    store = DirectoryStore(Path(config.store_url.removeprefix("file://")))
    image = small_image(config.cache, b"image")
    await sprite_on(registry, image.digest)
    images = Images(config, registry, store)
    keeping = asyncio.create_task(images.keep())

    async def kept() -> bool:
        return set(await kept_images(store)) == {image.digest}

    await eventually_async(kept)
    assert await drop(store, [image.digest]) > 0
    assert not await kept()
    images.needed(image.digest)
    await eventually_async(kept)
    keeping.cancel()


async def test_an_image_waits_for_a_store_that_is_away(
    config: NodeConfig, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballpoint.node.watch.images._RETRY_SECONDS", 0.05)
    directory = DirectoryStore(Path(config.store_url.removeprefix("file://")))
    store = FaultyStore(directory, Faults(), seed=1)
    store.out = True
    image = small_image(config.cache, b"image")
    await sprite_on(registry, image.digest)
    keeping = asyncio.create_task(Images(config, registry, store).keep())

    async def asked() -> bool:
        return sum(store.calls.values()) > 1

    async def there() -> bool:
        return await fetch(directory, Catalogue(config.data / "other"), image.digest) is not None

    await eventually_async(asked)
    assert await kept_images(directory) == {}
    with pytest.raises(NotFoundError):
        await there()
    store.out = False

    async def kept() -> bool:
        return await kept_images(directory) != {} and await there()

    await eventually_async(kept)
    keeping.cancel()


async def test_a_store_in_the_nodes_own_data_gets_no_image(config: NodeConfig, registry: Registry) -> None:
    store = DirectoryStore(config.data / "store")
    image = small_image(config.cache, b"image")
    await sprite_on(registry, image.digest)
    await Images(NodeConfig(data=config.data, cache=config.cache), registry, store).keep()
    assert await kept_images(store) == {}


async def test_a_start_on_an_image_that_nobody_has_says_so(config: NodeConfig, registry: Registry) -> None:
    store = DirectoryStore(config.data / "objects")
    images = Images(config, registry, store)
    with pytest.raises(NotFoundError, match="neither this host nor the store"):
        await images.ensure("a" * 64)
    bad = FaultyStore(store, Faults(), seed=1)
    bad.out = True
    with pytest.raises(UnavailableError):
        await Images(config, registry, bad).ensure("a" * 64)


async def test_a_start_waits_for_whoever_fetches_the_image_already(config: NodeConfig, registry: Registry) -> None:
    store = DirectoryStore(config.data / "objects")
    image = small_image(config.data / "elsewhere", b"image")
    await keep(store, image)
    images = Images(config, registry, store)
    with Catalogue(config.cache).receiving(image.digest) as file:
        assert file is not None
        waiting = asyncio.create_task(images.ensure(image.digest))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
    await waiting
    assert Catalogue(config.cache).find(image.digest).path.read_bytes() == b"image"
