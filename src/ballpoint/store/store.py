"""What a store is: objects under keys, that are created once or put, and never changed."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from ballpoint.core.errors import InvalidError, UnavailableError

# What every backend takes, in any file system and in any URL, without an escape.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_KEY_MAX = 512
LIST_MAX = 1000


class UnknownOutcomeError(UnavailableError):
    """Nobody knows whether the change was made, or will be made later: look, before anything depends on it."""


@dataclass(frozen=True)
class Item:
    """One object of a listing.

    Attributes:
        size: in bytes.
    """

    key: str
    size: int


Items = list[Item]


class Store(Protocol):
    """Objects by key. Every call has a deadline of its own.

    No key goes on below another: beside `a/b`, no `a/b/c`. Nor does one go on beside a directory with `-` or `.`, which
    sort before `/`: beside `a/b`, no `a-c`. Servers that keep directories list those in another order.

    What was answered is durable, and seen by every call that begins afterwards, of whomever. Any call may raise
    UnavailableError; where it changes something, only UnknownOutcomeError leaves open whether it did.
    """

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """An object's bytes, from `start`, up to `length` of them.

        Raises:
            NotFoundError: it is not there.
            InvalidError: it has no byte at `start`.
        """
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Make an object that everybody who makes it makes of the same bytes. Idempotent.

        A crash half-way leaves nothing that a reader could see.
        """
        ...

    async def create(self, key: str, data: bytes) -> bool:
        """Make an object unless there is one. Of many who try at once, one succeeds.

        Returns:
            Whether it was made: False says that the key exists, durably, and nothing about whose it is.

        Raises:
            UnknownOutcomeError: it may exist now, or later.
        """
        ...

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        """Objects whose keys begin with `prefix`, by rising keys.

        Args:
            after: only greater keys; a key of the store, as a rule, or "".
            limit: at most so many, and at most LIST_MAX; fewer only where there are no more.
        """
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects, in any order; one that is not there is no error. Idempotent.

        Raises:
            UnknownOutcomeError: some may be there still.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


async def list_all(store: Store, prefix: str) -> Items:
    """All objects below `prefix`. What comes and goes meanwhile may be in it or not."""
    items: Items = []
    while page := await store.list(prefix, after=items[-1].key if items else ""):
        items += page
        if len(page) < LIST_MAX:
            break
    return items


def check_key(key: str) -> str:
    """`key`, if it can be one.

    Raises:
        InvalidError: it cannot.
    """
    if len(key) > _KEY_MAX or not _KEY.fullmatch(key):
        raise InvalidError(f"{key[:80]!r} is no key of an object")
    return key
