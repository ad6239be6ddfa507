"""Giving unused blocks back, beside the guard: it takes long on a large disk, and for ever on one the kernel holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem

# Shorter runs are worth less than what discarding them costs.
_MINIMUM = 64 * 1024
# Between pieces it can be stopped.
_PIECE = 4 << 30
_STOP_SECONDS = 5.0
_LONG_SECONDS = 60.0


class Trimmer:
    """Trims one file system at a time. For one thread to use, which never waits for the disk."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._name = ""
        self._until = 0.0
        self._failure: OSError | None = None
        self._stop = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether one is being trimmed."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, name: str, opened: Callable[[], AbstractContextManager[int]]) -> None:
        """Begin to trim `name`; nothing else may be under way.

        Args:
            opened: gives a descriptor on the file system that takes ioctls.
        """
        assert not self.busy
        self._name, self._until = name, SYSTEM_CLOCK.monotonic() + _LONG_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(opened, self._stop), name=f"trim {name}", daemon=True)
        self._thread.start()

    def trouble(self) -> str | None:
        """What has gone wrong since it was asked last."""
        failure, self._failure = self._failure, None
        if failure is not None:
            return f"{self._name} cannot be trimmed: {failure}"
        if self.busy and SYSTEM_CLOCK.monotonic() > self._until:
            self._until += _LONG_SECONDS
            return f"{self._name} is still being trimmed"
        return None

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is being trimmed. Returns False where that takes more than `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.busy

    def stop(self, name: str | None = None) -> None:
        """Trim `name` (whatever it is: None) no further; returns once nobody uses it for that. Idempotent.

        Raises:
            UnavailableError: the kernel holds it.
        """
        if not self.busy or name not in (None, self._name):
            return
        self._stop.set()
        if not self.wait(_STOP_SECONDS):
            raise UnavailableError(f"{self._name} is being trimmed, and the kernel holds it", hint="try again")

    def _run(self, opened: Callable[[], AbstractContextManager[int]], stop: threading.Event) -> None:
        try:
            with opened() as root:
                start = 0
                while not stop.is_set() and filesystem.fitrim(root, start, _PIECE, _MINIMUM) is not None:
                    start += _PIECE
        except OSError as error:
            self._failure = error
