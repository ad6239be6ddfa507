"""The `ballpoint` command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# For what must happen. Seconds.
DEADLINE = 120
COMMAND = [sys.executable, "-m", "ballpoint.cli"]


def ballpoint(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it in the directory `home` as a user whose home that is, without a terminal. `more` is environment."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home), **more}, cwd=home,
    )  # fmt: skip
