"""The product as pip installs it, from a place that nobody may write to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint import __version__
from ballpoint.core import ids
from ballpoint.image.catalogue import Image
from tests.support.host import traces
from tests.support.nodes import CACHE, TestNode, shell

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(900)]

_PROJECT = Path(__file__).parents[2]
# A fresh environment, every dependency in its pinned version. Seconds.
_INSTALL = 600
_DEADLINE = 120
_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def run(*command: str | Path, seconds: float = _DEADLINE) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=seconds, cwd="/", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(root: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The `ballpoint` command of an environment that is seen read-only by all that it starts."""
    place = tmp_path_factory.mktemp("installed")
    run("env", "-C", _PROJECT, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place)
    (wheel,) = place.glob("*.whl")
    environment = place / "environment"
    run(sys.executable, "-m", "venv", environment)
    pip = (environment / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    run(*pip, "--require-hashes", "-r", _PROJECT / "requirements/runtime.txt", seconds=_INSTALL)
    run(*pip, "--no-deps", wheel)
    return ("unshare", "--mount", "sh", "-c", _READ_ONLY, str(environment), str(environment / "bin/ballpoint"))


@pytest.fixture
def installed(program: tuple[str, ...], slim_image: Image, tmp_path: Path) -> Iterator[TestNode]:
    """A node of that command, with the host's images and no compiled helper."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/images").symlink_to(CACHE / "images")
    made = TestNode(tmp_path / "data", program=program, cache=tmp_path / "cache")
    try:
        yield made
    finally:
        made.down()
    assert traces(made.id, made.data) == dict.fromkeys(traces(made.id, made.data), [])


def test_the_command_tells_of_itself(program: tuple[str, ...]) -> None:
    assert __version__ in run(*program, "--version")
    told = run(*program, "--help")
    assert all(name in told for name in ("create", "doctor", "serve", "up"))
    assert {check["state"] for check in json.loads(run(*program, "doctor", "--json"))} <= {"ok", "optional", "warning"}
    assert "slim" in run(*program, "image", "list", "--cache", CACHE)


def test_a_node_of_it_runs_a_sprite(installed: TestNode) -> None:
    installed.start()
    sprite = installed.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo $((6 * 7))") == (0, "42\n")
    (helpers,) = [path for path in (installed.cache / "helpers").iterdir() if path.is_dir()]
    assert (helpers / "anchor").exists()
