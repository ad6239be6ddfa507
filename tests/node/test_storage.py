"""A node's store: whose it is, what is refused, and what a start does without it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import ConflictError, CorruptError, InvalidError, UnavailableError
from ballpoint.host.files import remove_tree
from ballpoint.node.durable.storage import Memory, Storage, read_memory, write_memory
from ballpoint.store.deployment import FORMAT, KEY, Deployment, claim, new_deployment, read_deployment
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.store import Store, list_all


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    (tmp_path / "data").mkdir()
    return NodeConfig(data=tmp_path / "data", store=(tmp_path / "objects").as_uri())


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / "objects"


async def use(config: NodeConfig) -> Deployment:
    """One life of a node. Returns what it remembers."""
    storage = await Storage.open(config)
    await storage.close()
    memory = read_memory(config.data)
    assert memory is not None and memory.settled
    return memory.deployment


def away(storage: Storage) -> bool:
    assert (storage.away_since is None) == (storage.trouble is None)
    return storage.away_since is not None


def neighbour(config: NodeConfig) -> NodeConfig:
    """Another node, of the same store."""
    data = config.data.with_name("neighbour")
    data.mkdir(exist_ok=True)
    return msgspec.structs.replace(config, data=data)


async def test_the_first_use_makes_the_store_the_nodes(config: NodeConfig, objects: Path) -> None:
    first = await use(config)
    store = DirectoryStore(objects)
    assert await read_deployment(store) == first
    assert [item.key for item in await list_all(store, "")] == [KEY]
    assert await use(config) == first


async def test_a_node_that_is_told_nothing_has_a_store_in_its_data(config: NodeConfig) -> None:
    first = await use(msgspec.structs.replace(config, store=None))
    assert await read_deployment(DirectoryStore(config.data / "store")) == first


async def test_a_store_in_use_is_refused_to_an_empty_directory(config: NodeConfig) -> None:
    first = await use(config)
    with pytest.raises(ConflictError) as caught:
        await use(neighbour(config))
    assert caught.value.hint and "ballpoint recover" in caught.value.hint
    assert await use(config) == first


async def test_of_two_that_use_a_store_first_one_has_it(config: NodeConfig) -> None:
    outcomes = await asyncio.gather(use(config), use(neighbour(config)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Deployment, ConflictError}


class Crash(BaseException):
    """The node's end, which nothing catches."""


