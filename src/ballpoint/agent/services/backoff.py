"""When a service that has ended by itself is started again."""

from __future__ import annotations

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0
# A service that ran for so long is well: the next time it ends, it is started again as after its first run.
WELL_SECONDS = 60.0


class Backoff:
    """Longer each time, up to a bound.

    Attributes:
        ended: how often it has ended soon, one time after the other.
    """

    def __init__(self, ended: int = 0) -> None:
        self.ended = ended

    def after(self, ran: float) -> float:
        """It has ended after `ran` seconds: how many to wait."""
        self.ended = 0 if ran >= WELL_SECONDS else self.ended
        # A power beyond the bound is none that a float must hold.
        seconds = FIRST_SECONDS * 2 ** min(self.ended, 16)
        self.ended += 1
        return float(min(MOST_SECONDS, seconds))
