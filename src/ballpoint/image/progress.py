"""How far a build has come, read from what mmdebstrap says."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """How far a build has come.

    Attributes:
        step: what is being done, for people.
        fraction: from 0 to 1; never falls.
    """

    step: str
    fraction: float


# mmdebstrap's messages in the order it prints them: (text, fraction at which the step begins, its name). Measured.
_STEPS = (
    ("running apt-get update", 0.01, "downloading package lists"),
    ("downloading packages with apt", 0.04, "downloading the base system"),
    ("extracting archives", 0.07, "unpacking the base system"),
    ("installing essential packages", 0.12, "installing the base system"),
    ("installing remaining packages", 0.20, "installing packages"),
    ("cleaning package lists", 0.95, "cleaning up"),
)
# apt-get(8) counts what it will install; then it prints a line for each package fetched, unpacked and set up.
_COUNT = re.compile(r"\d+ upgraded, (\d+) newly installed")
_ONE = re.compile(r"Get:\d+ |Unpacking |Setting up ")
_LINES_PER_PACKAGE = 3


class Reporter:
    """Turns a build's events into progress that never falls.

    Args:
        progress: is told of each.
        bootstrap: share of the whole build that the Debian packages take; what comes after them has the rest.
    """

    def __init__(self, progress: Callable[[Progress], None], bootstrap: float) -> None:
        self._progress = progress
        self._bootstrap = bootstrap
        self._reached = 0.0
        self._step = -1
        self._expected = 0
        self._seen = 0

    def line(self, line: str) -> None:
        """Take a line of mmdebstrap's output."""
        if line.startswith("I: "):
            for number, (text, fraction, name) in enumerate(_STEPS):
                if text in line:
                    self._step, self._expected, self._seen = number, 0, 0
                    self.step(name, fraction * self._bootstrap)
                    return
        elif self._step >= 0 and (counted := _COUNT.match(line)):
            self._expected = int(counted[1]) * _LINES_PER_PACKAGE
        elif self._expected and _ONE.match(line):
            self._seen = min(self._seen + 1, self._expected)
            _, start, name = _STEPS[self._step]
            end = _STEPS[self._step + 1][1] if self._step + 1 < len(_STEPS) else 1.0
            self.step(name, (start + (end - start) * self._seen / self._expected) * self._bootstrap)

    def step(self, name: str, fraction: float) -> None:
        """Say that `name` is being done, at `fraction` of the whole."""
        self._reached = max(self._reached, fraction)
        self._progress(Progress(name, self._reached))
