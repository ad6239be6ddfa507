"""Whole nodes with a store: who sees its credentials, what is refused, and that sprites run without it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.core.errors import ConflictError
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
        assert processes_with(secret) == {own_node.process.pid, *own_node.processes("node")}
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


def test_a_store_in_use_is_refused_in_one_sentence(own_node: TestNode, tmp_path: Path) -> None:
    own_node.options += ["--store", (tmp_path / "objects").as_uri()]
    own_node.start()
    own_node.down()
    other = TestNode(tmp_path / "other" / "data", options=own_node.options)
    command = [
        *other.program, "serve", "--data", str(other.data), "--cache", str(other.cache), "--image", "slim",
        "--listen", "127.0.0.1:0", "--pool", "0", *other.options,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE)
    finally:
        other.down()
    assert done.returncode == ConflictError.exit_code
    assert "serving on" not in done.stdout and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("ballpoint: ")]
    assert said == ["ballpoint: the store is in use by another deployment, or by an earlier life of this one"]
    assert "ballpoint recover" in done.stderr.splitlines()[-1]


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
