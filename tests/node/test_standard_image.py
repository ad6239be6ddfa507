"""The image that a real node runs: each agent and each tool that its recipe promises, in a sprite."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.image.catalogue import Catalogue
from ballpoint.image.recipe import Recipe, load_recipe
from tests.support.host import traces
from tests.support.nodes import CACHE, TestNode, shell

# A host that has no such image yet builds it here.
pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]

# package of the recipe -> a command that works where it is installed, and says something of its version
SAYS = {
    "@anthropic-ai/claude-code": "claude --version",
    "@google/gemini-cli": "gemini --version",
    "@openai/codex": "codex --version",
    "bind9-dnsutils": "dig -v",
    "build-essential": "gcc --version && g++ --version && make --version",
    "cargo": "cargo --version",
    "cmake": "cmake --version",
    "file": "file --version",
    "fish": "fish --version",
    "fuse3": "fusermount3 --version",
    "gdb": "gdb --version",
    "gh": "gh --version",
    "golang-go": "go version",
    "htop": "htop --version",
    "jq": "jq --version",
    "man-db": "man --version",
    "nano": "nano --version",
    "netcat-openbsd": "nc -h",
    "node": "node --version",
    "npm": "npm --version",
    "pipx": "pipx --version",
    "pkg-config": "pkg-config --version",
    "python3-dev": "python3-config --includes",
    "ripgrep": "rg --version",
    "rsync": "rsync --version",
    "ruby": "ruby --version",
    "ruby-dev": "ruby -rmkmf -e 'puts $hdrdir'",  # mkmf gives up where it finds no ruby.h
    "rustc": "rustc --version",
    "socat": "socat -V",
    "sqlite3": "sqlite3 --version",
    "strace": "strace --version",
    "tcpdump": "tcpdump --version",
    "tmux": "tmux -V",
    "tree": "tree --version",
    "wget": "wget --version",
    "zsh": "zsh --version",
}


@pytest.fixture
def standard_node(root: None, tmp_path: Path) -> Iterator[TestNode]:
    Catalogue(CACHE).ensure("standard", mirror=None, progress=lambda _: None)
    made = TestNode(tmp_path / "data", options=["--image", "standard"])
    try:
        yield made.start()
    finally:
        made.down()
    assert traces(made.id, made.data) == dict.fromkeys(traces(made.id, made.data), [])


def pinned(recipe: Recipe) -> dict[str, str | None]:
    """npm packages of a recipe -> the version it asks for. Node.js, named after the processor there, is `node`."""
    found = {}
    for package in (package for stage in recipe.npm for package in stage):
        name, at, version = package.rpartition("@")
        name, wanted = (name, version) if name else (at + version, None)
        found["node" if name.startswith("node-linux-") else name] = wanted
    return found


def test_no_package_is_left_out() -> None:
    standard, slim = load_recipe("standard"), load_recipe("slim")
    assert set(SAYS) == set(standard.packages) - set(slim.packages) | set(pinned(standard))


def test_every_agent_and_tool_says_its_version(standard_node: TestNode) -> None:
    npm = pinned(load_recipe("standard"))
    sprite = standard_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "id -un") == (0, "sprite\n")
    failed = {}
    for package, command in SAYS.items():
        code, said = shell(sprite, f"set -e -o pipefail; {command}")
        wanted = npm.get(package)
        version = re.search(r"\d+(\.\d+)+", said)
        if code != 0 or version is None or not (wanted is None or version[0].startswith(f"{wanted}.")):
            failed[package] = (code, said)
    assert failed == {}
