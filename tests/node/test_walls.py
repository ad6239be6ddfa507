"""The walls of a running node are put back when somebody takes them away, and its sprites' events say so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ballpoint.core import ids
from ballpoint.host import nft
from ballpoint.network import rules
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


def test_rules_that_somebody_removes_come_back(own_node: TestNode) -> None:
    own_node.start()
    table = rules.table(own_node.id)
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    before = nft.shape(table, rules.LOOSE)
    assert before
    # Its own table only: the host's other nodes have theirs, which a `flush ruleset` takes along.
    subprocess.run(["nft", "delete", "table", "inet", table], check=True, timeout=30)
    eventually(lambda: "network mended" in causes(own_node, sprite.name))
    assert "nft (process " in causes(own_node, sprite.name)["network mended"]
    assert nft.shape(table, rules.LOOSE) == before
    assert shell(sprite, "getent hosts localhost")[0] == 0
    # As after a restart: what was changed while nobody watched.
    own_node.kill()
    subprocess.run(["nft", "delete", "table", "inet", table], check=True, timeout=30)
    own_node.start()
    assert nft.shape(table, rules.LOOSE) == before


def test_rules_that_cannot_be_put_back_close_the_links_until_they_can(own_node: TestNode, tmp_path: Path) -> None:
    """The node sees a host without nft(8): its PATH is fixed, so its mount namespace has another file in that place."""
    own_node.start()
    table = rules.table(own_node.id)
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    before = nft.shape(table, rules.LOOSE)
    (process,) = own_node.processes("node")
    tool = shutil.which("nft")
    assert tool is not None
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    broken.chmod(0o755)
    inside = ["nsenter", "--mount", f"--target={process}"]
    place = os.path.realpath(tool)
    subprocess.run([*inside, "mount", "--bind", broken, place], check=True, timeout=30)
    subprocess.run(["nft", "delete", "table", "inet", table], check=True, timeout=30)
    eventually(lambda: "network closed" in causes(own_node, sprite.name))
    # And there are some; a blank that was just being connected has a link for a moment more.
    eventually(lambda: set(states(own_node.id)) == {"down"})
    assert nft.shape(table, rules.LOOSE) == b""
    assert "network open" not in causes(own_node, sprite.name)

    subprocess.run([*inside, "umount", place], check=True, timeout=30)
    eventually(lambda: "network open" in causes(own_node, sprite.name))
    assert set(states(own_node.id)) == {"up"}
    assert nft.shape(table, rules.LOOSE) == before


def states(node_id: str) -> list[str]:
    """Whether each link of the node's is up, as its administrator has set it."""
    listed = subprocess.run(
        ["ip", "-json", "link", "show", "group", str(rules.group(node_id))],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip
    # Links of other groups are listed as empty objects.
    return ["up" if "UP" in link["flags"] else "down" for link in json.loads(listed) if link]


def causes(node: TestNode, name: str) -> dict[str, str]:
    """Kind of event -> its last cause."""
    lines = node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()
    return {event["kind"]: event["cause"] for event in map(json.loads, lines)}
