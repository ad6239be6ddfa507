"""A log that is emptied under its writers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballpoint.host import logfile


def test_a_full_log_is_kept_once_and_its_writers_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fd = logfile.open_log(log)
    try:
        os.write(fd, b"first\n")
        assert not logfile.bound(log, len(b"first\n"))
        os.write(fd, b"second\n")
        assert logfile.bound(log, len(b"first\n"))
        assert (log.read_bytes(), logfile.previous(log).read_bytes()) == (b"", b"first\nsecond\n")
        os.write(fd, b"third\n")
        assert log.read_bytes() == b"third\n"
        assert logfile.bound(log, 0)
        os.write(fd, b"fourth\n")
    finally:
        os.close(fd)
    assert (log.read_bytes(), logfile.previous(log).read_bytes()) == (b"fourth\n", b"third\n")
    assert set(tmp_path.iterdir()) == {log, logfile.previous(log)}


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    """Also one that was everybody's."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    log.chmod(0o644)
    fd = logfile.open_log(log)
    os.write(fd, b"after\n")
    os.close(fd)
    assert log.read_bytes() == b"before\nafter\n"
    assert logfile.bound(log, 0)
    assert {path.stat().st_mode & 0o777 for path in (log, logfile.previous(log))} == {logfile.MODE}


def test_what_cannot_be_copied_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"said\n")
    logfile.previous(log).mkdir()
    with pytest.raises(OSError):
        logfile.bound(log, 0)
    assert log.read_bytes() == b"said\n"


def test_there_need_be_no_log(tmp_path: Path) -> None:
    assert not logfile.bound(tmp_path / "none", 0)
