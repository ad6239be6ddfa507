from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import ballpoint
from tests.support.nodes import TestNode


@pytest.fixture(scope="module")
def home(node: TestNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home who has logged in at the node."""
    made = tmp_path_factory.mktemp("home")
    done = ballpoint(made, "login", node.url, SPRITE_TOKEN=node.token)
    assert done.returncode == 0, done.stderr
    return made
