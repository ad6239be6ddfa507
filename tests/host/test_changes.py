"""Counts of changes that several processes share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ballpoint.host.changes import Changes


def test_what_one_counts_another_sees(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    writer, reader = Changes(path, counts=True), Changes(path, counts=False)
    seen = [(reader.settled, reader.look())]
    number = writer.begin()
    seen.append((reader.settled, reader.look()))
    writer.end(number)
    seen.append((reader.settled, reader.look()))
    assert [settled for settled, _ in seen] == [True, False, True]
    assert len({look for _, look in seen}) == 3


def test_another_process_counts_on(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    reader = Changes(path, counts=False)
    looks = {reader.look()}
    for number in range(1, 4):
        program = f"import pathlib; from ballpoint.host.changes import Changes; Changes(pathlib.Path({str(path)!r}), "
        subprocess.run([sys.executable, "-c", program + "counts=True).change()"], check=True)
        looks.add(reader.look())
        assert len(looks) == number + 1


def test_what_was_cut_off_shows_until_the_next_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    Changes(path, counts=True).begin()
    later = Changes(path, counts=True)
    before = later.settled
    later.change()
    assert (before, later.settled) == (False, True)


def test_who_only_reads_cannot_count(tmp_path: Path) -> None:
    reader = Changes(tmp_path / "changes", counts=False)
    with pytest.raises(TypeError):
        reader.begin()


def test_nobody_else_may_open_it(tmp_path: Path) -> None:
    Changes(tmp_path / "changes", counts=True)
    assert (tmp_path / "changes").stat().st_mode & 0o777 == 0o600
