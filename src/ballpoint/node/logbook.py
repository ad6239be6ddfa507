"""What sprites said in their former instances, and why those ended: on disk, bounded, until they are destroyed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ballpoint.agent import ringlog
from ballpoint.core.clock import SYSTEM_CLOCK, Clock

# Of each sprite; as much as one ring of a running instance.
KEPT = ringlog.SIZE


class Logbook:
    """One file for each sprite that ever ended.

    It is replaced in one step, so a killed node leaves the former one or the new one; it is not synced, so the loss of
    power may take the last entries, or all.

    Args:
        directory: made if missing; only root may look into it.
    """

    def __init__(self, directory: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._clock = clock

    def add(self, sprite_id: str, said: bytes, cause: str) -> None:
        """Note that an instance of the sprite has ended.

        Args:
            said: what its own log held.
            cause: why it ended, as its event says.
        """
        text = self.read(sprite_id) + said + ringlog.lines(self._clock.now(), "node", f"stopped: {cause}")
        if len(text) > KEPT:
            text = text[-KEPT:].partition(b"\n")[2]
        path = self._path(sprite_id)
        temporary = path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
        temporary.replace(path)

    def read(self, sprite_id: str) -> bytes:
        """What was noted of the sprite, oldest first; empty where nothing was."""
        try:
            return self._path(sprite_id).read_bytes()
        except FileNotFoundError:
            return b""

    def remove(self, sprite_id: str) -> None:
        """Forget the sprite. Idempotent."""
        for path in (self._path(sprite_id), self._path(sprite_id).with_suffix(".new")):
            with suppress(FileNotFoundError):
                path.unlink()

    def _path(self, sprite_id: str) -> Path:
        return self._directory / f"{sprite_id}.log"
