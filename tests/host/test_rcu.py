"""Grace periods are expedited where they are waited for, and the host's own choice stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.host import rcu
from tests.support.waiting import eventually


@pytest.fixture
def knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A knob of this test alone: other nodes of the host may turn the real one at any time."""
    file = tmp_path / "rcu_expedited"
    file.write_text("0\n")
    monkeypatch.setattr(rcu, "EXPEDITED", file)
    yield file


def test_within_it_is_on_and_then_as_before(knob: Path) -> None:
    with rcu.expedited():
        assert knob.read_text() == "1"
        with rcu.expedited():
            assert knob.read_text() == "1"
        assert knob.read_text() == "1"
    assert knob.read_text() == "0"


def test_what_is_done_within_may_fail(knob: Path) -> None:
    with pytest.raises(OSError, match="no"), rcu.expedited():
        raise OSError("no")
    assert knob.read_text() == "0"


def test_a_host_that_has_it_on_keeps_it(knob: Path) -> None:
    knob.write_text("1\n")
    with rcu.expedited():
        pass
    assert knob.read_text() == "1\n"


def test_a_kernel_without_it_is_no_error(knob: Path) -> None:
    knob.unlink()
    with rcu.expedited():
        assert not knob.exists()


def test_a_host_that_refuses_it_is_told_once(
    knob: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(2):
        with rcu.expedited():
            pass
    assert [each.levelname for each in caplog.records] == ["WARNING"]


def test_the_last_node_puts_back_what_a_process_left_that_died(knob: Path, tmp_path: Path) -> None:
    rcu.hold("first", tmp_path)
    rcu.hold("second", tmp_path)
    knob.write_text("1")  # as one that was killed while it froze something
    assert rcu.drop("first", tmp_path)
    assert knob.read_text() == "1"
    assert rcu.drop("second", tmp_path)
    assert knob.read_text() == "0"
    assert not rcu.drop("second", tmp_path)


def test_a_node_that_starts_puts_back_what_a_process_left_that_died(knob: Path, tmp_path: Path) -> None:
    rcu.hold("first", tmp_path)
    knob.write_text("1")
    rcu.hold("second", tmp_path)
    assert knob.read_text() == "0"


def test_the_kernel_has_the_knob_and_takes_it() -> None:
    program = "from ballpoint.host import rcu\nwith rcu.expedited(): print(rcu.EXPEDITED.read_text().strip())"

    def takes() -> bool:
        """A node's freezer may put back what it found just now."""
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout == "1\n"

    eventually(takes)
