"""A host is lost in the middle of writes: the store has one state that the disk had, not older than was told."""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ballpoint.core import ids
from tests.crash.test_kill import inside, kill
from tests.node.test_recover import recovered
from tests.support.checkpoints import disk, new_sprite
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

# What a steady small writer loses at most (docs/durability.md), in milliseconds of the writer's own clock.
_PROMISED_MS = 10_000
_ROUNDS = 2

# One line every 20 ms, each fsynced before the next; and files that nobody syncs.
_WRITER = r"""
import os, time
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
n = 0
while True:
    os.write(log, b"%08d %d .\n" % (n, time.time_ns() // 1_000_000))
    os.fsync(log)
    with open(f"loose{n % 16}", "wb") as file:
        file.write(n.to_bytes(8, "big") * 512)
    n += 1
    time.sleep(0.02)
"""


def lines(sprite: Any) -> list[tuple[int, int]]:
    """What the log says: numbers and milliseconds. A torn line is no line."""
    code, said = shell(sprite, "cat log")
    assert code == 0, said
    found = []
    for line in said.splitlines():
        number, milliseconds, end = line.split(" ")
        assert end == "." and len(number) == 8, f"torn: {line!r}"
        found.append((int(number), int(milliseconds)))
    return found


def lose(node: TestNode) -> None:
    """The host stops at once: supervisor, node, and every process of every sprite; then its disk is gone."""
    victims = [pid for name in ("anchor", "agent", "init") for pid in inside(node, name)]
    node.kill()
    for pid in victims:
        try:
            kill(pid)
        except ProcessLookupError:
            continue  # it ended with its anchor
    node.down()
    shutil.rmtree(node.data)


@pytest.mark.parametrize("nth", range(_ROUNDS))
def test_what_the_store_has_is_whole_and_no_older_than_was_told(own_node: TestNode, tmp_path: Path, nth: int) -> None:
    seed = int(os.environ.get("BALLPOINT_SEED", "0")) or int(ids.new_instance_id(), 16)
    sys.stdout.write(f"BALLPOINT_SEED={seed}\n")
    chance = random.Random(seed + nth)
    objects = tmp_path / "objects"
    own_node.options += ["--store", objects.as_uri()]
    node = own_node.start()
    sprite = new_sprite(node)
    assert shell(sprite, f"cat > writer.py <<'END'\n{_WRITER}\nEND\nsetsid python3 writer.py >/dev/null 2>&1 &")[0] == 0
    began = lines_when(sprite)
    # Some saves go by; the moment of the loss is any.
    eventually(lambda: disk(node, sprite)["durable_at"] is not None, 60)
    threading.Event().wait(chance.uniform(6.0, 16.0))
    told = disk(node, sprite)
    (_, last) = lines(sprite)[-1]
    lose(node)

    recovered(node.data, objects)
    node.start()
    found = lines(node.client().get_sprite(sprite.name))
    assert [number for number, _ in found] == list(range(len(found)))
    durable = datetime.fromisoformat(told["durable_at"]).timestamp() * 1000
    # What was fsynced before a state that the store was said to have is in it.
    assert found[-1][1] >= durable - 20 - _pause(found)
    assert found[-1][1] >= began
    # Whatever holds up the writer may hold up the saving, too.
    assert last - found[-1][1] <= _PROMISED_MS + _pause(found)


def lines_when(sprite: Any) -> int:
    """When the log had its first line."""
    eventually(lambda: shell(sprite, "test -s log")[0] == 0)
    return lines(sprite)[0][1]


def _pause(found: list[tuple[int, int]]) -> int:
    """The longest that the writer was held up between two lines: by a save, or by others on its host."""
    times = [milliseconds for _, milliseconds in found]
    return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))
