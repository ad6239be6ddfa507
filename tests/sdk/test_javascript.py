"""The official JavaScript SDK against a real node, on the Node.js it asks for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.sdk.conftest import JS
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

_RUN_SECONDS = 280.0


def test_versions(packages: Path) -> None:
    """What is tested is what the lock names, on a Node.js that the SDK wants."""
    locked = json.loads((JS / "package-lock.json").read_text())["packages"]
    shown = subprocess.run(
        [packages / ".bin/node", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.strip() in {f"v{each['version']}" for name, each in locked.items() if "/node-linux-" in name}
    installed = json.loads((packages / "@fly/sprites/package.json").read_text())
    assert installed["version"] == locked["node_modules/@fly/sprites"]["version"]
    assert installed["engines"] == {"node": ">=24.0.0"}


@pytest.mark.slow
def test_every_name(node: TestNode, packages: Path) -> None:
    done = subprocess.run(
        [packages / ".bin/node", JS / "driver.mjs", packages / "@fly/sprites"],
        env={**os.environ, "BALLPOINT_URL": node.url, "BALLPOINT_TOKEN": node.token},
        capture_output=True, text=True, timeout=_RUN_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    failed = {line["name"]: line["error"] for line in lines if not line["ok"]}
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())
    assert lines
