"""A host is lost in the middle of writes: the store has one state that the disk had, not older than was told."""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.crash.test_kill import inside, kill
from tests.node.test_recover import recovered
from tests.support.checkpoints import disk, new_sprite
from tests.support.host import children, only_child
from tests.support.nodes import TestNode, shell
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

# What a steady small writer loses at most (docs/durability.md), in milliseconds of the writer's own clock.
_PROMISED_MS = 10_000
_ROUNDS = 2
# A save's time and the pause after it, as multiples of that time (docs/durability.md).
_SPACED = 21

_LOOSE, _BLOCK = 16, 4096

# One line every 20 ms, each fsynced before the next; and files that nobody syncs.
_WRITER = rf"""
import os, time
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
n = 0
while True:
    os.write(log, b"%08d %d .\n" % (n, time.time_ns() // 1_000_000))
    os.fsync(log)
    with open(f"loose{{n % {_LOOSE}}}", "wb") as file:
        file.write(n.to_bytes(8, "big") * {_BLOCK // 8})
    n += 1
    time.sleep(0.02)
"""

# Which number each of those files has in it, whole; -1: none, as one is that is written right now.
_LOOSE_FILES = rf"""
for slot in range({_LOOSE}):
    content = open(f"loose{{slot}}", "rb").read()
    number = int.from_bytes(content[:8], "big")
    assert content in (b"", number.to_bytes(8, "big") * {_BLOCK // 8}), f"loose{{slot}} is torn"
    assert not content or number % {_LOOSE} == slot, f"loose{{slot}} has {{number}}"
    print(number if content else -1)
"""


def lines(text: str) -> list[int]:
    """The milliseconds that a log says, at the places of its numbers. A torn line is no line."""
    found = []
    for number, line in enumerate(text.splitlines(keepends=True)):
        told = re.fullmatch(r"(\d{8}) (\d+) \.\n", line)
        assert told is not None and int(told[1]) == number, f"line {number}: {line!r}"
        found.append(int(told[2]))
    return found


def said(sprite: Any, script: str) -> str:
    code, output = shell(sprite, script)
    assert code == 0, output
    return output


def longest_answer(node: TestNode, sprite: Any, seconds: float) -> int:
    """Ask a node for a time. Returns how many milliseconds it needed at most."""
    longest, deadline = 0.0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.monotonic()
        disk(node, sprite)
        longest = max(longest, time.monotonic() - began)
        threading.Event().wait(0.05)
    return int(longest * 1000)


def lose(node: TestNode, log: str) -> str:
    """The host stops at once: supervisor, node, and every process of every sprite; then its disk is gone.

    Returns:
        What the file `log` of the only sprite said at the end.
    """
    (anchor,) = inside(node, "anchor")
    inner = next(pid for pid in children(only_child(anchor)) if Path(f"/proc/{pid}/comm").read_text() == "init\n")
    victims = [pid for name in ("anchor", "agent", "init") for pid in inside(node, name)]
    with Path(f"/proc/{inner}/root{log}").open() as file:
        node.kill()
        for pid in victims:
            try:
                kill(pid)
            except ProcessLookupError:
                continue  # it ended with its anchor
        eventually(lambda: inside(node, "python3") == [])
        written = file.read()
    node.down()
    shutil.rmtree(node.data)
    return written


@pytest.mark.parametrize("nth", range(_ROUNDS))
def test_what_the_store_has_is_whole_and_no_older_than_was_told(
    own_node: TestNode, tmp_path: Path, kept_image: Path, nth: int
) -> None:
    chance = random.Random(fresh_seed() + nth)
    objects = tmp_path / "objects"
    objects.mkdir()
    (objects / "images").symlink_to(kept_image)  # a node that puts its image there has less time for disks
    own_node.options += ["--store", objects.as_uri()]
    node = own_node.start()
    sprite = new_sprite(node)
    log = said(sprite, "realpath log").strip()
    said(sprite, f"cat > writer.py <<'END'\n{_WRITER}\nEND\nsetsid python3 writer.py >/dev/null 2>&1 &")
    # Some saves go by; the moment of the loss is any.
    eventually(lambda: shell(sprite, f"test -s loose{_LOOSE - 1}")[0] == 0)
    began = disk(node, sprite)["durable_at"]
    eventually(lambda: disk(node, sprite)["durable_at"] not in (None, began), 60)
    answered = longest_answer(node, sprite, chance.uniform(0.0, 10.0))
    told = disk(node, sprite)
    written = lines(lose(node, log))

    recovered(node.data, objects)
    node.start()
    again = node.client().get_sprite(sprite.name)
    found = lines(said(again, "cat log"))
    assert found == written[: len(found)]
    # What was written before the time of a state that the store was said to have is in it. A line says when it was
    # begun, and so that the one before it was written whole.
    durable = datetime.fromisoformat(told["durable_at"]).timestamp() * 1000
    before = sum(milliseconds < durable for milliseconds in written) - 1
    assert 0 < before <= len(found)
    loose = [int(line) for line in said(again, f"python3 - <<'END'\n{_LOOSE_FILES}\nEND").split()]
    assert any(number >= 0 for number in loose)
    for slot, number in enumerate(loose):
        assert number == -1 or number > before - 1 - _LOOSE, f"loose{slot} is old"
    # Whatever holds up the writer or the node may hold up the saving, too: a save, or others on its host. And a save
    # that took long, the next one by twenty times as long.
    pause = max(later - earlier for earlier, later in zip(written, written[1:], strict=False))
    assert written[-1] - found[-1] <= _PROMISED_MS + _SPACED * max(pause, answered)
