"""recover: an empty data directory, filled from the store; and the node that starts there."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ballpoint.core import ids
from ballpoint.image.catalogue import Image
from ballpoint.node.durable import refill as module
from ballpoint.node.durable.storage import RECOVERING, read_memory
from ballpoint.store.deployment import claim, new_deployment, read_deployment
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.log.blob import encode_blob
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.log import Writer
from tests.cli.command import COMMAND
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

_DEADLINE = 240


def recover(data: Path, objects: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "recover", "--data", str(data), "--store", objects.as_uri(), "--pool-gb", "20", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE)


def recovered(data: Path, objects: Path) -> dict[str, Any]:
    done = recover(data, objects, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@dataclass
class Hand:
    """A clock that stands where it is put."""

    seconds: float

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def settings(name: str, org: str = "acme", **more: Any) -> dict[str, Any]:
    return {
        "id": f"sprite-{ids.new_uuid()}",
        "name": name,
        "organization": {"id": f"id-of-{org}", "name": org},
        "labels": ["blue"],
        "environment": {"COLOR": "red"},
        "config": {"ram_mb": 512},
        "url_settings": {"auth": "public"},
        "privileges": {},
        "created_at": "2026-01-02T03:04:05.678901Z",
        **more,
    }


async def volume(store: DirectoryStore, told: dict[str, Any], seconds: float = 1_000_000.0) -> Writer:
    writer = await found(
        store, UUID(ids.new_uuid()), UUID(ids.new_uuid()), image="a" * 64, size=1 << 30, settings=told, writer="w",
        clock=Hand(seconds),
    )  # fmt: skip
    assert writer is not None
    await writer.commit("data", blocks=[(0, encode_blob(b"disk" * 16384))])
    return writer


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Somebody's store, that has no disk yet."""

    async def fill() -> None:
        await claim(DirectoryStore(tmp_path / "objects"), new_deployment())

    asyncio.run(fill())
    return tmp_path / "objects"


def fill(objects: Path, *volumes: tuple[dict[str, Any], float]) -> list[str]:
    """Put volumes into the store; their names."""

    async def work() -> list[str]:
        store = DirectoryStore(objects)
        return [str((await volume(store, told, seconds)).view.head.volume) for told, seconds in volumes]

    return asyncio.run(work())


@pytest.fixture
def node(tmp_path: Path, objects: Path) -> Iterator[TestNode]:
    made = TestNode(tmp_path / "data", options=["--store", objects.as_uri()], org="acme")
    made.token = f"acme/id-of-acme/{ids.new_instance_id()}/{ids.new_secret()}"
    made.token_file.write_text(made.token)
    try:
        yield made
    finally:
        made.down()


