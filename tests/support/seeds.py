"""Where a search at random begins: another each time, and the same again for whoever says so."""

from __future__ import annotations

import os
import sys

from ballpoint.core import ids

VARIABLE = "BALLPOINT_SEED"


def fresh_seed() -> int:
    """That of BALLPOINT_SEED, or one never used before. It is printed as one that can be given again."""
    given = os.environ.get(VARIABLE)
    seed = int(given) if given else int(ids.new_instance_id(), 16)
    sys.stdout.write(f"{VARIABLE}={seed}\n")
    return seed
