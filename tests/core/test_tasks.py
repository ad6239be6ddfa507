"""Background work with an owner, and work on many things at once."""

from __future__ import annotations

import asyncio

import pytest

from ballpoint.core.tasks import Tasks, for_each


async def test_for_each_does_all_in_order_and_never_too_many_at_once() -> None:
    begun: list[int] = []
    running = most = 0

    async def work(item: int) -> None:
        nonlocal running, most
        begun.append(item)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each(range(20), work, at_once=3)
    assert begun == list(range(20))
    assert most == 3


async def test_the_first_error_of_for_each_ends_the_rest_and_is_raised_as_it_is() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        if item == 2:
            raise KeyError(item)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(KeyError):
        await for_each(range(10), work, at_once=3)
    assert sorted(ended) == [0, 1]


async def test_an_owner_that_cannot_go_on_without_a_task_hears_of_its_failure_and_of_no_other_end() -> None:
    ended = asyncio.Event()
    tasks = Tasks(failed=ended.set)
    await tasks.start(asyncio.sleep(0), "one that is done")
    left = tasks.start(asyncio.Event().wait(), "one that is cancelled")
    left.cancel()
    await asyncio.wait([left])
    assert not ended.is_set()
    failure = OSError("lost")

    async def fail() -> None:
        raise failure

    tasks.start(fail(), "one that fails")
    async with asyncio.timeout(10):
        await ended.wait()
    assert tasks.failure is failure
    await tasks.close()
