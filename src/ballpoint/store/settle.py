"""Creating an object for certain: what became of it is found out, however often answers are lost."""

from __future__ import annotations

import asyncio

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import NotFoundError, UnavailableError
from ballpoint.store.store import Store, UnknownOutcomeError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


async def create_settled(
    store: Store, key: str, data: bytes, *, seconds: float = 60.0, clock: Clock = SYSTEM_CLOCK
) -> bool:
    """Create an object of bytes that nobody else has (a random put-id is among them), unless somebody was first.

    Idempotent: with the same bytes it may be called again, by whoever has them, and gives the same answer.

    Args:
        seconds: how long it may take to find out.

    Returns:
        True: it was made by us; it may have been deleted since. False: somebody else was first, perhaps so long ago
        that what they made has been deleted.

    Raises:
        UnknownOutcomeError: that could not be found out in time. It may be there, or come later: call again.
    """
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(seconds):
            while (ours := await _try(store, key, data)) is None:
                await clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            return ours
    except TimeoutError as error:
        raise UnknownOutcomeError(
            f"whether {key} was made is not known after {seconds:g} s", hint="the store does not answer"
        ) from error


async def _try(store: Store, key: str, data: bytes) -> bool | None:
    """Try once. None: it may still be made, or not be seen.

    Only an answer to a create says that the object is durable. One that is merely seen need not be: whoever makes it
    may not be that far, or have failed on the way. So where an answer is lost it is created again, and found to exist.
    """
    try:
        if await store.create(key, data):
            return True
        return await store.get(key) == data
    except NotFoundError:
        return False
    except UnavailableError:
        return None
