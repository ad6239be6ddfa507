"""Other places to do a sprite's work in: the same files on the host's file system, and those behind FUSE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from ballpoint.host import process
from ballpoint.host.mount import umount2

_USER = "1000:1000"
_HOME = "/home/sprite"
_SECONDS = 600.0
BINDFS = "bindfs"


class Chroot:
    """A root file system on this host, in which commands run as they do in a sprite.

    Args:
        root: its directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def run(self, script: str, *, as_root: bool = False) -> float:
        """Seconds that a bash script takes, which must succeed."""
        user = "0:0" if as_root else _USER
        # What sets a sprite's commands up is not the work's: a home, and where it begins.
        command = ["chroot", f"--userspec={user}", str(self._root), "env", f"HOME={_HOME}", "bash", "-c"]
        started = perf_counter()
        await asyncio.to_thread(process.run, [*command, f"cd {_HOME} && {{ {script}\n}}"], timeout=_SECONDS)
        return perf_counter() - started


@asynccontextmanager
async def passed_through(root: Path, place: Path) -> AsyncIterator[str | None]:
    """Have all of `root` at `place`, through FUSE.

    Yields:
        Why it cannot be had on this host; None: it is there.
    """
    if process.which(BINDFS) is None:
        yield f"{BINDFS} is not installed"
        return
    place.mkdir()
    try:
        await asyncio.to_thread(process.run, [BINDFS, "-o", "dev,suid", str(root), str(place)], timeout=_SECONDS)
    except process.CommandFailedError as error:
        yield error.message
        return
    try:
        yield None
    finally:
        umount2(place)
