"""A sprite from its creation to its end, by the official SDK."""

from __future__ import annotations

import json
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sprites import SpriteError
from sprites.exceptions import NetworkError, NotFoundError

from ballpoint.core import ids
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node


def test_create_run_destroy(node: TestNode) -> None:
    client = node.client()
    name = f"t-{ids.new_instance_id()}"
    sprite = client.create_sprite(name)
    assert shell(sprite, "echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert shell(sprite, "id -un; hostname; pwd") == (0, "sprite\nsprite\n/home/sprite\n")
    assert shell(sprite, "id -u", user="root") == (0, "0\n")
    assert client.get_sprite(name).name == name
    client.delete_sprite(name)
    with pytest.raises(NotFoundError):
        client.get_sprite(name)


def test_one_name_is_one_sprite(node: TestNode) -> None:
    name = f"t-{ids.new_instance_id()}"

    def create(_: int) -> bool:
        try:
            node.client().create_sprite(name)
        except SpriteError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1
    node.client().delete_sprite(name)


def test_more_creates_than_blanks_wait_and_succeed(node: TestNode) -> None:
    client = node.client()
    names = [f"t-{ids.new_instance_id()}" for _ in range(12)]
    with ThreadPoolExecutor(12) as threads:
        sprites = list(threads.map(client.create_sprite, names))
        assert [shell(sprite, "echo $((6 * 7))") for sprite in sprites] == [(0, "42\n")] * 12
        list(threads.map(client.delete_sprite, names))


def test_disk_survives_a_restart(node: TestNode) -> None:
    client = node.client()
    name = f"t-{ids.new_instance_id()}"
    sprite = client.create_sprite(name)
    # The shell is ended by the reboot's SIGTERM, or its connection before that: never with a success.
    with suppress(NetworkError):
        assert shell(sprite, "echo kept > file; sync; sudo reboot; sleep 600")[0] == 128 + signal.SIGTERM
    assert shell(sprite, "cat file") == (0, "kept\n")
    client.delete_sprite(name)


def test_a_command_while_the_sprite_restarts_runs_in_the_next_start(node: TestNode) -> None:
    client = node.client()
    name = f"t-{ids.new_instance_id()}"
    sprite = client.create_sprite(name)
    # What ignores SIGTERM makes the restart take as long as it may.
    assert shell(sprite, "echo kept > file; sync; (trap '' TERM; exec sleep 1000) >/dev/null 2>&1 &")[0] == 0
    with suppress(NetworkError):
        shell(sprite, "sudo reboot; sleep 60")
    assert shell(sprite, "cat file; pgrep -c sleep") == (1, "kept\n0\n")
    client.delete_sprite(name)


def test_background_processes_survive_their_exec(node: TestNode) -> None:
    client = node.client()
    name = f"t-{ids.new_instance_id()}"
    sprite = client.create_sprite(name)
    code, pid = shell(sprite, "sleep 1000 & echo $!")
    assert code == 0
    assert shell(sprite, f"kill -0 {pid.strip()} && echo alive") == (0, "alive\n")
    client.delete_sprite(name)


def test_a_restart_that_fails_leaves_a_cold_sprite_that_says_why(node: TestNode) -> None:
    name = f"t-{ids.new_instance_id()}"
    sprite = node.client().create_sprite(name)
    assert shell(sprite, "echo kept > file; sync") == (0, "")
    (daemon,) = node.processes("node")
    sprite_id = node.api("GET", f"/v1/sprites/{name}").json()["id"]
    with closing(sqlite3.connect(node.data / "registry.db")) as registry:
        (volume,) = registry.execute("SELECT volume_id FROM sprites WHERE id = ?", (sprite_id,)).fetchone()
    description = Path(f"/proc/{daemon}/root{node.data}/pool/volumes/{volume}/volume.json")
    text = description.read_text()
    before = node.api("GET", "/v1/sprites").json()
    description.write_text(text.replace('"format": 1', '"format": 99'))
    try:
        assert node.api("POST", f"/v1/sprites/{name}/restart").status_code == 409
        assert node.api("GET", f"/v1/sprites/{name}").json()["status"] == "cold"
        after = node.api("GET", "/v1/sprites").json()
        assert (after["running"], after["cold"]) == (before["running"] - 1, before["cold"] + 1)
        last = json.loads(node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()[-1])
        assert last["kind"] == "stopped" and "format 99" in last["cause"]
    finally:
        description.write_text(text)
    assert shell(sprite, "cat file") == (0, "kept\n")
    node.client().delete_sprite(name)