@pytest.mark.parametrize("told", [False, True], ids=["before the store was told", "after it was told"])
async def test_a_crash_at_the_first_use_makes_no_stranger_of_the_owner(
    config: NodeConfig, objects: Path, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(store: Store, deployment: Deployment) -> None:
        if told:
            await claim(store, deployment)
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr("ballpoint.node.durable.storage.claim", die)
        await Storage.open(config)
    before = await read_deployment(DirectoryStore(objects))
    assert (before is not None) == told
    assert before in (None, await use(config))


async def test_another_deployments_store_is_refused(config: NodeConfig, tmp_path: Path) -> None:
    await use(config)
    other = msgspec.structs.replace(neighbour(config), store=(tmp_path / "other").as_uri())
    await use(other)
    wrong = msgspec.structs.replace(config, store=other.store)
    with pytest.raises(ConflictError, match="another deployment's"):
        await Storage.open(wrong)
    await use(config)


async def test_a_lost_bucket_is_not_taken_for_an_empty_store(config: NodeConfig, objects: Path) -> None:
    await use(config)
    remove_tree(objects)
    with pytest.raises(ConflictError, match="is empty"):
        await Storage.open(config)
    assert not (objects / KEY).exists()


async def test_a_store_may_move_with_its_objects(config: NodeConfig, objects: Path) -> None:
    first = await use(config)
    moved = msgspec.structs.replace(config, store=objects.with_name("moved").as_uri())
    with pytest.raises(ConflictError, match="is empty"):
        await Storage.open(moved)
    remove_tree(objects.with_name("moved"))
    objects.rename(objects.with_name("moved"))
    assert await use(moved) == first


async def test_disks_of_nobody_are_left_alone(config: NodeConfig, objects: Path) -> None:
    await DirectoryStore(objects).create("volumes/v/commits/1", b"somebody's")
    with pytest.raises(ConflictError, match="holds disks"):
        await Storage.open(config)
    assert not (objects / KEY).exists()


async def test_what_a_later_version_or_damage_left_is_refused(config: NodeConfig, objects: Path) -> None:
    await use(config)
    good = (objects / KEY).read_bytes()
    later = msgspec.structs.replace(msgspec.json.decode(good, type=Deployment), format=FORMAT + 1)
    (objects / KEY).write_bytes(msgspec.json.encode(later))
    with pytest.raises(ConflictError, match="later version|this version knows"):
        await Storage.open(config)
    for damaged in (good[: len(good) // 2], good.replace(b"-", b"\xff"), b"[]"):
        (objects / KEY).write_bytes(damaged)
        with pytest.raises(CorruptError, match=KEY):
            await Storage.open(config)
    (objects / KEY).write_bytes(good)
    await use(config)


async def test_a_memory_of_a_later_version_or_a_damaged_one_is_refused(config: NodeConfig) -> None:
    await use(config)
    file = config.data / "store.json"
    good = file.read_bytes()
    file.write_bytes(good.replace(b'"format":1}', b'"format":2}'))
    assert file.read_bytes() != good
    with pytest.raises(ConflictError, match="later version"):
        await Storage.open(config)
    for damaged in (good[: len(good) // 2], b"[]", b'{"format":"x"}', b'{"format":1}'):
        file.write_bytes(damaged)
        with pytest.raises(CorruptError, match=file.name):
            await Storage.open(config)


async def test_a_start_needs_no_store_that_was_used_before(config: NodeConfig, objects: Path) -> None:
    await use(config)
    objects.rename(objects.with_name("away"))
    objects.write_text("in the way")
    storage = await Storage.open(config)
    assert away(storage)
    with pytest.raises(UnavailableError):
        await storage.list("")
    objects.unlink()
    objects.with_name("away").rename(objects)
    assert [item.key for item in await storage.list("")] == [KEY]
    assert not away(storage)
    objects.rename(objects.with_name("away"))
    objects.write_text("in the way")
    with pytest.raises(UnavailableError):
        await storage.put("images/x", b"")
    assert away(storage)
    await storage.close()


async def test_a_store_that_says_late_that_it_is_anothers_is_not_touched(config: NodeConfig, objects: Path) -> None:
    await use(config)
    objects.rename(objects.with_name("away"))
    objects.write_text("in the way")
    storage = await Storage.open(config)
    objects.unlink()
    theirs = DirectoryStore(objects)
    await claim(theirs, new_deployment())
    before = await list_all(theirs, "")
    for call in (
        storage.put("images/x", b""),
        storage.create("images/x", b""),
        storage.delete([KEY]),
        storage.get(KEY),
        storage.list(""),
    ):
        with pytest.raises(ConflictError, match="another deployment's"):
            await call
    assert await list_all(theirs, "") == before
    await storage.close()


async def test_a_start_waits_only_a_moment_for_a_store_that_says_nothing(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"s3://bucket?endpoint=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        write_memory(config.data, Memory(new_deployment(), url, settled=True))
        storage = await Storage.open(msgspec.structs.replace(config, store=url))
        assert away(storage)
        await storage.close()


async def test_a_store_that_was_never_used_must_answer(config: NodeConfig, objects: Path) -> None:
    objects.write_text("in the way")
    with pytest.raises(UnavailableError):
        await Storage.open(config)


async def test_a_wrong_url_is_refused_before_anything_is_written(config: NodeConfig) -> None:
    with pytest.raises(InvalidError):
        await Storage.open(msgspec.structs.replace(config, store="ftp://example.org/x"))
    assert list(config.data.iterdir()) == []


@pytest.fixture
def small(root: None, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for next to nothing."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.host
@pytest.mark.parametrize(("options", "said"), [("ro", "Read-only file system"), ("rw", "No space left on device")])
async def test_a_store_that_cannot_be_written_to_is_refused(
    config: NodeConfig, small: Path, options: str, said: str
) -> None:
    if options == "rw":
        (small / "filler").write_bytes(bytes(60 << 10))
    subprocess.run(["mount", "-o", f"remount,{options}", small], check=True)
    with pytest.raises(UnavailableError, match=said):
        await Storage.open(msgspec.structs.replace(config, store=(small / "objects").as_uri()))
