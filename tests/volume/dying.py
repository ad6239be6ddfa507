"""A process that kills itself at the n-th thing it asks the system for: `python -m tests.volume.dying DATA STEP N`.

Python's audit events (open, mkdir, rename, remove, ioctl, the start of a child...) are the places. It prints how many
events STEP has, if it comes to its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ballpoint.host import mount, namespaces
from ballpoint.volume.pool import VolumePool
from tests.volume.world import path

# Of the interpreter itself, not of the host.
_INNER = ("object.", "import", "compile", "exec", "marshal.", "ctypes.", "sys.", "code.", "cpython.", "builtins.")


def populate(fd: int) -> None:
    path(fd, "upper/hello").write_text("hello")


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def nothing(pool: VolumePool) -> None:
    """Opening the pool is a step, too."""


def hand_over(pool: VolumePool) -> None:
    """Leave the volume to a child, whose pid is printed, and die."""
    volume = pool.attach("old")
    _say(
        subprocess.Popen(["sleep", "600"], pass_fds=[volume.mount]).pid
    )  # returns when the pool's lock is closed there
    os.kill(os.getpid(), signal.SIGKILL)


STEPS: dict[str, Callable[[VolumePool], object]] = {
    "open": nothing,
    "create": lambda pool: pool.create("new", template="base", meta={"image": "digest"}),
    "template": lambda pool: pool.ensure_template("second", 1, populate),
    "attach": lambda pool: pool.attach("old"),
    "destroy": lambda pool: pool.destroy("old"),
    "hand-over": hand_over,
}


def main(data: str, step: str, last: str) -> None:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    seen = 0
    counting = step == "open"

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if not counting or event.startswith(_INNER):
            return
        seen += 1
        if seen == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    pool = VolumePool.open(Path(data), pool_gb=1)
    counting = True
    STEPS[step](pool)
    counting = False
    _say(seen)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
