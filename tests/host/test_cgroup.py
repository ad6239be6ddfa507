"""Where a node's cgroup is, and who else writes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host.cgroup import Cgroup, Hierarchies


@pytest.mark.host
@pytest.mark.usefixtures("root")
def test_a_group_at_the_top_is_made_everywhere_and_leaves_nothing() -> None:
    hierarchies = Hierarchies.detect()
    group = Cgroup(hierarchies, "ballpoint-test-top")
    before = (hierarchies.v2 / "cgroup.subtree_control").read_text()
    try:
        handed_down = group.make_at_the_top()
        assert not handed_down & set(before.split())
        assert group.make_at_the_top() == set()
        places = [hierarchies.v2, *hierarchies.v1.values()]
        assert all((place / group.path).is_dir() for place in places)
    finally:
        assert group.remove()
    hierarchies.take_back(handed_down)
    assert (hierarchies.v2 / "cgroup.subtree_control").read_text() == before


def test_somebody_who_takes_controllers_away_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    with pytest.raises(UnavailableError, match="taken away"):
        Cgroup(Hierarchies(tmp_path), "group").make_at_the_top()
