"""What a node is told of mirrors and certificates reaches its sprites: new ones, and old ones at their next start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node

_CONFIGURATION = """
pip config list | sed -n "s/^global.index-url='\\(.*\\)'/\\1/p"
npm config get registry
apt-get update --print-uris | grep -o "http://[a-z.]*/debian" | sort -u
"""


def certificate(place: Path, name: str) -> Path:
    """A certificate nobody knows."""
    file = place / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout",
         place / f"{name}.key", "-out", file],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


def told(monkeypatch: pytest.MonkeyPatch, node: TestNode, name: str, ca: Path) -> None:
    """What an operator tells the node before he starts it."""
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{name}.example/pip")
    monkeypatch.setenv("npm_config_registry", f"http://{name}.example/npm/")
    node.options += ["--mirror", f"http://{name}.example/debian", "--ca-bundle", str(ca)]


def configuration(sprite: Any) -> list[str]:
    code, output = shell(sprite, _CONFIGURATION)
    assert code == 0, output
    return output.split()


def trusts(sprite: Any, ca: Path) -> bool:
    """Whether `ca` is in the bundle that every TLS client inside reads."""
    text = "".join(line for line in ca.read_text().splitlines() if "-" * 5 not in line)
    code, output = shell(sprite, f"tr -d '\\n' < /etc/ssl/certs/ca-certificates.crt | grep -cF {text}")
    assert code in (0, 1), output
    return code == 0


def test_mirrors_and_certificates(own_node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    of_old = ["http://old.example/pip", "http://old.example/npm/", "http://old.example/debian"]
    of_new = ["http://new.example/pip", "http://new.example/npm/", "http://new.example/debian"]
    told(monkeypatch, own_node, "old", old)
    own_node.start()
    client = own_node.client()
    untouched, changed = (client.create_sprite(f"t-{ids.new_instance_id()}") for _ in range(2))
    for sprite in (untouched, changed):
        assert configuration(sprite) == of_old
        assert (trusts(sprite, old), trusts(sprite, new)) == (True, False)
    mine = "printf '[global]\\nindex-url = http://mine.example/\\n' > /etc/pip.conf"
    assert shell(changed, mine, user="root")[0] == 0

    own_node.terminate()
    told(monkeypatch, own_node, "new", new)
    own_node.start()
    client = own_node.client()
    untouched, changed = (client.get_sprite(sprite.name) for sprite in (untouched, changed))
    assert configuration(untouched) == of_old  # it runs on
    for sprite in (untouched, changed):
        assert own_node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code == 200
        assert (trusts(sprite, old), trusts(sprite, new)) == (False, True)
        assert shell(sprite, "openssl verify -CApath /etc/ssl/certs /usr/local/share/ca-certificates/*.crt")[0] == 0
    assert configuration(untouched) == of_new
    assert configuration(changed) == ["http://mine.example/", *of_new[1:]]
    assert configuration(client.create_sprite(f"t-{ids.new_instance_id()}")) == of_new
