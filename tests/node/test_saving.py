"""Saving on a real node: what is brought into the store, in which order, and when nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.node.test_lost import directory
from tests.node.test_store_away import server_of
from tests.support.checkpoints import disk, new_sprite, post, write
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

# More pieces than a disk may have to be cloned.
_PIECES = 25_000
_SCATTER = f"""
import os
disk = os.open("/root/large", os.O_RDWR | os.O_CREAT)
for number in range({_PIECES}):
    os.pwrite(disk, os.urandom(4096), number * 8192 + WHERE)
os.fsync(disk)
"""


def test_a_fork_of_a_fork_is_saved_after_those_it_came_from(own_node: TestNode) -> None:
    own_node.start()
    names = [f"t-{ids.new_instance_id()}" for _ in range(3)]
    assert own_node.api("POST", "/v1/sprites", json={"name": names[0]}).status_code == 201
    for source, fork in zip(names, names[1:], strict=False):
        assert own_node.api("POST", f"/v1/sprites/{source}/fork", json={"name": fork}).status_code == 201
    assert own_node.api("POST", f"/v1/sprites/{names[-1]}/sync").status_code == 200
    for name in names:
        assert own_node.api("GET", f"/v1/sprites/{name}").json()["durable_at"]
        assert "not_saved" not in own_node.api("GET", f"/v1/sprites/{name}/events").text


def test_a_sprite_that_changes_nothing_costs_no_request(
    own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, place = own_node, tmp_path / "server"
    with server_of(node, place, monkeypatch):
        node.start()
        quiet, busy = new_sprite(node), new_sprite(node)
        quiet_volume, busy_volume = (directory(node, each).name for each in (quiet, busy))
        assert post(node, quiet, "sync").status_code == 200
        server = place / "log"

        def costs_nothing() -> bool:
            before = server.stat().st_size
            assert shell(quiet, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")[0] == 0
            # What has run may have changed something: after some seconds the disk is looked at.
            eventually(lambda: disk(node, quiet)["lag_seconds"] is not None)
            eventually(lambda: disk(node, quiet)["lag_seconds"] is None)
            write(busy, "changed")
            assert post(node, busy, "sync").status_code == 200
            with server.open() as log:
                log.seek(before)
                requests = log.read()
            assert busy_volume in requests
            return quiet_volume not in requests

        eventually(costs_nothing, 120)  # what a start itself changes is saved first, some of it late
        node.down()


def test_a_disk_that_fell_apart_is_followed_while_its_sprite_runs(own_node: TestNode) -> None:
    """Its checkpoints are taken from the copy, and what was written to it is in the store when it has stopped."""
    own_node.start()
    name = f"t-{ids.new_instance_id()}"
    assert own_node.api("POST", "/v1/sprites", json={"name": name}).status_code == 201
    sprite = own_node.client().sprite(name)

    def scatter(where: int) -> str:
        code, said = shell(
            sprite, f"python3 -c '{_SCATTER.replace('WHERE', str(where))}' && sha256sum /root/large", user="root"
        )
        assert code == 0, said
        return said.split()[0]

    def save() -> None:
        assert own_node.api("POST", f"/v1/sprites/{name}/sync").status_code == 200

    def followed() -> bool:
        return "ballpoint_followed_disks 1" in own_node.api("GET", "/metrics").text

    for where in (0, 4096):
        scatter(where)
        save()
    scatter(0)  # each block that a snapshot shares takes a new place
    save()
    scatter(4096)
    assert own_node.api("POST", f"/v1/sprites/{name}/sync").status_code == 200
    assert followed()
    kept = scatter(0)
    assert own_node.api("POST", f"/v1/sprites/{name}/checkpoint", json={}).status_code == 200
    last = scatter(4096)
    assert own_node.api("POST", f"/v1/sprites/{name}/sleep").status_code == 200
    save()
    assert not followed()
    assert own_node.api("POST", f"/v1/sprites/{name}/wake").status_code == 200
    assert shell(sprite, "sha256sum /root/large", user="root")[1].split()[0] == last
    assert own_node.api("POST", f"/v1/sprites/{name}/checkpoints/v0/restore").status_code == 200
    assert shell(sprite, "sha256sum /root/large", user="root")[1].split()[0] == kept
