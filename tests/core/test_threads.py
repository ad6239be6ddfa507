"""Threads go on when whoever waits for them is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ballpoint.core.threads import ended, to_the_end


async def test_whoever_is_cancelled_again_and_again_goes_on_when_the_thread_has_ended() -> None:
    began, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        began.set()
        assert go_on.wait(30)
        done.append(number)

    doing = asyncio.ensure_future(to_the_end(work, 1))
    await asyncio.to_thread(began.wait, 30)
    for _ in range(3):
        doing.cancel()
        for _ in range(5):  # what a cancellation sets going comes to its end
            await asyncio.sleep(0)
        assert not doing.done()
    go_on.set()
    await asyncio.wait([doing])
    assert doing.cancelled()
    assert done == [1]


async def test_an_error_comes_before_a_cancellation() -> None:
    began, go_on = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert go_on.wait(30)
        raise ValueError("not done")

    doing = asyncio.ensure_future(to_the_end(work))
    await asyncio.to_thread(began.wait, 30)
    doing.cancel()
    go_on.set()
    with pytest.raises(ValueError, match="not done"):
        await doing


async def test_what_is_waited_for_may_end_in_any_way() -> None:
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    waiting = asyncio.ensure_future(ended(futures))
    futures[0].set_result(None)
    futures[1].set_exception(ValueError())
    futures[2].cancel()
    await waiting
