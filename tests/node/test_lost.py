"""What a whole node does when disks are lost or damaged here, and the store has them or not."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from ballpoint.host.files import remove_tree
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

_CONTENT = "for n in $(seq 40); do head -c 65536 /dev/urandom > f$n; done; sync; sha256sum f* | sha256sum"
_SUM = "sha256sum f* | sha256sum"


def new(node: TestNode) -> Any:
    return node.client().create_sprite(f"t-{ids.new_instance_id()}")


def filled(node: TestNode) -> tuple[Any, str]:
    """A sprite with some files, all of them in the store, and what is to be seen of them."""
    sprite = new(node)
    code, told = shell(sprite, _CONTENT)
    assert code == 0, told
    sync(node, sprite)
    return sprite, told


def sync(node: TestNode, sprite: Any) -> None:
    done = node.api("POST", f"/v1/sprites/{sprite.name}/sync")
    assert done.is_success, done.text


def verb(node: TestNode, sprite: Any, name: str) -> Any:
    return node.api("POST", f"/v1/sprites/{sprite.name}/{name}")


def events(node: TestNode, sprite: Any, kind: str) -> list[Any]:
    lines = node.api("GET", f"/v1/sprites/{sprite.name}/events").text.splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def pool(node: TestNode) -> Path:
    """The pool as the node has it mounted."""
    (daemon,) = node.processes("node")
    return Path(f"/proc/{daemon}/root{node.data}/pool")


def removed(tree: Path) -> bool:
    """Whether it could be removed; who makes a snapshot in it meanwhile is in the way."""
    with suppress(OSError):
        remove_tree(tree)
    return not tree.exists()


def devices_of(backing: str) -> list[str]:
    """The loop devices, as `loop3`, of files whose path ends so. Others of the host come and go."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if entry.read_text().strip().endswith(backing):
                found.append(entry.parents[1].name)
    return found


def directory(node: TestNode, sprite: Any) -> Path:
    """Of its volume."""
    (found,) = [entry for entry in (pool(node) / "volumes").iterdir() if _volume_of(node, sprite) == entry.name]
    return found


def _volume_of(node: TestNode, sprite: Any) -> str:
    """The volume's id, from the settings of its log: what is in the store under that name is this sprite's."""
    with sqlite3.connect(f"file:{node.data}/registry.db?mode=ro", uri=True) as registry:
        ((volume,),) = registry.execute("select volume_id from sprites where name = ?", (sprite.name,))
    return str(volume)


# ---- the pool is lost ----


def test_sprites_of_a_lost_pool_come_back_from_the_store(own_node: TestNode) -> None:
    own_node.start()
    synced, content = filled(own_node)
    slept, asleep = filled(own_node)
    assert verb(own_node, slept, "sleep").is_success
    durable = own_node.api("GET", f"/v1/sprites/{synced.name}/disk").json()["durable_at"]
    own_node.down()
    for name in ("pool.img", "pool"):
        place = own_node.data / name
        place.unlink() if place.is_file() else remove_tree(place)
    own_node.start()
    for sprite, expected in ((synced, content), (slept, asleep)):
        again = own_node.client().get_sprite(sprite.name)
        assert shell(again, _SUM) == (0, expected)
        (event,) = events(own_node, sprite, "recovered")
        assert event["detail"]["epoch"] >= 1 and event["detail"]["volume"]
        shown = re.search(r"as of (\S+);", event["cause"])
        assert shown is not None and shown[1] >= durable[:19]
        # And it goes on being saved, under the same name in the store.
        assert shell(again, "echo more > more; sync")[0] == 0
        sync(own_node, sprite)


