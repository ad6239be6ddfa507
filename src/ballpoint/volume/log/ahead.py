"""Commits read before their turn: a log is a chain, and would take a request's time for each of its commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ballpoint.core.errors import NotFoundError
from ballpoint.core.tasks import for_each
from ballpoint.store.store import Store
from ballpoint.volume.log.keys import CommitName

# Nobody knows how far down the chain goes: each round reads so many times more than the one before.
_GROWTH: Final = 4
_AT_ONCE: Final = 16


class Ahead:
    """The commits that a listing has shown, newest first, for a reader that goes down the chain."""

    def __init__(self, store: Store, listed: Sequence[CommitName]) -> None:
        self._store = store
        self._listed = listed
        self._next = 0
        self._count = 1
        self._found: dict[CommitName, bytes] = {}

    async def get(self, name: CommitName) -> bytes | None:
        """A commit's object; None where it is not there. The next ones may be read with it. Errors as `Store.get`."""
        if name not in self._found:
            await for_each(self._batch(name), self._read, at_once=_AT_ONCE)
        return self._found.pop(name, None)

    def _batch(self, name: CommitName) -> set[CommitName]:
        batch = self._listed[self._next : self._next + self._count]
        self._next += len(batch)
        self._count *= _GROWTH
        return {name, *batch}

    async def _read(self, name: CommitName) -> None:
        try:
            self._found[name] = await self._store.get(name.key)
        except NotFoundError:
            pass  # trimmed, or lost; whoever asks for it will find out
