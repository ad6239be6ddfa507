"""`policy/resources`: the limit of a sprite's memory is changed while it runs, and stays."""

from __future__ import annotations

from typing import Any

import pytest

from tests.inside.conftest import Make
from tests.support.nodes import TestNode, shell

pytestmark = pytest.mark.node

# 200 MiB of memory that is written to.
USE = "python3 -c 'b = bytearray(200 << 20); b[::4096] = b\"x\" * len(b[::4096]); print(len(b))'"
FITS, DOES_NOT = (0, f"{200 << 20}\n"), 128 + 9


@pytest.fixture
def sprite(make_sprite: Make) -> Any:
    return make_sprite()


def set_limit(node: TestNode, sprite: Any, megabytes: int) -> int:
    path = f"/v1/sprites/{sprite.name}/policy/resources"
    return node.api("POST", path, json={"memory": {"limit_mb": megabytes}}).status_code


def limit_of(node: TestNode, sprite: Any) -> Any:
    return node.api("GET", f"/v1/sprites/{sprite.name}/policy/resources").json()["memory"]


def test_a_limit_holds_at_once_and_after_a_restart(node: TestNode, sprite: Any) -> None:
    assert limit_of(node, sprite) is None
    assert shell(sprite, USE) == FITS
    shell(sprite, "nohup sleep 600 > /dev/null 2>&1 & echo $! > pid")
    assert set_limit(node, sprite, 128) == 204
    assert limit_of(node, sprite) == {"limit_mb": 128, "autoscale": False}
    assert shell(sprite, USE)[0] == DOES_NOT
    assert shell(sprite, "kill -0 $(cat pid)") == (0, "")
    assert node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code == 200
    assert shell(sprite, USE)[0] == DOES_NOT
    assert node.api("DELETE", f"/v1/sprites/{sprite.name}/policy/resources").status_code == 204
    assert limit_of(node, sprite) is None
    assert shell(sprite, USE) == FITS


def test_a_cold_sprite_starts_with_it(node: TestNode, sprite: Any) -> None:
    assert node.api("POST", f"/v1/sprites/{sprite.name}/sleep").status_code == 200
    assert set_limit(node, sprite, 128) == 204
    assert node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"] == "cold"
    assert shell(sprite, USE)[0] == DOES_NOT


def test_what_uses_more_is_ended_or_the_limit_is_refused(node: TestNode, sprite: Any) -> None:
    """Which of both, says the kernel: v2 of cgroups ends processes, v1 refuses."""
    shell(sprite, f"nohup bash -c {USE.replace('print(len(b))', 'import time; print(flush=True); time.sleep(600)')!r}"
                  " > out 2>&1 & until [ -s out ]; do sleep 0.05; done")  # fmt: skip
    status = set_limit(node, sprite, 64)
    running = shell(sprite, "pgrep -fc 'bytearray' || true")[1]
    if status == 409:
        assert limit_of(node, sprite) is None and int(running) > 0
        assert shell(sprite, USE) == FITS
    else:
        assert (status, limit_of(node, sprite)["limit_mb"]) == (204, 64)


def test_what_a_node_does_not_do(node: TestNode, sprite: Any) -> None:
    path = f"/v1/sprites/{sprite.name}/policy/resources"
    answer = node.api("POST", path, json={"memory": {"limit_mb": 128, "autoscale": True}})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid")
    assert limit_of(node, sprite) is None
