"""Who watches a session: each at its own place in the journal, from which it gets all that comes after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ballpoint.agent.sessions.journal import STREAMS, Journal

# Of the journal, in one turn of the loop.
_READ = 256 * 1024


class Viewer(Protocol):
    """A client's side of a session."""

    def output(self, stream: int, data: bytes) -> bool:
        """Take output, of any size; False asks for no more until `Session.resume`."""
        ...

    def skipped(self, stream: int, start: int, end: int) -> None:
        """The bytes of a stream from offset `start` to `end` are not kept any more: what comes next is behind them."""
        ...

    def exited(self, code: int) -> None:
        """The process has ended; called once, after all its output."""
        ...

    def pause_input(self, paused: bool) -> None:
        """The process does not read its input (or does again): stop (or go on) taking it from the client."""
        ...


class Follower:
    """A viewer and how far it is.

    Args:
        cursors: offset in each stream of the byte that it gets next.
        holds_back: the session reads no more than this viewer takes, so that it is always at the end.
        on_done: called once it has been told the exit.
    """

    def __init__(
        self,
        viewer: Viewer,
        journal: Journal,
        cursors: dict[int, int],
        *,
        holds_back: bool,
        on_done: Callable[[], None],
    ) -> None:
        self.viewer = viewer
        self.holds_back = holds_back
        self.ready = True
        self._journal = journal
        self._cursors = cursors
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._code: int | None = None
        self._gone = False
        self._pumping = False

    def news(self, stream: int, at: int, data: bytes) -> None:
        """The session has written `data`, the first byte of which is at offset `at`."""
        if self._cursors[stream] == at and (self.ready or self.holds_back):
            self._give(stream, data)

    def resume(self) -> None:
        """The viewer takes output again."""
        self.ready = True
        self.pump()

    def end(self, code: int) -> None:
        """The process has ended: the exit goes behind what is left to be read."""
        self._code = code
        self.pump()

    def leave(self) -> None:
        """The viewer has gone."""
        self._gone = True

    def pump(self) -> None:
        """Read on in the journal, a piece in each turn of the loop, as long as the viewer takes it."""
        if self._pumping:
            return
        while self.ready and not self._gone:
            stream = next((each for each in STREAMS if self._cursors[each] < self._journal.end(each)), None)
            if stream is None:
                self._finish()
                return
            cursor, start = self._cursors[stream], self._journal.start(stream)
            data = self._journal.read(stream, cursor, _READ) if cursor >= start else b""
            if not data:
                # Where the file has less than was written to it, nobody will find what is missing.
                beyond = start if cursor < start else self._journal.end(stream)
                self._cursors[stream] = beyond
                self.viewer.skipped(stream, cursor, beyond)
                continue
            self._give(stream, data)
            self._pumping = True
            self._loop.call_soon(self._go_on)
            return

    def _go_on(self) -> None:
        self._pumping = False
        self.pump()

    def _give(self, stream: int, data: bytes) -> None:
        self._cursors[stream] += len(data)
        self.ready = self.viewer.output(stream, data)

    def _finish(self) -> None:
        if self._code is not None:
            self._gone = True
            self.viewer.exited(self._code)
            self._on_done()
