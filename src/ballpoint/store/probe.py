"""What a store is tried for before a node relies on it: one in which two writers can win is refused.

A store that ignores If-None-Match answers every create with success, and two nodes would each take a sprite's disk for
theirs. Nothing else than trying it tells such a store from one that works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import NoReturn, TypeVar

from ballpoint.core import ids
from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.store.store import Store, list_all

T = TypeVar("T")

_ROUNDS, _RACERS = 8, 16
_LISTED = 6
# The order of bytes; one that folds case, or takes digits for numbers, gives another.
_ORDERED = ("a", "a-b", "a.b", "a10", "a2", "aB", "a_", "ab", "b/c", "b0")


async def probe(store: Store, *, seconds: float = 120.0) -> None:
    """Try what the volume log relies on, under `probe/<random>/`, and remove it again.

    A crash half-way leaves some small objects there, which nobody reads and anybody may delete.

    Args:
        seconds: how long all of it may take.

    Raises:
        InvalidError: the store does not do what it must; the hint says what that is.
        UnavailableError: it does not answer, or not in time, or refuses.
    """
    below = f"probe/{ids.new_uuid()}/"
    try:
        async with asyncio.timeout(seconds):
            await _the_first_stays(store, f"{below}first")
            await _one_creates(store, f"{below}race/")
            await _a_listing_is_fresh(store, f"{below}list/")
            await _a_listing_is_ordered(store, f"{below}order/")
            await _parts_are_read(store, f"{below}part")
    except TimeoutError as error:
        raise UnavailableError(
            f"the store could not be tried within {seconds:g} s", hint="it must answer in less than a second"
        ) from error
    finally:
        await store.delete([item.key for item in await list_all(store, below)])


async def _the_first_stays(store: Store, key: str) -> None:
    await store.create(key, b"first")
    if await store.create(key, b"second"):
        _refuse("an object that exists was created again")
    if await store.get(key) != b"first":
        _refuse("an object was replaced by a create that was refused")


async def _one_creates(store: Store, below: str) -> None:
    await _all(_race(store, f"{below}{round_}") for round_ in range(_ROUNDS))


async def _race(store: Store, key: str) -> None:
    made = await _all(store.create(key, b"racer %d" % racer) for racer in range(_RACERS))
    if made.count(True) != 1:
        _refuse(f"of {_RACERS} writers that created one object at once, {made.count(True)} were told that they did")
    if await store.get(key) != b"racer %d" % made.index(True):
        _refuse("of several writers that created one object at once, another than the one that was told so did")


async def _a_listing_is_fresh(store: Store, below: str) -> None:
    # As a log is written: each key sorts before those that are there, and the first one is asked for.
    names = [f"{below}{number}" for number in range(_LISTED, 0, -1)]
    for name in names:
        await store.create(name, b"")
        if [item.key for item in await store.list(below, limit=1)] != [name]:
            _refuse("a listing does not show at once what was created")
    for gone, name in enumerate(reversed(names), start=1):
        await store.delete([name])
        if [item.key for item in await store.list(below)] != sorted(names)[gone:]:
            _refuse("a listing shows what was deleted, or does not show what is there")


async def _a_listing_is_ordered(store: Store, below: str) -> None:
    await _all(store.put(f"{below}{name}", b"") for name in reversed(_ORDERED))
    names = [f"{below}{name}" for name in _ORDERED]
    if [item.key for item in await store.list(below)] != names:
        _refuse("a listing is not in the order of the keys' bytes")
    if [item.key for item in await store.list(below, after=names[2], limit=3)] != names[3:6]:
        _refuse("a listing does not go on after a given key")


async def _parts_are_read(store: Store, key: str) -> None:
    data = bytes(range(256))
    await store.put(key, data)
    for start, length in ((0, 16), (100, 100), (200, 100), (255, 1)):
        if await store.get(key, start, length) != data[start : start + length]:
            _refuse("a part of an object is not read as it was written")


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all calls, and raise what failed: what goes on behind a failure would come after the clean-up."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    done = [result for result in results if not isinstance(result, BaseException)]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return done


def _refuse(what: str) -> NoReturn:
    raise InvalidError(
        f"the store cannot be used: {what}",
        hint="two nodes could write one disk, or data could be lost; docs/store.md names stores that work",
    )
