"""A process killed anywhere within a step of the pool: the next one finds the step done or not begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ballpoint.host import loop
from ballpoint.volume.pool import VolumePool
from tests.volume.dying import populate
from tests.volume.world import path

pytestmark = [pytest.mark.host, pytest.mark.slow]


def run(data: Path, step: str, last: int) -> int | None:
    """Run `step` until its event number `last`; the number of all its events if it has fewer (of some, such as the
    loop devices of others that it looks at, there may be more or fewer each time)."""
    command = [sys.executable, "-m", "tests.volume.dying", str(data), step, str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return int(done.stdout)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return None


@pytest.mark.parametrize("step", ["open", "create", "template", "attach", "destroy"])
def test_a_step_killed_anywhere_is_done_or_not_begun(step: str, tmp_path: Path) -> None:
    if step != "open":
        with_old_volume(tmp_path)
    last = 0
    outcomes = set()
    finished = None
    while finished is None:
        last += 1
        finished = run(tmp_path, step, last)
        outcomes.add(found_whole(tmp_path))
        if step == "open":
            (tmp_path / "pool.img").unlink(missing_ok=True)
    assert finished < last
    changed = {"create": ("volumes", 2), "destroy": ("volumes", 0), "template": ("templates", 2)}
    if step in changed:
        kind, number = changed[step]
        counts = {dict(outcome)[kind] for outcome in outcomes}
        assert counts == {1, number}


def with_old_volume(data: Path) -> None:
    pool = VolumePool.open(data, pool_gb=1)
    pool.ensure_template("base", 1, populate)
    pool.create("old", template="base", meta={})
    pool.close()


def found_whole(data: Path) -> tuple[tuple[str, int], ...]:
    """Open the pool again: everything in it is whole, and nothing else is left. Then put back what was there before."""
    pool = VolumePool.open(data, pool_gb=1)
    for name in ("staging", "trash"):
        assert list((pool.root / name).iterdir()) == []
    templates = [each.stem for each in (pool.root / "templates").iterdir()]
    if "second" in templates:
        pool.create("of-second", template="second", meta={})
    for name in pool.volumes():
        loop.wait_released(pool.volumes_directory / name / "disk.img", 10)
        volume = pool.attach(name)
        assert path(volume.mount, "upper/hello").read_text() == "hello"
        volume.detach()
        assert pool.meta(name).get("image") == ("digest" if name == "new" else None)
    pool.destroy("of-second")
    found = (("volumes", len(pool.volumes())), ("templates", len(templates)))
    pool.destroy("new")
    pool.drop_templates({"base"})
    if "base" in templates and "old" not in pool.volumes():
        pool.create("old", template="base", meta={})
    pool.close()
    loop.wait_released(data / "pool.img", 10)
    assert loop.find_by_backing(data / "pool.img") is None
    return found


def test_a_volume_outlives_the_process_that_attached_it(tmp_path: Path) -> None:
    """What a sprite still uses stays attached through a kill of the node, and is adopted; then it can be let go."""
    with_old_volume(tmp_path)
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.volume.dying", str(tmp_path), "hand-over", "0"], stdout=subprocess.PIPE, text=True
    )
    with node:
        assert node.stdout is not None
        sprite = int(node.stdout.readline())
        try:
            assert node.wait(30) == -signal.SIGKILL
            pool = VolumePool.open(tmp_path, pool_gb=1)
            volume = pool.adopt("old")
            assert volume is not None
            assert path(volume.mount, "upper/hello").read_text() == "hello"
        finally:
            os.kill(sprite, signal.SIGKILL)
        volume.detach()
    assert pool.adopt("old") is None
    pool.close()
    loop.wait_released(tmp_path / "pool.img", 10)
