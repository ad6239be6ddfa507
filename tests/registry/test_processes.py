"""Several processes at once on one database: a node, and the commands an operator types beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ballpoint.registry import database
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry


class Rival:
    """A process of `tests.registry.rival`. `tell` all of them first and `hear` then: they work at the same time."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.registry.rival", url]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, *order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rivals(file: Path) -> Iterator[list[Rival]]:
    """Three processes that are up, with the database not made yet."""
    with ExitStack() as stack:
        made = [Rival(url_of(file)) for _ in range(3)]
        for rival in made:
            stack.callback(rival.kill)
        yield made


def _at_once(rivals: list[Rival], *order: Any) -> list[Any]:
    for rival in rivals:
        rival.tell(*order)
    return [rival.hear() for rival in rivals]


async def test_processes_share_one_truth(rivals: list[Rival], file: Path) -> None:
    assert _at_once(rivals, "open") == [None] * 3  # each would make and migrate it
    org_ids = set(_at_once(rivals, "token", "acme"))
    assert len(org_ids) == 1
    org_id = org_ids.pop()

    wanted = [f"n{number}" for number in range(40)]
    won = _at_once(rivals, "create", org_id, wanted)
    assert Counter(sum(won, [])) == dict.fromkeys(wanted, 1)

    registry = await Registry.open(url_of(file))
    made = await registry.all_sprites()
    assert {sprite.name for sprite in made} == set(wanted)
    numbers: list[int] = sum(_at_once(rivals, "events", made[0].id, 30), [])
    assert [event.id for event in (await registry.events(made[0].id))[1:]] == sorted(numbers)

    info, text = await registry.create_token("acme", "")
    assert _at_once(rivals, "authenticate", text) == [True] * 3
    await registry.revoke_token(info.id)
    assert _at_once(rivals, "authenticate", text) == [False] * 3
    await registry.close()


async def test_several_may_be_the_first_to_open_it(tmp_path: Path) -> None:
    """In threads, which meet more often than processes: of 4 that open a new file, SQLite refuses one now and then."""
    together = threading.Barrier(4)

    def opened(file: Path) -> None:
        together.wait(60)
        engine = database._engine(url_of(file))
        engine.connect().close()
        engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        for number in range(100):
            done = [threads.submit(opened, tmp_path / f"{number}.db") for _ in range(4)]
            assert [each.result(120) for each in done] == [None] * 4


async def test_what_was_answered_outlives_a_kill(rivals: list[Rival], file: Path) -> None:
    rival = rivals[0]
    for order in (("open",), ("token", "acme")):
        rival.tell(*order)
        org_id = rival.hear()
    for number in range(5):
        rival.tell("create", org_id, [f"n{number}"])
        assert rival.hear() == [f"n{number}"]
    rival.tell("create", org_id, [f"m{number}" for number in range(1000)])
    rival.kill()
    registry = await Registry.open(url_of(file))
    found = [sprite.name for sprite in await registry.all_sprites()]
    assert found[:5] == [f"n{number}" for number in range(5)]
    assert found[5:] == [f"m{number}" for number in range(len(found) - 5)]
    await registry.close()
