"""A store that is full, read-only or silent, or that another node writes to: what runs goes on, or is told."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.log.log import Writer
from ballpoint.volume.sync.recover import Found, inventory
from tests.store import servers
from tests.support.checkpoints import (
    checkpoint,
    content,
    disk,
    events,
    fork,
    kinds,
    listed,
    new_sprite,
    pool,
    post,
    restore,
    status,
    write,
)
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

# Whether a store has taken an object is asked for a minute before a save has failed.
_SAVED_SECONDS = 120
MIB = 1 << 20


@pytest.fixture
def objects(root: None, tmp_path: Path, kept_image: Path) -> Iterator[Path]:
    """A file system for a store of its own, which has the image already: only disks are put into it."""
    place = tmp_path / "objects"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    try:
        (place / "images").symlink_to(kept_image)
        yield place
    finally:
        run("umount", "--lazy", str(place))


@pytest.fixture
def away_node(objects: Path, own_node: TestNode) -> TestNode:
    own_node.options += ["--store", objects.as_uri()]
    return own_node.start()


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=60)


@contextmanager
def read_only(objects: Path) -> Iterator[None]:
    # Busy, while a file that is being written there is open.
    eventually(lambda: subprocess.run(["mount", "-o", "remount,ro", str(objects)], timeout=60).returncode == 0)
    try:
        yield
    finally:
        run("mount", "-o", "remount,rw", str(objects))


@contextmanager
def full(objects: Path) -> Iterator[None]:
    filler = objects / "filler"
    with filler.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while file.write(bytes(MIB)):
                pass
        with pytest.raises(OSError, match="No space left"):
            while file.write(b"0"):
                pass
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("trouble", [read_only, full])
def test_what_runs_goes_on_and_is_saved_when_the_store_is_back(
    away_node: TestNode, objects: Path, trouble: Callable[[Path], Any]
) -> None:
    node = away_node
    sprite, other = new_sprite(node), new_sprite(node)
    write(sprite, "before")
    assert checkpoint(node, sprite, params={"wait": "durable"}) == "v0"
    with trouble(objects):
        write(sprite, "meanwhile")
        assert checkpoint(node, sprite) == "v1"
        eventually(lambda: "not_saved" in kinds(node, sprite), 60)
        assert [each["durable"] for each in listed(node, sprite)] == [True, False]
        shown = node.api("GET", f"/v1/sprites/{sprite.name}").json()
        assert (shown["health"], shown["status"]) == ("degraded", "running")
        assert "not saved" in shown["health_reason"]
        lag = disk(node, sprite)["lag_seconds"]
        eventually(lambda: disk(node, sprite)["lag_seconds"] > lag)
        answer = post(node, sprite, "sync", timeout=_SAVED_SECONDS)
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
        told = post(node, sprite, "checkpoint", params={"wait": "durable"}, timeout=_SAVED_SECONDS).text.splitlines()
        assert '"error"' in told[-1] and len(listed(node, sprite)) == 3
        # Nobody may be told that a sprite is destroyed that a recovery would bring back.
        known = node.api("GET", f"/v1/sprites/{sprite.name}").json()
        assert node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 503
        assert node.api("GET", f"/v1/sprites/{sprite.name}").json()["id"] == known["id"]
        assert (content(sprite), status(node, sprite)) == ("meanwhile", "running")
        new, copy = new_sprite(node), fork(node, sprite, "v1")
        assert content(copy) == "meanwhile"
        restore(node, sprite, "v0")
        assert content(sprite) == "before"
        assert post(node, other, "restart").status_code == 200
        assert kinds(node, sprite).count("not_saved") == 1
    for each in (sprite, other, new, copy):
        eventually(lambda each=each: disk(node, each)["lag_seconds"] is None, _SAVED_SECONDS)  # type: ignore[misc]
        assert all(kept["durable"] for kept in listed(node, each))
        assert node.api("GET", f"/v1/sprites/{each.name}").json()["health"] == "ok"
    assert kinds(node, sprite).count("saved") == kinds(node, sprite).count("not_saved") == 1
    assert content(copy) == "meanwhile"
    for each in (sprite, other, new, copy):
        assert node.api("DELETE", f"/v1/sprites/{each.name}").status_code == 204


def test_a_node_that_starts_while_its_store_is_full_saves_later(away_node: TestNode, objects: Path) -> None:
    node = away_node
    sprite = new_sprite(node)
    write(sprite, "before")
    assert post(node, sprite, "sync").status_code == 200
    node.terminate()
    with full(objects):
        node.start()
        again = node.client().sprite(sprite.name)
        assert content(again) == "before"
        write(again, "meanwhile")
        assert checkpoint(node, again) == "v0"
        assert post(node, again, "sync", timeout=_SAVED_SECONDS).status_code == 503
    eventually(lambda: all(each["durable"] for each in listed(node, again)), _SAVED_SECONDS)
    assert post(node, again, "sync").status_code == 200


@contextmanager
def server_of(node: TestNode, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Give a node that is not started yet a store of a server of its own, whose pid is given: it can be stopped."""
    place.mkdir()
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with servers.moto(place) as endpoint:
        node.options += ["--store", servers.store_url(endpoint, "node")]
        yield process_at(endpoint)


