"""What the writer inside a sprite says of its writes (`WRITE` in `bench/programs.py`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 4096


@dataclass(frozen=True)
class Written:
    """What the writer said.

    Attributes:
        writes: in each second.
        fsyncs: seconds of each.
        stalls: of each long write, when it began (seconds since 1970) and how long it took.
    """

    writes: list[int]
    fsyncs: list[float]
    stalls: list[tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> Written:
        answer: dict[str, Any] = json.loads(path.read_text())
        return cls(answer["writes"], answer["fsyncs"], [(began, took) for began, took in answer["stalls"]])

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.writes) * BLOCK

    @property
    def rate(self) -> float:
        """Writes a second."""
        return sum(self.writes) / len(self.writes)

    @property
    def longest(self) -> float:
        """Milliseconds of the longest write."""
        return max((took for _, took in self.stalls), default=0.0) * 1000

    def longest_in(self, start: float, end: float) -> float:
        """Milliseconds of the longest write that was under way at some time of a window."""
        return max((took for began, took in self.stalls if began < end and began + took > start), default=0.0) * 1000

    def waited(self, seconds: float) -> float:
        """For how many seconds there was a write under way that took so long or longer."""
        total, until = 0.0, 0.0
        for began, took in sorted(self.stalls):
            if took >= seconds:
                total += max(0.0, began + took - max(began, until))
                until = max(until, began + took)
        return total
