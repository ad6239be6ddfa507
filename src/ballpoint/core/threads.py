"""Work in threads, which nothing cancels: nobody goes on as if it had ended before it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Callable[..., T], *arguments: Any) -> T:
    """Do something in a thread, also where the caller is cancelled meanwhile: who comes next must find it done.

    Raises:
        CancelledError: the caller was cancelled, and the work has been done.
        Others as `work`.
    """
    doing = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        await ended([doing])
    except asyncio.CancelledError:
        doing.result()  # what failed has not been done
        raise
    return doing.result()


async def ended(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all of them are done, however they end, and however often the caller is cancelled meanwhile.

    Raises:
        CancelledError: the caller was cancelled, and they are done.
    """
    futures = list(futures)
    cancelled: asyncio.CancelledError | None = None
    while left := [each for each in futures if not each.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
    for each in futures:
        if not each.cancelled():
            each.exception()  # it is the caller's, who may not want it: asyncio need not complain
    if cancelled is not None:
        raise cancelled
