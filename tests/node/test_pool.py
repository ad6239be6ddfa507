"""The pool of blanks: how many stand by, who waits, and who is refused. Instances are stand-ins here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from ballpoint.core.errors import NO_CAPACITY, BallpointError, UnavailableError
from ballpoint.node.lifecycle.instances import Instances
from ballpoint.node.standby.pool import Pool

_SECONDS = 30.0


class Blank:
    def __init__(self, number: int) -> None:
        self.id = str(number)
        self.runtime = self
        self.usable = True
        self.on_death: Callable[[], None] | None = None
        self.on_inner_exit: Callable[[str], None] | None = None


class World:
    """A host that makes blanks when it is let, or cannot."""

    def __init__(self) -> None:
        self.clock = NoTime()
        self.made = 0
        self.ended: list[str] = []
        self.stillborn: set[int] = set()
        self.error: BallpointError | None = None
        self.attempts = asyncio.Semaphore(0)
        self.failed = asyncio.Semaphore(0)

    async def make(self) -> Blank:
        await self.attempts.acquire()
        if self.error is not None:
            self.failed.release()
            raise self.error
        self.made += 1
        blank = Blank(self.made)
        blank.usable = self.made not in self.stillborn
        return blank

    def let_all(self) -> None:
        """What was begun is made to its end."""
        for _ in range(100):
            self.attempts.release()

    async def end(self, blank: Blank) -> None:
        self.ended.append(blank.id)


class NoTime:
    """A clock whose pauses are over at once; time goes on by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def run(minimum: int, test: Callable[[Pool, World], Awaitable[None]]) -> None:
    async def body() -> None:
        world = World()
        pool = Pool(cast(Instances, world), minimum, 8, cast(Any, world.clock))
        pool.start()
        try:
            async with asyncio.timeout(_SECONDS):
                await test(pool, world)
        finally:
            world.let_all()
            await pool.close()

    asyncio.run(body())


async def settle() -> None:
    """Let every task go as far as it can without the world's permission."""
    for _ in range(50):
        await asyncio.sleep(0)


def no_memory() -> UnavailableError:
    return UnavailableError("no memory", hint="free some", code=NO_CAPACITY)


@pytest.mark.parametrize("minimum", [1, 2, 5])
def test_a_start_leaves_as_many_blanks_as_it_should(minimum: int) -> None:
    async def test(pool: Pool, world: World) -> None:
        for _ in range(20):
            world.attempts.release()
        await pool.stand_by(_SECONDS)
        await settle()
        assert (pool.size, world.made, world.ended) == (minimum, minimum, [])

    run(minimum, test)


def test_who_finds_no_blank_and_no_memory_is_told_so() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.error = no_memory()
        waiting = [asyncio.create_task(pool.take(_SECONDS)) for _ in range(3)]
        await settle()
        world.attempts.release()
        for each in waiting:
            with pytest.raises(UnavailableError) as caught:
                await each
            assert (caught.value.code, caught.value.hint) == (NO_CAPACITY, "free some")
        world.error = None
        for _ in range(20):
            world.attempts.release()
        assert (await pool.take(_SECONDS)).id

    run(1, test)


def test_who_is_patient_waits_for_memory() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.error = no_memory()
        patient = asyncio.create_task(pool.take(_SECONDS, patient=True))
        hasty = asyncio.create_task(pool.take(_SECONDS))
        await settle()
        world.attempts.release()
        with pytest.raises(UnavailableError):
            await hasty
        await settle()
        assert not patient.done()
        world.error = None
        for _ in range(20):
            world.attempts.release()
        assert (await patient).id

    run(1, test)


def test_another_failure_is_waited_out() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.error = UnavailableError("the zygote does not answer")
        taker = asyncio.create_task(pool.take(_SECONDS))
        await settle()
        for _ in range(4):
            world.attempts.release()
            await world.failed.acquire()
        await settle()
        assert not taker.done()
        world.error = None
        for _ in range(20):
            world.attempts.release()
        assert (await taker).id

    run(1, test)


def test_one_that_waits_too_long_hears_why() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.error = no_memory()
        world.attempts.release()
        await world.failed.acquire()
        await settle()
        for waiting in (pool.take(0.01, patient=True), pool.stand_by(0.01)):
            with pytest.raises(UnavailableError) as caught:
                await waiting
            assert caught.value.code == NO_CAPACITY

    run(1, test)


def test_a_blank_that_is_dead_already_is_given_to_nobody() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.stillborn = {1, 2, 3}
        taker = asyncio.create_task(pool.take(_SECONDS))
        for _ in range(20):
            world.attempts.release()
        assert (await taker).runtime.usable
        await settle()
        assert sorted(world.ended) == ["1", "2", "3"]

    run(1, test)


def test_what_can_wait_lets_claims_pass() -> None:
    async def test(pool: Pool, world: World) -> None:
        for _ in range(20):
            world.attempts.release()
        await pool.stand_by(_SECONDS)
        await settle()
        await pool.calm(60)
        await pool.take(_SECONDS)
        await pool.take(_SECONDS)
        waiting = asyncio.create_task(pool.calm(60))
        pool.claimed()
        await settle()
        assert not waiting.done()
        assert world.made == 5  # blanks are left: nothing is filled beside a claim
        pool.claimed()
        await waiting
        await settle()
        assert world.made == 7

    run(5, test)


def test_what_can_wait_lets_more_than_a_claim_pass() -> None:
    async def test(pool: Pool, world: World) -> None:
        world.let_all()
        await pool.stand_by(_SECONDS)
        await settle()
        with pytest.raises(ZeroDivisionError), pool.undisturbed():
            await pool.take(_SECONDS)
            pool.claimed()
            waiting = asyncio.create_task(pool.calm(60))
            await settle()
            assert (waiting.done(), world.made) == (False, 5)
            raise ZeroDivisionError
        await waiting
        await settle()
        assert world.made == 6

    run(5, test)


def test_blanks_follow_demand_up_and_down() -> None:
    async def test(pool: Pool, world: World) -> None:
        for _ in range(100):
            world.attempts.release()
        await pool.stand_by(_SECONDS)
        for _ in range(20):
            await pool.take(_SECONDS)
            pool.claimed()
            world.clock.now += 0.1
        await settle()
        assert (pool.size, world.ended) == (8, [])  # as many as were asked for, up to the maximum
        world.clock.now += 60
        await settle()
        assert (pool.size, len(world.ended)) == (2, 6)

    run(2, test)


def test_a_blank_that_is_being_made_when_the_pool_closes_is_made_and_ended() -> None:
    async def test(pool: Pool, world: World) -> None:
        await settle()
        closing = asyncio.create_task(pool.close())
        await settle()
        assert not closing.done()
        world.let_all()
        await closing
        assert world.made > 0
        assert sorted(world.ended) == sorted(str(number + 1) for number in range(world.made))

    run(4, test)


@pytest.mark.parametrize("how", ["anchor", "container"])
def test_a_blank_that_dies_is_replaced(how: str) -> None:
    async def test(pool: Pool, world: World) -> None:
        world.let_all()
        await pool.stand_by(_SECONDS)
        await settle()
        (blank,) = pool._blanks
        died, exited = blank.runtime.on_death, blank.runtime.on_inner_exit
        assert died is not None and exited is not None
        died() if how == "anchor" else exited("signal 9")
        await settle()
        assert (pool.size, world.made, world.ended) == (1, 2, ["1"])
        assert (await pool.take(_SECONDS)).id == "2"

    run(1, test)
