"""One-time codes: how a log-in gets from the host where the token was given to that of the sprite."""

from __future__ import annotations

import msgspec

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.types import Caller

_SECONDS = 60.0
_MOST = 10_000


class Pass(msgspec.Struct, frozen=True):
    """What a code is good for: `caller` at the sprite `sprite_id` by the host `label`, going on at `path`."""

    caller: Caller
    sprite_id: str
    label: str
    path: str


class Codes:
    """Codes that were given out and not used. They are kept in memory: after a restart of the node, log in again."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._passes: dict[str, tuple[float, Pass]] = {}

    def give(self, good_for: Pass) -> str:
        """A code that is good once, for a minute."""
        now = self._clock.monotonic()
        # The oldest come first.
        while self._passes and (len(self._passes) >= _MOST or next(iter(self._passes.values()))[0] <= now):
            del self._passes[next(iter(self._passes))]
        code = ids.new_secret()
        self._passes[code] = now + _SECONDS, good_for
        return code

    def take(self, code: str, label: str) -> Pass | None:
        """What a code is good for at the host `label`, for the first who asks; None where it is no good."""
        until, found = self._passes.pop(code, (0.0, None))
        if found is None or until <= self._clock.monotonic() or found.label != label:
            return None
        return found
