"""How many bytes a second a session moves."""

from __future__ import annotations

import math

_MEMORY_SECONDS = 5.0


class Rate:
    """An exponentially weighted average: a byte moved `t` seconds ago counts exp(-t / 5 s) / 5 s."""

    def __init__(self, now: float) -> None:
        self._value = 0.0
        self._at = now

    def add(self, count: int, now: float) -> None:
        """Count bytes moved at `now` (monotonic seconds)."""
        self._value = self.at(now) + count / _MEMORY_SECONDS
        self._at = now

    def at(self, now: float) -> float:
        """Bytes a second, as of `now`."""
        return self._value * math.exp((self._at - now) / _MEMORY_SECONDS)
