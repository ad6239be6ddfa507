"""The log's line for each request. The logging module would take a fifth of the processor time of a request."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from ballpoint.core.clock import SYSTEM_CLOCK

# In the log only, as other servers have it: the client did not wait for an answer.
CLIENT_LEFT = 499


class Journal:
    """Writes lines as the other lines of the log are, to standard error: those of one turn of the loop at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._second = -1
        self._stamp = ""
        self._lines: list[str] = []

    def served(self, address: str, method: str, path: str, status: int, request_id: str) -> None:
        """Note a request. A log that nobody takes any more stops nothing."""
        now = SYSTEM_CLOCK.now()
        second = int(now.timestamp())
        if second != self._second:
            self._second = second
            self._stamp = now.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines.append(
            f"{self._stamp},{now.microsecond // 1000:03d} edge {address} {method} {path} {status} {request_id}\n"
        )

    def flush(self) -> None:
        """Write what was noted. Idempotent."""
        lines, self._lines = self._lines, []
        with suppress(OSError):
            sys.stderr.write("".join(lines))
