"""The walls of a running node are put back when somebody takes them away, and its sprites' events say so."""

from __future__ import annotations

import json
import subprocess

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


def causes(node: TestNode, name: str) -> dict[str, str]:
    """Kind of event -> its last cause."""
    lines = node.api("GET", f"/v1/sprites/{name}/events").text.splitlines()
    return {event["kind"]: event["cause"] for event in map(json.loads, lines)}