def test_a_lost_registry_costs_no_disk(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = filled(own_node)
    here = directory(own_node, sprite).name
    image = (directory(own_node, sprite) / "disk.img").stat().st_ino
    assert verb(own_node, sprite, "sleep").is_success
    own_node.terminate()
    for file in own_node.data.glob("registry.db*"):
        file.unlink()
    own_node.start()
    assert not (pool(own_node) / "volumes" / here).exists()
    assert (pool(own_node) / "aside" / here / "disk.img").stat().st_ino == image


def test_a_sprite_that_neither_pool_nor_store_has_says_so_and_can_be_destroyed(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = filled(own_node)
    kept, content = filled(own_node)
    volume = _volume_of(own_node, sprite)
    assert verb(own_node, sprite, "sleep").is_success
    own_node.down()
    for name in ("pool.img", "pool"):
        place = own_node.data / name
        place.unlink() if place.is_file() else remove_tree(place)
    objects = own_node.data / "store"
    remove_tree(objects / "volumes" / volume)
    own_node.start()
    path = f"/v1/sprites/{sprite.name}"
    for _ in range(2):
        refused = own_node.api("POST", f"{path}/exec?cmd=true")
        assert refused.status_code == 500 and "is lost" in refused.text
    assert verb(own_node, sprite, "restart").status_code == 500
    shown = own_node.api("GET", path).json()
    assert (shown["health"], shown["status"]) == ("degraded", "cold")
    assert "is lost" in shown["health_reason"]
    assert len(events(own_node, sprite, "degraded")) == 1
    assert shell(own_node.client().get_sprite(kept.name), _SUM) == (0, content)
    assert own_node.api("DELETE", path).status_code == 204
    assert own_node.api("GET", path).status_code == 404


def test_a_lost_directory_of_one_sprite_holds_up_no_other(own_node: TestNode) -> None:
    own_node.start()
    (lost, content), (other, before) = filled(own_node), filled(own_node)
    eventually(partial(removed, directory(own_node, lost)))
    eventually(lambda: events(own_node, lost, "not_saved"))
    assert verb(own_node, lost, "sync").status_code == 500
    assert shell(other, "echo more > more; sync")[0] == 0
    sync(own_node, other)
    assert shell(other, _SUM) == (0, before)
    own_node.terminate()
    own_node.start()
    assert shell(own_node.client().get_sprite(lost.name), _SUM) == (0, content)
    assert len(events(own_node, lost, "recovered")) == 1


# ---- a disk is damaged ----


def wiped(image: Path) -> None:
    """Its superblock and all that comes in the MiB after it have gone."""
    with image.open("r+b") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())


def shredded(image: Path) -> None:
    """The superblock is whole, and all that it leads to is not."""
    with image.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 << 20))
        os.fsync(file.fileno())


def cut(image: Path) -> None:
    os.truncate(image, 1 << 20)


def mute(image: Path) -> None:
    image.with_name("record.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "start", "times"),
    [(wiped, "restart", 3), (shredded, "exec?cmd=true", 1), (cut, "wake", 1), (mute, "restart", 1)],
)
def test_a_damaged_disk_is_kept_aside_and_the_stores_taken(
    own_node: TestNode, damage: Callable[[Path], None], start: str, times: int
) -> None:
    own_node.start()
    sprite, content = filled(own_node)
    for nth in range(1, times + 1):
        assert verb(own_node, sprite, "sleep").is_success
        sync(own_node, sprite)
        place = directory(own_node, sprite)
        damage(place / "disk.img")
        damaged = (place / "record.json").read_bytes()
        own_node.kill()
        own_node.start()  # nothing of the record is remembered
        done = verb(own_node, sprite, start)
        assert done.is_success, done.text
        assert shell(own_node.client().get_sprite(sprite.name), _SUM) == (0, content)
        told = events(own_node, sprite, "recovered")
        assert len(told) == nth and "damaged" in told[-1]["cause"]
        aside = Path(events(own_node, sprite, "kept_aside")[-1]["cause"].split()[-1])
        kept = pool(own_node) / "aside" / aside.name
        assert (kept / "record.json").read_bytes() == damaged
        assert len(list(kept.parent.iterdir())) == nth
        assert own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["health"] == "ok"


@pytest.mark.parametrize("damage", [wiped, shredded, cut])
def test_damage_is_not_saved(own_node: TestNode, damage: Callable[[Path], None]) -> None:
    """A node that finds a disk damaged at its start leaves what the store has as it is."""
    own_node.start()
    sprite, content = filled(own_node)
    assert verb(own_node, sprite, "sleep").is_success
    sync(own_node, sprite)
    damage(directory(own_node, sprite) / "disk.img")
    own_node.kill()
    own_node.start()
    eventually(lambda: events(own_node, sprite, "not_saved"))
    assert "damaged" in events(own_node, sprite, "not_saved")[0]["cause"]
    assert verb(own_node, sprite, "sync").status_code == 500
    assert own_node.api("GET", f"/v1/sprites/{sprite.name}/disk").json()["lag_seconds"] is not None
    assert verb(own_node, sprite, "restart").is_success
    assert shell(own_node.client().get_sprite(sprite.name), _SUM) == (0, content)
    sync(own_node, sprite)
    assert events(own_node, sprite, "not_saved")[1:] == []


