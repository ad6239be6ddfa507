"""A pool with little room: cold disks are left to the store, the oldest first, and come back as they were."""

from __future__ import annotations

import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.node.test_lost import directory
from tests.node.test_store_away import server_of
from tests.support.checkpoints import (
    checkpoint,
    content,
    disk,
    events,
    fork,
    kinds,
    lines,
    new_sprite,
    post,
    write,
)
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

_STEPS = 40


def fill(sprite: Any, name: str, mebibytes: int) -> str:
    """A file of noise. Returns its sum."""
    script = f"head -c {mebibytes}M /dev/urandom > {name} && sync && sha256sum {name}"
    code, said = shell(sprite, script)
    assert code == 0, said
    return said


def summed(sprite: Any, name: str) -> str:
    code, said = shell(sprite, f"sha256sum {name}")
    assert code == 0, said
    return said


def test_cold_disks_are_left_to_the_store_oldest_first_and_come_back(own_node: TestNode) -> None:
    node = own_node
    node.options += ["--pool-gb", "2"]
    node.start()
    first, second, writer = new_sprite(node), new_sprite(node), new_sprite(node)
    # What a checkpoint alone has of this takes room, and is the first to go.
    kept = fill(first, "data", 120)
    assert checkpoint(node, first, params={"wait": "durable"}) == "v0"
    sums = {first.name: fill(first, "data", 120), second.name: fill(second, "data", 120)}
    write(writer, "early")
    assert checkpoint(node, writer, params={"wait": "durable"}) == "v0"
    for sprite in (first, second):
        assert post(node, sprite, "sync").is_success
        assert post(node, sprite, "sleep").is_success
        eventually(lambda sprite=sprite: disk(node, sprite)["lag_seconds"] is None, 120)  # type: ignore[misc]
        assert disk(node, sprite)["place"] == "local"

    for step in range(_STEPS):
        if "evicted" in kinds(node, second):
            break
        write(writer, f"late{step}")
        fill(writer, f"more{step}", 40)
    assert disk(node, first)["place"] == disk(node, second)["place"] == "store"
    for sprite in (first, second):
        assert not (directory(node, sprite) / "disk.img").exists()
    gone = {
        sprite.name: [each["time"] for each in events(node, sprite) if each["kind"] == "evicted"]
        for sprite in (first, second)
    }
    assert len(gone[first.name]) == len(gone[second.name]) == 1
    assert gone[first.name] < gone[second.name]
    assert "evicted" not in kinds(node, writer)
    assert disk(node, writer)["place"] == "local"
    # Looking at one that is in the store only, or changing what is said of it, brings nothing back.
    assert [each["id"] for each in node.api("GET", f"/v1/sprites/{first.name}/checkpoints").json()] == ["v0"]
    assert node.api("PUT", f"/v1/sprites/{first.name}", json={"labels": ["old"]}).is_success
    assert post(node, first, "sync").is_success
    assert disk(node, first)["place"] == "store"

    more = " ".join(f"more{step}" for step in range(_STEPS))
    assert shell(writer, f"rm -f {more}; sync")[0] == 0
    background = "(while :; do head -c 4M /dev/urandom > busy; sync; done) >/dev/null 2>&1 & echo $!"
    assert shell(writer, background)[0] == 0

    def woken(sprite: Any) -> bool:
        answer = post(node, sprite, "wake")
        if answer.status_code == 503:  # the room comes back by trimming
            assert answer.json()["error"] == "disk_full", answer.text
        return answer.is_success

    def restored(sprite: Any) -> bool:
        last = lines(post(node, sprite, "checkpoints/v0/restore"))[-1]
        if last["type"] == "error":  # likewise
            assert last["error"] == "the volume pool is full", last
        return bool(last["type"] == "complete")

    eventually(lambda: woken(first), 120)
    assert summed(first, "data") == sums[first.name]
    assert disk(node, first)["place"] == "local"
    assert "fetched" in kinds(node, first)
    eventually(lambda: restored(first), 120)
    assert summed(first, "data") == kept
    eventually(lambda: restored(writer), 120)
    assert content(writer) == "early"
    assert node.api("DELETE", f"/v1/sprites/{second.name}").status_code == 204


@pytest.fixture
def silent(own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A node whose store can be made to say nothing: the server's pid is in it."""
    with server_of(own_node, tmp_path / "server", monkeypatch) as server:
        try:
            yield server
        finally:
            os.kill(server, signal.SIGCONT)
            own_node.down()


def test_a_disk_that_was_coming_when_the_node_died_comes_at_the_next_wake(own_node: TestNode, silent: int) -> None:
    node = own_node.start()
    sprite = new_sprite(node)
    whole = fill(sprite, "data", 20)
    assert checkpoint(node, sprite, params={"wait": "durable"}) == "v0"
    assert post(node, sprite, "sleep").is_success
    assert post(node, sprite, "sync").is_success
    (directory(node, sprite) / "disk.img").unlink()
    assert disk(node, sprite)["place"] == "store"
    os.kill(silent, signal.SIGSTOP)

    def wake() -> None:
        with suppress(httpx2.TransportError):  # the node is killed meanwhile
            post(node, sprite, "wake")

    waking = threading.Thread(target=wake)
    waking.start()
    eventually(lambda: disk(node, sprite)["place"] == "partly")
    node.kill()
    waking.join()
    os.kill(silent, signal.SIGCONT)
    node.start()
    assert disk(node, sprite)["place"] == "store"
    again = node.client().sprite(sprite.name)
    assert summed(again, "data") == whole
    assert disk(node, sprite)["place"] == "local"
    as_of = re.search(r"as of (\S+):", next(e["cause"] for e in events(node, sprite) if e["kind"] == "fetched"))
    assert as_of is not None


def test_a_disk_in_the_store_only_is_forked_checkpointed_and_destroyed(own_node: TestNode) -> None:
    node = own_node.start()
    sprites = [new_sprite(node) for _ in range(3)]
    for sprite in sprites:
        write(sprite, "kept")
        assert post(node, sprite, "sleep").is_success
        assert post(node, sprite, "sync").is_success
        (directory(node, sprite) / "disk.img").unlink()
        assert disk(node, sprite)["place"] == "store"
    forked, checked, destroyed = sprites
    assert content(fork(node, forked)) == "kept"
    assert checkpoint(node, checked) == "v0"
    assert content(node.client().sprite(checked.name)) == "kept"
    assert node.api("DELETE", f"/v1/sprites/{destroyed.name}").status_code == 204
    assert node.api("GET", f"/v1/sprites/{destroyed.name}").status_code == 404


def test_a_dead_node_with_disks_in_the_store_only_is_taken_down(own_node: TestNode) -> None:
    node = own_node.start()
    cold, running = new_sprite(node), new_sprite(node)
    write(cold, "kept")
    assert post(node, cold, "sleep").is_success
    assert post(node, cold, "sync").is_success
    (directory(node, cold) / "disk.img").unlink()
    write(running, "runs")
    node.kill()
    assert "removed what it had left" in node.down()
    node.start()
    assert content(node.client().sprite(cold.name)) == "kept"
    assert content(node.client().sprite(running.name)) == "runs"
