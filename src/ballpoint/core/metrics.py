"""What a process counts and measures, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True)
class Sample:
    """One number.

    Attributes:
        name: in the form of Prometheus, with its unit at the end.
        help: what it is, in one line.
    """

    name: str
    kind: Kind
    help: str
    value: float


class Counter:
    """A number that only grows, from 0 at the start of the process."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, number: float = 1) -> None:
        self.value += number


class Metrics:
    """The numbers of one process, by their names."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[Kind, str, Callable[[], float]]] = {}

    def counter(self, name: str, help: str) -> Counter:
        """A new counter."""
        made = Counter()
        self._add(name, "counter", help, lambda: made.value)
        return made

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A number that is looked up by `read`, whenever somebody asks; at once, as it blocks the process."""
        self._add(name, "gauge", help, read)

    def samples(self) -> list[Sample]:
        """All numbers as they are now, by name."""
        return [Sample(name, kind, text, read()) for name, (kind, text, read) in sorted(self._read.items())]

    def _add(self, name: str, kind: Kind, help: str, read: Callable[[], float]) -> None:
        assert name not in self._read, name
        self._read[name] = kind, help, read
