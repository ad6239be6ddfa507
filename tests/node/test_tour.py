"""The README's tour, as a new user runs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, ballpoint
from tests.documents import TOUR
from tests.support.nodes import TestNode

pytestmark = [pytest.mark.node, pytest.mark.slow]

# It gets a package from the network.
_SECONDS = 250

# What the tour prints, less what apt does.
_SAID = re.compile(
    r"created tour\n.*Checkpoint v0 created\n"
    r"url +(?P<url>\S+)\nauth +public\n(?P<page>.*)put tour to sleep\n"
    r"NAME [^\n]*\ntour +(?P<asleep>\w+) [^\n]*\n(?P<again>.*)"
    r"NAME [^\n]*\ntour +(?P<awake>\w+) [^\n]*\nforked tour-two from tour@v0\n(?P<fork>.*)"
    r"destroyed tour\ndestroyed tour-two\n",
    re.DOTALL,
)


def test_the_tour(node: TestNode, tmp_path: Path) -> None:
    login = ballpoint(tmp_path, "login", node.url, SPRITE_TOKEN=node.token)
    assert login.returncode == 0, login.stderr
    done = subprocess.run(
        [TOUR], env={**os.environ, "HOME": str(tmp_path), "BALLPOINT": " ".join(COMMAND)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = _SAID.fullmatch(done.stdout)
    assert said is not None, done.stdout
    port = node.url.rpartition(":")[2]
    assert said["url"] == f"http://tour-{node.org}.sprites.localhost:{port}"
    assert (said["asleep"], said["awake"]) == ("cold", "running")
    # What figlet wrote in the first one is the page, before and after; the fork's figlet begins with the same word.
    assert said["page"].strip() and said["again"] == said["page"] and said["fork"].strip()
    for line, begins in zip(said["fork"].splitlines(), said["page"].splitlines(), strict=False):
        assert line.startswith(begins.rstrip())
    assert node.api("GET", "/v1/sprites?prefix=tour").json()["sprites"] == []
