"""Steps at which a test may kill a process: each is named where it is, so that a test can go through all of them.

A process whose environment has BALLPOINT_DIE_AT=STEP kills itself when it reaches STEP, as a power failure would; with
STEP@N, when it reaches it for the Nth time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

VARIABLE: Final = "BALLPOINT_DIE_AT"

_declared: list[str] = []
_last: list[Callable[[], None]] = []
_step, _, _count = os.environ.get(VARIABLE, "").partition("@")
_left = int(_count or 1)


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of `environment` that say where to end, for a child process that gets no others."""
    return {VARIABLE: environment[VARIABLE]} if VARIABLE in environment else {}


def declare(name: str) -> str:
    """A step of that name; once for each name, when its module is imported."""
    assert name not in _declared, name
    _declared.append(name)
    return name


def declared() -> list[str]:
    """The names of all steps of the modules that are imported."""
    return list(_declared)


def before_death(work: Callable[[], None]) -> None:
    """Have `work` done right before this process kills itself: for a test that lets more fail with it, as the host."""
    _last.append(work)


def reach(step: str) -> None:
    """Say that `step` is reached: what comes before it has been done, what comes after has not begun."""
    global _left
    if step != _step:
        return
    _left -= 1
    if not _left:
        for work in _last:
            work()
        os.kill(os.getpid(), signal.SIGKILL)