def test_what_is_damaged_in_the_store_too_stays_and_a_checkpoint_mends_it(own_node: TestNode) -> None:
    own_node.start()
    sprite, content = filled(own_node)
    assert own_node.api("POST", f"/v1/sprites/{sprite.name}/checkpoint", params={"wait": "durable"}).is_success
    assert verb(own_node, sprite, "sleep").is_success
    # It changes in a way that no look finds, and is saved so: below the directory that everything is in.
    image = directory(own_node, sprite) / "disk.img"
    unlinked(image)
    sync(own_node, sprite)
    place = directory(own_node, sprite)
    for _ in range(3):
        assert verb(own_node, sprite, "restart").status_code == 500
    assert len(events(own_node, sprite, "kept_aside")) == 1
    assert "so is what the store has" in own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["health_reason"]
    assert place.exists()
    assert own_node.api("POST", f"/v1/sprites/{sprite.name}/checkpoints/v0/restore").is_success
    assert shell(own_node.client().get_sprite(sprite.name), _SUM) == (0, content)
    assert own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["health"] == "ok"


def unlinked(image: Path) -> None:
    """A whole file system, which is no sprite's."""
    done = subprocess.run(["debugfs", "-w", "-R", "unlink /upper", str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_damaged_disk_that_the_store_does_not_have_stays_where_it_is(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = filled(own_node)
    assert verb(own_node, sprite, "sleep").is_success
    sync(own_node, sprite)
    place = directory(own_node, sprite)
    wiped(place / "disk.img")
    own_node.kill()
    remove_tree(own_node.data / "store" / "volumes" / place.name)
    own_node.start()
    refused = verb(own_node, sprite, "restart")
    assert refused.status_code == 500 and "the store has nothing of it" in refused.text
    assert (directory(own_node, sprite) / "disk.img").stat().st_size > 0
    assert not (pool(own_node) / "aside").exists()
    assert "nothing of it" in own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["health_reason"]


def test_a_file_system_that_went_read_only_is_mended_by_a_restart(own_node: TestNode) -> None:
    own_node.start()
    sprite, content = filled(own_node)
    (device,) = devices_of(f"{_volume_of(own_node, sprite)}/disk.img")
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test says so")
    path = f"/v1/sprites/{sprite.name}"
    eventually(lambda: own_node.api("GET", path).json()["health"] == "degraded", 60)
    assert "Read-only file system" in own_node.api("GET", path).json()["health_reason"]
    assert verb(own_node, sprite, "restart").is_success
    assert shell(own_node.client().get_sprite(sprite.name), f"{_SUM}; touch new") == (0, content)
    eventually(lambda: own_node.api("GET", path).json()["health"] == "ok", 60)  # once it is saved, too
    assert len(events(own_node, sprite, "repaired")) == 1
    assert events(own_node, sprite, "kept_aside") == []


# ---- an object of the store is damaged ----


def turned(object_file: Path) -> None:
    """Turn one bit in the middle; once more turns it back."""
    with object_file.open("r+b") as file:
        middle = object_file.stat().st_size // 2
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 4]))


def test_a_damaged_object_is_named_and_concerns_no_other_sprite(own_node: TestNode) -> None:
    own_node.start()
    (sprite, content), (cold, cold_content), (running, running_content) = (filled(own_node) for _ in range(3))
    for each in (running, cold):
        done = own_node.api("POST", f"/v1/sprites/{each.name}/checkpoint", params={"wait": "durable"})
        assert done.is_success, done.text
    for each in (sprite, cold):
        assert verb(own_node, each, "sleep").is_success
        sync(own_node, each)
        here = directory(own_node, each)
        (here / "disk.img").unlink()
        # What the next save would be compared with is the disk as the store has it, and would do.
        subprocess.run(["chattr", "-R", "-i", here / "snapshots"], check=True)
        remove_tree(here / "snapshots")
    store = own_node.data / "store"
    packs = (store / "volumes" / directory(own_node, sprite).name / "packs").iterdir()
    pack = max(packs, key=lambda path: path.stat().st_size)
    turned(pack)
    for _ in range(2):
        answer = verb(own_node, sprite, "wake")
        assert answer.status_code == 500 and answer.json()["error"] == "corrupt", answer.text
        assert str(pack.relative_to(store)) in answer.json()["message"]
    assert verb(own_node, cold, "wake").is_success
    assert shell(cold, _SUM) == (0, cold_content)
    for each in (cold, running):
        assert own_node.api("POST", f"/v1/sprites/{each.name}/checkpoints/v0/restore").is_success
    assert shell(cold, _SUM) == (0, cold_content)
    assert shell(running, _SUM) == (0, running_content)
    sync(own_node, running)
    turned(pack)
    assert verb(own_node, sprite, "wake").is_success
    assert shell(sprite, _SUM) == (0, content)
