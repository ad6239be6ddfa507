"""The pool: blanks standing by, and the policy that refills them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import NO_CAPACITY, BallpointError, UnavailableError
from ballpoint.core.tasks import Tasks
from ballpoint.node.lifecycle.instances import Instance, Instances

log = logging.getLogger(__name__)

# Demand is what was taken in this many seconds; the pool stands ready for as much again.
_DEMAND_SECONDS = 20.0
# More than one at a time overlaps the waiting for the kernel; more than two only crowd out claims on a small host.
_FILLERS = 2
_RETRY_FIRST, _RETRY_MAX = 0.1, 5.0
# After a claim its sprite's first command comes, or the start of its services: what can wait lets an interpreter start,
# for which a blank that is made beside it is a third of a processor's time on a small host.
_CALM_SECONDS = 0.2
# But where claims never cease they would have to make themselves what should stand by.
_PATIENCE_SECONDS = 1.0


class Pool:
    """Keeps between `minimum` and `maximum` blanks, by demand.

    When it is empty a taker waits for the next blank, first come first served. Claims go first: while one is under way
    and a blank is left, nothing is filled; nor right after one, while half of the blanks are left.
    """

    def __init__(self, instances: Instances, minimum: int, maximum: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._instances = instances
        self._minimum = minimum
        self._maximum = maximum
        self._clock = clock
        self._blanks: deque[Instance] = deque()
        self._waiters: deque[asyncio.Future[Instance]] = deque()
        self._patient: set[asyncio.Future[Instance]] = set()
        self._taken: deque[float] = deque()
        self._claims = 0
        self._last_claim = 0.0
        # No claim is under way, nor was a moment ago.
        self._calm = asyncio.Event()
        self._calm.set()
        self._filling = 0
        # Set whenever there may be something to fill.
        self._changed = asyncio.Event()
        # Set whenever a blank came or could not be made.
        self._news = asyncio.Event()
        self._tasks = Tasks()
        self._failure: BallpointError | None = None

    def start(self) -> None:
        for number in range(_FILLERS):
            self._tasks.start(self._fill(), f"fill blanks {number}")
        self._tasks.start(self._shrink(), "end blanks nobody asks for")

    async def close(self) -> None:
        """End all blanks and stop filling."""
        await self._tasks.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(UnavailableError("the node is stopping"))
        while self._blanks:
            blank = self._blanks.popleft()
            _unwatch(blank)
            await self._instances.end(blank)

    @property
    def size(self) -> int:
        """Blanks standing by."""
        return len(self._blanks)

    def target(self) -> int:
        """How many blanks should stand by, for the demand of the last seconds."""
        while self._taken and self._taken[0] < self._clock.monotonic() - _DEMAND_SECONDS:
            self._taken.popleft()
        return max(self._minimum, min(self._maximum, len(self._taken)))

    async def stand_by(self, seconds: float) -> None:
        """Wait until a blank stands by, for as many seconds.

        Raises:
            UnavailableError: as `take`.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self._blanks:
                    if self._failure is not None and self._failure.code == NO_CAPACITY:
                        raise self._reason()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise self._reason(seconds) from error

    async def take(self, seconds: float, *, patient: bool = False) -> Instance:
        """A blank, now the caller's. Call `claimed` when it has its identity.

        Args:
            seconds: how long to wait where the pool is empty.
            patient: wait also while the host has nothing left for one more; else that is answered after one attempt.

        Raises:
            UnavailableError: none came in time; says why filling fails, if it does.
        """
        self._taken.append(self._clock.monotonic())
        self._claims += 1
        self._calm.clear()
        self._changed.set()
        if self._blanks:
            blank = self._blanks.popleft()
            _unwatch(blank)
            return blank
        waiter: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if patient:
            self._patient.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except BaseException as error:
            self.claimed()
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._add(waiter.result())  # it came in the same moment
            if isinstance(error, TimeoutError):
                raise self._reason(seconds) from error
            raise
        finally:
            self._patient.discard(waiter)
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _reason(self, seconds: float = 0.0) -> UnavailableError:
        """Why no blank comes, or did not within `seconds`."""
        if self._failure is None:
            return UnavailableError(f"no blank became free within {seconds:g} s", hint="try again")
        return UnavailableError(self._failure.message, hint=self._failure.hint, code=self._failure.code)

    def claimed(self) -> None:
        """The claim of a taken blank has ended, well or not."""
        self._claims -= 1
        self._changed.set()
        if not self._claims:
            self._last_claim = self._clock.monotonic()
            self._tasks.start(self._settle(self._last_claim), "be calm after a claim")

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """As if a claim were under way: somebody waits for more than that, as for a restore."""
        self._claims += 1
        self._calm.clear()
        try:
            yield
        finally:
            self.claimed()

    async def _settle(self, claim: float) -> None:
        await self._clock.sleep(_CALM_SECONDS)
        if not self._claims and self._last_claim == claim:
            self._calm.set()
            self._changed.set()

    async def calm(self, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait for so long at most until no claim is under way, nor was a moment ago: a first command goes first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()

    def _add(self, blank: Instance) -> None:
        if not blank.runtime.usable:
            self._end_dead(blank)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(blank)
                return
        blank.runtime.on_death = lambda: self._died(blank)
        blank.runtime.on_inner_exit = lambda _: self._died(blank)
        self._blanks.append(blank)
        self._news.set()

    def _died(self, blank: Instance) -> None:
        self._blanks.remove(blank)
        self._end_dead(blank)

    def _end_dead(self, blank: Instance) -> None:
        log.warning("blank %s died", blank.id)
        _unwatch(blank)
        self._tasks.start(self._instances.end(blank), f"end dead blank {blank.id}")
        self._changed.set()

    def _wanted(self) -> bool:
        missing = len(self._waiters) + self.target() - len(self._blanks) - self._filling
        if missing <= 0:
            return False
        if self._waiters or not self._blanks:
            return True
        if len(self._blanks) + self._filling > self.target() // 2:
            return self._calm.is_set()
        return self._claims == 0

    def _failed(self, problem: BallpointError) -> None:
        self._failure = problem
        self._news.set()
        if problem.code == NO_CAPACITY:
            for waiter in self._waiters:
                if waiter not in self._patient and not waiter.done():
                    waiter.set_exception(self._reason())

    async def _make(self) -> Instance:
        making = asyncio.ensure_future(self._instances.make())
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # Its steps in threads go on, and what they make must have an owner.
            try:
                await self._instances.end(await making)
            except (BallpointError, OSError) as error:
                log.error("the blank that was being made is left behind: %s", error)
            raise

    async def _fill(self) -> None:
        retry = _RETRY_FIRST
        while True:
            if not self._wanted():
                self._changed.clear()
                await self._changed.wait()
                continue
            self._filling += 1
            try:
                blank = await self._make()
            except (BallpointError, OSError) as error:
                problem = error if isinstance(error, BallpointError) else UnavailableError(f"no blank: {error}")
                if self._failure is None or self._failure.message != problem.message:
                    log.warning("filling a blank failed: %s", problem)
                self._failed(problem)
                await self._clock.sleep(retry)
                retry = min(retry * 2, _RETRY_MAX)
            else:
                self._failure, retry = None, _RETRY_FIRST
                self._add(blank)
            finally:
                self._filling -= 1

    async def _shrink(self) -> None:
        """End what stands by above the target, once demand has fallen."""
        while True:
            await self._clock.sleep(_DEMAND_SECONDS)
            while len(self._blanks) > self.target() and self._calm.is_set():
                blank = self._blanks.pop()
                _unwatch(blank)
                try:
                    await self._instances.end(blank)
                except BallpointError as error:
                    log.error("blank %s is left behind: %s", blank.id, error)


def _unwatch(blank: Instance) -> None:
    blank.runtime.on_death = blank.runtime.on_inner_exit = None
