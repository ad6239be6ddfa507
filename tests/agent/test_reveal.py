"""What the agent does with the helper that attaches checkpoints: nothing waits for one that does not end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.agent import reveal
from ballpoint.agent.inner import Inner
from ballpoint.agent.reveal import Reveal
from ballpoint.core.errors import InvalidError, UnavailableError
from tests.agent.world import descriptors


class Helper:
    """A program in the helper's place that notes what it was given, and then does what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "reveal"
        self._notes = folder / "notes"
        self.does("true")
        monkeypatch.setattr(reveal, "PROGRAM", str(self._path))

    def does(self, what: str) -> None:
        text = f'#!/bin/sh\necho "$@" $(cd /proc/self/fd && ls -d 3 4 2>/dev/null) >>{self._notes}\n{what}\n'
        self._path.write_text(text)
        self._path.chmod(0o755)

    @property
    def given(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    return Helper(tmp_path, monkeypatch)


@pytest.fixture
def shown() -> Iterator[Reveal]:
    before = descriptors().keys()
    pidfd = os.pidfd_open(os.getpid())
    yield Reveal(Inner(os.getpid(), pidfd, -1, None, None, None), [])
    os.close(pidfd)
    assert descriptors().keys() == before


@pytest.fixture
def mount() -> Iterator[int]:
    fd = os.open("/", os.O_PATH)
    yield fd
    os.close(fd)


async def test_each_is_attached_once_and_taken_off_once(helper: Helper, shown: Reveal, mount: int) -> None:
    for _ in range(2):
        await shown.show("v0", mount)
    await shown.show("v1", mount)
    assert shown.names == ["v0", "v1"]
    for _ in range(2):
        await shown.hide("v0")
    assert shown.names == ["v1"]
    assert helper.given == ["show v0 3 4", "show v1 3 4", "hide v0 3"]


async def test_what_failed_is_not_taken_for_done(helper: Helper, shown: Reveal, mount: int) -> None:
    helper.does("exit 30")
    with pytest.raises(UnavailableError, match="Read-only file system"):
        await shown.show("v0", mount)
    assert shown.names == []
    helper.does("kill -9 $$")
    with pytest.raises(UnavailableError, match="Killed"):
        await shown.show("v0", mount)
    helper.does("true")
    await shown.show("v0", mount)
    helper.does("exit 16")
    with pytest.raises(UnavailableError, match="busy"):
        await shown.hide("v0")
    assert shown.names == ["v0"]


async def test_a_helper_that_does_not_end_is_ended(
    helper: Helper, shown: Reveal, mount: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reveal, "_SECONDS", 0.1)
    helper.does("exec sleep 1000")
    with pytest.raises(UnavailableError, match="Killed"):
        await shown.show("v0", mount)
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * (reveal.NAME_MAX + 1)])
async def test_names_are_no_paths(helper: Helper, shown: Reveal, mount: int, name: str) -> None:
    with pytest.raises(InvalidError):
        await shown.show(name, mount)
    with pytest.raises(InvalidError):
        await shown.hide(name)
    assert helper.given == []
