"""The node dies at each step of a checkpoint, a restore, a fork and a destroy: nothing is lost, half-done or left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ballpoint.core import ids, steps
from ballpoint.node.durable import checkpoints as verbs
from ballpoint.node.standby.spares import MOST as SPARES_MOST
from ballpoint.volume.record import read_record
from ballpoint.volume.sync import keeper
from tests.crash import armed
from tests.support.checkpoints import checkpoint, content, fork, listed, new_sprite, pool, post, restore, status, write
from tests.support.host import traces
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

assert verbs and keeper  # they declare the steps

# Disks that are followed by a copy are killed in tests/volume/sync/test_crash.py.
SNAPSHOT = [step for step in steps.declared() if step.startswith("snapshot: ") and "copy" not in step]
CHECKPOINT = [*SNAPSHOT, *(step for step in steps.declared() if step.startswith("checkpoint: "))]
RESTORE = [*SNAPSHOT, *(step for step in steps.declared() if step.startswith("restore: "))]
FORK = [*CHECKPOINT, *(step for step in steps.declared() if step.startswith(("fork: ", "create: ")))]
# From the first of these on the sprite has its new disk, and with the last it runs.
REPLACED = "restore: the disk is replaced"
STOPPED = "restore: what ran before goes on no more"
RESTORED = "restore: what ran before has ended"
DESTROY = [step for step in steps.declared() if step.startswith("destroy: ")]


@pytest.fixture(scope="module")
def crashing(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    """A node that the tests kill and start again; each leaves it running, without sprites."""
    place = tmp_path_factory.mktemp("crash")
    made = TestNode(place / "data", program=armed.as_command(place / "die_at"))
    made.start()
    made.options += ["--listen", made.url.removeprefix("http://")]  # its address stays, as an operator's does
    try:
        yield made
        assert made.terminate() == 0
        found = traces(made.id, made.data)
        assert found == dict.fromkeys(found, [])
    finally:
        made.down()


@pytest.fixture
def sprite(crashing: TestNode) -> Iterator[Any]:
    """A sprite whose checkpoint v0 says `old` and whose disk says `new`, all of it in the store."""
    made = new_sprite(crashing)
    write(made, "old")
    assert checkpoint(crashing, made) == "v0"
    write(made, "new")
    assert post(crashing, made, "sync").status_code == 200
    yield made
    for each in crashing.api("GET", "/v1/sprites").json()["sprites"]:
        assert crashing.api("DELETE", f"/v1/sprites/{each['name']}").status_code == 204
    volumes = pool(crashing) / "volumes"
    eventually(lambda: len(list(volumes.iterdir())) == min(3, SPARES_MOST))
    assert list((pool(crashing) / "staging").iterdir()) == []


def dies(node: TestNode, step: str, method: str, path: str, **arguments: Any) -> None:
    """Ask a node for something, let it die at a step of that, and start it again."""
    die_at = node.data.parent / "die_at"
    (process,) = node.processes("node")
    armed.arm(die_at, step)
    with suppress(httpx2.TransportError):
        answer = node.api(method, path, **arguments)
        assert answer.status_code in (200, 503), answer.text
        # What ran before is ended after the answer.
        assert step == RESTORED or '"complete"' not in answer.text, f"{step!r} is never reached"
    eventually(lambda: process not in node.processes("node"))
    node.kill()
    die_at.unlink()
    node.start()


def works(node: TestNode, sprite: Any) -> None:
    """Its checkpoints are what they were, it can be saved and restored, and no snapshot is there that nobody needs."""
    for each in listed(node, sprite):
        if each["is_auto"] or each["id"] == "v0":
            copy = fork(node, sprite, each["id"])
            assert content(copy) == ("new" if each["is_auto"] else "old")
            assert node.api("DELETE", f"/v1/sprites/{copy.name}").status_code == 204
    assert post(node, sprite, "sync").status_code == 200
    for directory in (pool(node) / "volumes").iterdir():
        eventually(lambda directory=directory: needed_only(directory))  # type: ignore[misc]
    restore(node, sprite, "v0")
    assert content(sprite) == "old"
    assert status(node, sprite) == "running"
    checkpoint(node, sprite, params={"wait": "durable"})
    assert all(each["durable"] for each in listed(node, sprite))


def needed_only(directory: Path) -> bool:
    """Whether a volume that nobody saves right now has the snapshots that its record names, or has gone."""
    with suppress(FileNotFoundError):
        return {int(file.stem) for file in (directory / "snapshots").iterdir()} == read_record(directory).snapshots
    return not (directory / "snapshots").exists()


@pytest.mark.parametrize("step", CHECKPOINT)
def test_a_checkpoint(crashing: TestNode, sprite: Any, step: str) -> None:
    assert shell(sprite, "sleep 10000 > /dev/null 2>&1 & echo $! > pid")[0] == 0
    dies(crashing, step, "POST", f"/v1/sprites/{sprite.name}/checkpoint")
    assert shell(sprite, "cat file; kill -0 $(cat pid) && echo runs") == (0, "new\nruns\n")
    assert [each["id"] for each in listed(crashing, sprite)][:1] == ["v0"]
    for each in listed(crashing, sprite)[1:]:
        copy = fork(crashing, sprite, each["id"])
        assert content(copy) == "new"
    works(crashing, sprite)


@pytest.mark.parametrize(
    ("state", "step"), [("running", step) for step in RESTORE] + [("cold", step) for step in RESTORE if step != STOPPED]
)
def test_a_restore(crashing: TestNode, sprite: Any, step: str, state: str) -> None:
    if state == "cold":
        assert post(crashing, sprite, "sleep").json()["status"] == "cold"
    dies(crashing, step, "POST", f"/v1/sprites/{sprite.name}/checkpoints/v0/restore")
    assert status(crashing, sprite) == ("running" if step == RESTORED else state)
    assert content(sprite) == ("old" if step in {REPLACED, STOPPED, RESTORED} else "new")
    works(crashing, sprite)


@pytest.mark.parametrize("step", FORK)
def test_a_fork(crashing: TestNode, sprite: Any, step: str) -> None:
    name = f"t-{ids.new_instance_id()}"
    dies(crashing, step, "POST", f"/v1/sprites/{sprite.name}/fork", json={"name": name})
    assert content(sprite) == "new"
    found = crashing.api("GET", f"/v1/sprites/{name}").status_code
    assert found == (200 if "the registry knows it" in step else 404)
    if found == 200:
        assert content(crashing.client().sprite(name)) == "new"
    works(crashing, sprite)


@pytest.mark.parametrize("step", DESTROY)
def test_a_destroy(crashing: TestNode, sprite: Any, step: str) -> None:
    dies(crashing, step, "DELETE", f"/v1/sprites/{sprite.name}")
    answer = crashing.api("GET", f"/v1/sprites/{sprite.name}")
    if step == "destroy: the store knows":
        assert answer.status_code == 200
        works(crashing, sprite)
    else:
        assert answer.status_code == 404