def test_a_silent_store_holds_nobody_up(own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of(own_node, tmp_path / "server", monkeypatch) as server:
        own_node.start()
        sprite = new_sprite(own_node)
        write(sprite, "before")
        assert post(own_node, sprite, "sync").status_code == 200
        os.kill(server, signal.SIGSTOP)
        try:
            write(sprite, "meanwhile")
            assert checkpoint(own_node, sprite) == "v0"
            assert [each["durable"] for each in listed(own_node, sprite)] == [False]
            answer = own_node.api("DELETE", f"/v1/sprites/{sprite.name}")
            assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
            assert content(sprite) == "meanwhile"
            restore(own_node, sprite, "v0")
            assert content(sprite) == "meanwhile"
            write(new_sprite(own_node), "new")
        finally:
            os.kill(server, signal.SIGCONT)
        eventually(lambda: all(each["durable"] for each in listed(own_node, sprite)), _SAVED_SECONDS)
        own_node.down()


def process_at(endpoint: str) -> int:
    """The process that listens at a local endpoint."""
    port = endpoint.rsplit(":", 1)[1]
    told = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(told.split("pid=")[1].split(",")[0])


async def test_a_node_that_lost_a_volume_says_so_and_goes_on_from_the_store(own_node: TestNode) -> None:
    own_node.start()
    sprite = new_sprite(own_node)
    write(sprite, "stored")
    assert post(own_node, sprite, "sync").status_code == 200
    await take_over(own_node.data / "store", sprite.name)
    write(sprite, "unsaved")
    for _ in range(2):
        post(own_node, sprite, "sync")
    eventually(lambda: "fenced" in kinds(own_node, sprite), 60)
    eventually(lambda: "kept_aside" in kinds(own_node, sprite), 60)
    where = next(event["cause"] for event in events(own_node, sprite) if event["kind"] == "kept_aside")
    (aside,) = (pool(own_node) / "aside").iterdir()
    assert aside.name in where
    assert (aside / "disk.img").stat().st_size > 0
    assert content(sprite) == "stored"
    assert kinds(own_node, sprite)[-1] == "running"
    assert kinds(own_node, sprite).count("fenced") == kinds(own_node, sprite).count("kept_aside") == 1
    write(sprite, "after")
    assert post(own_node, sprite, "sync").status_code == 200
    assert own_node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 204


async def test_a_node_whose_volume_was_written_elsewhere_while_it_slept_finds_out_as_it_wakes(
    own_node: TestNode,
) -> None:
    """Before anybody has written anything: not only when it is saved."""
    own_node.start()
    sprite = new_sprite(own_node)
    write(sprite, "stored")
    for verb in ("sleep", "sync"):
        assert post(own_node, sprite, verb).status_code == 200
    eventually(lambda: disk(own_node, sprite)["lag_seconds"] is None, 60)
    await take_over(own_node.data / "store", sprite.name)
    assert post(own_node, sprite, "wake").status_code == 200
    eventually(lambda: "kept_aside" in kinds(own_node, sprite), 60)
    assert "not_saved" not in kinds(own_node, sprite)
    assert content(sprite) == "stored"


async def take_over(objects: Path, name: str) -> None:
    """Write a commit to the volume of a sprite, as another node would."""
    store = DirectoryStore(objects)
    (volume,) = [
        each.volume async for each in inventory(store) if isinstance(each, Found) and each.settings["name"] == name
    ]
    writer = await Writer.take_over(store, volume, writer="another", clock=SYSTEM_CLOCK)
    assert writer is not None and writer.view.state is not None
    await writer.commit("settings", settings=writer.view.state.settings)
    await store.close()
