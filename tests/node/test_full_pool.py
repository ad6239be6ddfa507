"""A pool that ten writers fill while their disks are saved: no byte of what a writer was told is lost."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.checkpoints import checkpoint, content, events, kinds, new_sprite, post, restore, write
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

# Of a pool of 1 GiB a quarter is kept back (docs/volume-layout.md): the writers want more than the rest, and fit once
# the ballast has gone.
_SPRITES, _FILES, _BALLAST = 10, 56, 300
_DEADLINE = 240

# Files of 1 MiB whose content follows from their number. What it was told lies in memory, not on the disk.
_WRITER = """
import os, random, sys
told = open("/dev/shm/told", "w", buffering=1)
for n in range(int(sys.argv[1])):
    with open(f"f{n}", "wb") as file:
        file.write(random.Random(n).randbytes(1 << 20))
        if sys.argv[2] == "fsync":
            file.flush()
            os.fsync(file.fileno())
    print(n, file=told)
print("done", file=told)
"""

_CHECKER = """
import random, sys
bad = [n for n in range(int(sys.argv[1])) if open(f"f{n}", "rb").read() != random.Random(n).randbytes(1 << 20)]
print("bad:", bad)
"""


def health(node: TestNode, sprite: Any) -> Any:
    return node.api("GET", f"/v1/sprites/{sprite.name}").json()


def told(node: TestNode, sprite: Any) -> list[str]:
    """What a writer was told so far; nothing where its sprite answers nobody now."""
    try:
        answer = post(node, sprite, "exec", params={"cmd": ["cat", "/dev/shm/told"]})
    except httpx2.TimeoutException:  # its disk was stopped a moment before that could be said
        return []
    if answer.status_code != 200:
        assert answer.json()["error"] == "degraded", answer.text
        return []
    return answer.content.decode(errors="replace").split()


@pytest.mark.timeout(600)
def test_what_ten_writers_were_told_is_there(own_node: TestNode) -> None:
    node = own_node
    node.options += ["--pool-gb", "1"]
    node.start()
    ballast = new_sprite(node)
    assert shell(ballast, f"head -c {_BALLAST}M /dev/urandom > ballast; sync")[0] == 0
    sprites = [new_sprite(node) for _ in range(_SPRITES)]
    for sprite in sprites:
        write(sprite, "empty")
        assert checkpoint(node, sprite) == "v0"
    for nth, sprite in enumerate(sprites):
        how = "fsync" if nth % 2 else "none"
        for name, text in (("writer", _WRITER), ("checker", _CHECKER)):
            assert shell(sprite, f"cat > {name}.py <<'END'\n{text}\nEND")[0] == 0
        assert shell(sprite, f"setsid python3 writer.py {_FILES} {how} >/dev/null 2>&1 &")[0] == 0

    eventually(lambda: any("pool full" in (health(node, each)["health_reason"] or "") for each in sprites), _DEADLINE)
    assert node.api("DELETE", f"/v1/sprites/{ballast.name}").status_code == 204
    for sprite in sprites:
        eventually(lambda sprite=sprite: "done" in told(node, sprite), _DEADLINE)  # type: ignore[misc]
    assert any("degraded" in kinds(node, sprite) for sprite in sprites)

    for nth, sprite in enumerate(sprites):
        if nth % 3 == 0:  # what was in memory only must have come to the disk
            assert post(node, sprite, "restart").is_success
        assert shell(sprite, f"python3 checker.py {_FILES}") == (0, "bad: []\n"), events(node, sprite)
    for sprite in sprites:
        saved = post(node, sprite, "sync")
        assert saved.is_success, saved.text
    assert restore(node, sprites[0], "v0")
    assert content(sprites[0]) == "empty"