@pytest.mark.node
@pytest.mark.slow
def test_burn_the_host_and_get_it_back(own_node: TestNode, slim_image: Image, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    own_node.options += ["--store", objects.as_uri()]
    own_node.start()
    name = f"t-{ids.new_instance_id()}"
    created = own_node.client().create_sprite(name)
    created.create_service("web", "sleep", ["inf"], duration=0.1)
    assert shell(created, "echo first > file; sync") == (0, "")
    assert own_node.api("POST", f"/v1/sprites/{name}/checkpoint", json={"comment": "one"}).is_success
    assert shell(created, "echo second > file; sync") == (0, "")
    assert own_node.api("PUT", f"/v1/sprites/{name}", json={"labels": ["kept"]}).is_success
    before = own_node.api("GET", f"/v1/sprites/{name}").json()
    done = own_node.api("POST", f"/v1/sprites/{name}/sync")
    assert done.is_success, done.text
    own_node.down()
    shutil.rmtree(own_node.data)

    told = recovered(own_node.data, objects)
    assert [(each["name"], each["checkpoints"]) for each in told["sprites"]] == [(name, 1)]
    assert told["failures"] == told["trashed"] == []
    own_node.start()
    after = own_node.api("GET", f"/v1/sprites/{name}").json()
    for key in ("id", "name", "organization", "labels", "created_at", "environment", "config", "url_settings"):
        assert after.get(key) == before.get(key), key
    assert after["status"] == "cold"
    events = own_node.api("GET", f"/v1/sprites/{name}/events").text
    assert "recovered from the store" in events
    again = own_node.client().get_sprite(name)
    assert shell(again, "cat file") == (0, "second\n")
    eventually(lambda: getattr(again.get_service("web").state, "status", "") == "running")
    assert own_node.api("POST", f"/v1/sprites/{name}/checkpoints/v0/restore").is_success
    assert shell(again, "cat file") == (0, "first\n")
    done = own_node.api("POST", f"/v1/sprites/{name}/sync")
    assert done.is_success, done.text


def test_all_that_is_known_of_a_sprite_is_back(tmp_path: Path, objects: Path) -> None:
    (name,) = fill(objects, (settings("web"), 1_234_567.5))
    told = recovered(tmp_path / "data", objects)
    (sprite,) = told["sprites"]
    assert (sprite["name"], sprite["organization"], sprite["volume"]) == ("web", "acme", name)
    assert sprite["time"].startswith("1970-01-15T06:56:07.5")
    memory = read_memory(tmp_path / "data")
    deployment = asyncio.run(read_deployment(DirectoryStore(objects)))
    assert memory is not None and memory.settled and memory.deployment == deployment
    assert not (tmp_path / "data" / RECOVERING).exists()
    done = recover(tmp_path / "data2", objects)
    assert done.returncode == 0
    assert "web" in done.stdout and "1970-01-15 06:56:07" in done.stdout
    assert f"ballpoint up --data {tmp_path / 'data2'}" in done.stdout


def test_of_two_with_one_name_the_newer_keeps_it(tmp_path: Path, objects: Path) -> None:
    long = "n" * ids.NAME_MAX
    old, new, other, long_old, long_new = fill(
        objects,
        (settings("web"), 1_000_000.0),
        (settings("web"), 2_000_000.0),
        (settings("web", org="other"), 500_000.0),
        (settings(long), 1_000_000.0),
        (settings(long), 2_000_000.0),
    )
    told = recovered(tmp_path / "data", objects)
    names = {each["volume"]: each["name"] for each in told["sprites"]}
    assert (names[new], names[other], names[long_new]) == ("web", "web", long)
    assert names[old] == f"web-recovered-{old.replace('-', '')[:8]}"
    assert ids.check_name(names[long_old]).endswith(f"-recovered-{long_old.replace('-', '')[:8]}")


def test_what_was_destroyed_is_told_and_stays_so(tmp_path: Path, objects: Path) -> None:
    async def work() -> None:
        store = DirectoryStore(objects)
        await (await volume(store, settings("gone"))).commit("trash")
        await volume(store, settings("kept"))

    asyncio.run(work())
    told = recovered(tmp_path / "data", objects)
    assert [each["name"] for each in told["sprites"]] == ["kept"]
    assert [each["name"] for each in told["trashed"]] == ["gone"]


def test_what_cannot_be_recovered_is_named_and_holds_nothing_up(tmp_path: Path, objects: Path) -> None:
    good, damaged = fill(objects, (settings("good"), 2.0), (settings("damaged"), 1.0))
    odd = fill(
        objects,
        ({"name": "odd"}, 1.0),
        (settings("Not A Name"), 1.0),
        (settings("else", organization={"id": "id-of-acme", "name": "another"}), 1.0),
    )
    for commit in (objects / "volumes" / damaged / "commits").iterdir():
        commit.write_bytes(b"damaged")
    done = recover(tmp_path / "data", objects, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert good in {each["volume"] for each in told["sprites"]}
    missed = " ".join(each["what"] for each in told["failures"])
    assert damaged in missed and odd[0] in missed and odd[1] in missed
    assert len(told["sprites"]) + len(told["failures"]) == 5


def test_a_directory_in_use_is_refused(tmp_path: Path, objects: Path) -> None:
    fill(objects, (settings("web"), 1.0))
    recovered(tmp_path / "data", objects)
    done = recover(tmp_path / "data", objects)
    assert done.returncode == 1 and "is in use" in done.stderr
    (tmp_path / "empty").mkdir()
    done = recover(tmp_path / "data2", tmp_path / "empty")
    assert done.returncode == 1 and "nothing to recover" in done.stderr
    done = recover(tmp_path / "data3", tmp_path / "nowhere")
    assert done.returncode == 1 and "there is no directory" in done.stderr


@pytest.mark.parametrize("sprites", [0, 1, 2])
@pytest.mark.parametrize("where", ["_place", "recover_sprite"])
def test_a_recovery_that_was_cut_off_goes_on(
    tmp_path: Path, objects: Path, node: TestNode, sprites: int, where: str
) -> None:
    """It dies in the middle of one of three sprites; no node starts there before it has been called again."""
    volumes = fill(objects, *((settings(name), 1.0) for name in ("one", "two", "two")))
    owner = f"{module.__name__}._Refill" if where == "_place" else "ballpoint.registry.registry.Registry"
    script = f"""
import os, sys
from importlib import import_module
module, _, name = {owner!r}.rpartition(".")
owner = getattr(import_module(module), name)
real, calls = getattr(owner, {where!r}), []
def dying(*arguments, **named):
    calls.append(1)
    if len(calls) > {sprites}:
        os._exit(9)
    return real(*arguments, **named)
setattr(owner, {where!r}, dying)
from ballpoint.cli.main import main
sys.argv = ["ballpoint", "recover", "--data", {str(node.data)!r}, "--store", {objects.as_uri()!r}, "--pool-gb", "20"]
main()
"""
    done = subprocess.run([COMMAND[0], "-c", script], capture_output=True, text=True, timeout=_DEADLINE)
    assert done.returncode == 9, done.stderr
    with pytest.raises(AssertionError, match="recovery into"):
        node.start()
    node.wait()
    told = recovered(node.data, objects)
    assert sorted(each["volume"] for each in told["sprites"]) == sorted(volumes)
    assert sorted(each["name"] for each in told["sprites"])[:2] == ["one", "two"]
    again = recover(tmp_path / "another", objects, "--json")
    assert json.loads(again.stdout)["sprites"] == told["sprites"]
