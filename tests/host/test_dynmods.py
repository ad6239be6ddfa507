"""Moves between cgroups are cheap while a node runs, and the host's own choice comes back with the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.host import dynmods
from ballpoint.host.cgroup import Hierarchies
from tests.support.host import alone


def options(v2: Path) -> set[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, words, *_ = line.split()
        if (place, kind) == (str(v2), "cgroup2"):
            return set(words.split(","))
    raise AssertionError(f"no unified hierarchy at {v2}")


@pytest.fixture
def hierarchies() -> Iterator[Hierarchies]:
    with alone():
        yield Hierarchies.detect()


def test_on_while_held_and_put_back_by_the_last(tmp_path: Path, hierarchies: Hierarchies) -> None:
    found = options(hierarchies.v2)
    dynmods.hold("first", tmp_path, hierarchies)
    dynmods.hold("first", tmp_path, hierarchies)
    dynmods.hold("second", tmp_path, hierarchies)
    assert options(hierarchies.v2) == found | {"favordynmods"}
    assert dynmods.drop("first", tmp_path, hierarchies)
    assert options(hierarchies.v2) == found | {"favordynmods"}
    assert dynmods.drop("second", tmp_path, hierarchies)
    assert options(hierarchies.v2) == found
    assert not dynmods.drop("second", tmp_path, hierarchies)


def test_where_it_was_on_it_stays_on(tmp_path: Path, hierarchies: Hierarchies) -> None:
    dynmods.hold("the host's own choice", tmp_path / "before", hierarchies)
    try:
        dynmods.hold("node", tmp_path / "nodes", hierarchies)
        dynmods.drop("node", tmp_path / "nodes", hierarchies)
        assert "favordynmods" in options(hierarchies.v2)
    finally:
        dynmods.drop("the host's own choice", tmp_path / "before", hierarchies)
