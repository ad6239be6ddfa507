"""The JavaScript of docs/clients.md, as it stands there; `tests/docs/` runs the Python."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.documents import DOCS
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

_SECONDS = 120.0


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (DOCS / "clients.md").read_text(), re.DOTALL)
    return str(found)


def said(node: TestNode, command: list[str | Path]) -> str:
    environment = {**os.environ, "SPRITES_API_URL": node.url, "SPRITE_TOKEN": node.token}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_javascript(node: TestNode, packages: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "example.mjs").write_text(example("js"))
    assert said(node, [packages / ".bin/node", tmp_path / "example.mjs"]).strip() == "hello"
