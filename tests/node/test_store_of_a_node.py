"""Whole nodes with a store: who sees its credentials, what is refused, and that sprites run without it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import BallpointError, ConflictError, InvalidError
from tests.store import servers
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node

_DEADLINE = 240


def processes_with(secret: str) -> set[int]:
    """Those of the host that were given it, by their environment or their arguments."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            told = (directory / "environ").read_bytes() + (directory / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if secret.encode() in told:
            found.add(int(directory.name))
    return found


def test_credentials_reach_the_node_and_nothing_else(
    own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"never-shown-{ids.new_secret()}"
    place = tmp_path / "server"
    place.mkdir()
    with servers.moto(place) as endpoint:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        own_node.options += ["--store", servers.store_url(endpoint, "node")]
        own_node.start()
        sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
        code, inside = shell(sprite, "env; sudo cat /proc/*/environ; cat /proc/*/cmdline")
        assert code in (0, 1) and "PATH=" in inside and secret not in inside
        assert own_node.process is not None
        # A child of the node has its memory, and so its environment, until it runs its own program: vfork(2).
        assert processes_with(secret) & processes_with(secret) == {own_node.process.pid, *own_node.processes("node")}
        own_node.terminate()
    assert secret not in own_node.log.read_text()
    kept = subprocess.run(["grep", "-rlF", secret, own_node.data, own_node.config.run], capture_output=True, text=True)
    assert kept.stdout == ""


def test_a_node_starts_and_runs_its_sprites_without_its_store(own_node: TestNode, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    own_node.options += ["--store", objects.as_uri()]
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo kept > file") == (0, "")
    own_node.terminate()
    objects.rename(tmp_path / "away")
    objects.write_text("in the way")
    own_node.start()
    again = own_node.client().get_sprite(sprite.name)
    assert shell(again, "cat file") == (0, "kept\n")
    assert own_node.api("POST", f"/v1/sprites/{sprite.name}/restart").is_success
    assert shell(again, "cat file") == (0, "kept\n")
    assert shell(own_node.client().create_sprite(f"t-{ids.new_instance_id()}"), "echo new") == (0, "new\n")


def refused(node: TestNode, error: type[BallpointError]) -> tuple[str, str]:
    """Start a node that must not serve. Returns the sentence that says why, and the hint after it."""
    command = [
        *node.program, "serve", "--data", str(node.data), "--cache", str(node.cache), "--image", "slim",
        "--listen", "127.0.0.1:0", "--pool", "0", *node.options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE)
    assert done.returncode == error.exit_code, done.stderr
    assert "serving on" not in done.stdout and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    (said,) = (line for line in lines if line.startswith("ballpoint: "))
    return said, lines[-1]


def test_a_store_in_use_is_refused_in_one_sentence(own_node: TestNode, tmp_path: Path) -> None:
    own_node.options += ["--store", (tmp_path / "objects").as_uri()]
    own_node.start()
    own_node.down()
    other = TestNode(tmp_path / "other" / "data", options=own_node.options)
    try:
        said, hint = refused(other, ConflictError)
    finally:
        other.down()
    assert said == "ballpoint: the store is in use by another deployment, or by an earlier life of this one"
    assert "ballpoint recover" in hint


def test_a_store_in_which_two_writers_win_is_refused_in_one_sentence(
    own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "server"
    place.mkdir()
    with servers.rclone(place) as endpoint:
        own_node.options += ["--store", servers.store_url(endpoint, "node")]
        said, hint = refused(own_node, InvalidError)
        assert said == "ballpoint: the store cannot be used: an object that exists was created again"
        assert "docs/store.md" in hint
        assert [path for path in (place / "objects").rglob("*") if path.is_file()] == []


def test_a_url_with_a_credential_is_refused_before_it_is_written(tmp_path: Path) -> None:
    secret = ids.new_secret()
    for verb in ("serve", "up"):
        command = [*TestNode(tmp_path / "data").program, verb, "--data", str(tmp_path / "data")]
        done = subprocess.run(
            [*command, "--store", f"s3://key:{secret}@bucket"],
            capture_output=True, text=True, timeout=_DEADLINE, env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode != 0 and secret not in done.stdout + done.stderr
        assert "environment" in done.stderr
    kept = subprocess.run(["grep", "-rlF", secret, tmp_path], capture_output=True, text=True)
    assert kept.stdout == ""
