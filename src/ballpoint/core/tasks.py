"""Background tasks with an owner: none is lost to the garbage collector, and no failure is silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Tasks:
    """A set of background tasks that end with their owner.

    A task's failure is logged with its traceback; `close` cancels what still runs and waits for it.

    Args:
        failed: called after a failure, for an owner that cannot go on without one of them.

    Attributes:
        failure: the first there was.
    """

    def __init__(self, failed: Callable[[], None] | None = None) -> None:
        self.failure: BaseException | None = None
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background under `name` (seen in logs)."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("background task %s failed", task.get_name(), exc_info=failure)
            self.failure = self.failure or failure
            if self._failed is not None:
                self._failed()

    async def close(self) -> None:
        """Cancel every task and wait until all have ended. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do `work` for every item, at most `at_once` of them at a time, begun in order.

    The first error ends what is under way, waits for it, and is raised as it is.
    """
    left = iter(items)

    async def go_on() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(go_on())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
