"""One service: started when what it needs runs, started again when it ends, stopped when it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from ballpoint.agent.services.backoff import Backoff
from ballpoint.agent.services.definition import Definition
from ballpoint.agent.services.process import Process
from ballpoint.agent.spawn_types import SpawnError
from ballpoint.core.clock import Clock, rfc3339
from ballpoint.core.tasks import Tasks

log = logging.getLogger("agent.services")

Status = Literal["stopped", "starting", "running", "stopping", "failed"]
Kind = Literal["started", "exit", "error", "stopping", "stopped"]


@dataclass(frozen=True)
class Happened:
    """Something that happened to a service.

    Attributes:
        code: of an exit, or a stop; as a shell says it.
        text: of an error.
    """

    kind: Kind
    code: int | None = None
    text: str = ""


Listener = Callable[[Happened], None]


class Others(Protocol):
    """What a service must know of the others, and they of it."""

    def waits_for(self, needs: tuple[str, ...]) -> str:
        """Which of `needs` does not run, and why, as words; empty where all do."""
        ...

    async def start_process(self, service: Service) -> Process:
        """Start its process. Raises SpawnError, OSError."""
        ...

    def process_over(self, process: Process) -> None:
        """Nothing of it is left."""
        ...

    def changed(self, service: Service) -> None:
        """Its state is another."""
        ...


class Service:
    """One service. Whatever ends its process but `stop` and `restart` has it started again.

    Attributes:
        definition: what is to run; what runs is of a former one until it is restarted.
        stopped: somebody has stopped it, and nobody has started it since.
        restarts: how often it was started again by itself, since somebody started it.
        process: what runs.
        leaving: it is being deleted.
    """

    def __init__(self, others: Others, tasks: Tasks, clock: Clock, definition: Definition, *, stopped: bool) -> None:
        self._others = others
        self._tasks = tasks
        self._clock = clock
        self.definition = definition
        self.stopped = stopped
        self.status: Status = "stopped"
        self.error = ""
        self.restarts = 0
        self.process: Process | None = None
        self.leaving = False
        self._backoff = Backoff()
        self._started: datetime | None = None
        self._next: datetime | None = None
        self._told_to_end = False
        self._hurry = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.listeners: set[Listener] = set()

    @property
    def name(self) -> str:
        return self.definition.name

    # ---- what is asked of it ----

    def start(self) -> None:
        """Let it run, now where it waits to be started again. Nothing where it runs."""
        if self.stopped or self.status in ("stopped", "failed"):
            self._fresh()
        self.stopped = False
        self._live()

    def resume(self) -> None:
        """Let it run, unless somebody has stopped it."""
        if not self.stopped:
            self._live()

    def restart(self, seconds: float) -> None:
        """End its process, if there is one, and start it as it is defined now."""
        self._fresh()
        self.stopped = False
        if self._runs():
            self._end(seconds)
        self._live()

    def stop(self, seconds: float) -> None:
        """End it for good: by SIGTERM, and after `seconds` by force."""
        self.stopped = True
        self._next = None
        if self._runs():
            self._end(seconds)
        self._hurry.set()

    def signal(self, number: int) -> bool:
        """Signal its processes. Returns whether it runs."""
        return self.process is not None and self._runs() and self.process.signal(number)

    async def over(self) -> None:
        """Wait until it has been stopped."""
        if self._life is not None:
            await asyncio.wait([self._life])

    def _runs(self) -> bool:
        """Whether there is a process that has not ended; what one leaves behind may take its time."""
        return self.process is not None and not self.process.ended.done()

    def _wanted(self) -> bool:
        return not self.stopped

    def hurry(self) -> None:
        """What it waits for may have changed."""
        self._hurry.set()

    def _fresh(self) -> None:
        """Somebody has started it: what was before does not count."""
        self._backoff = Backoff()
        self.restarts = 0
        self.error = ""
        self._next = None
        self._hurry.set()

    def _end(self, seconds: float) -> None:
        process = self.process
        assert process is not None
        self._told_to_end = True
        if self.status != "stopping":
            self._become("stopping")
            self._tell(Happened("stopping"))
        if seconds > 0:
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)
            self._tasks.start(self._kill_later(process, seconds), f"end {self.name}")
        else:
            process.kill()

    async def _kill_later(self, process: Process, seconds: float) -> None:
        sleeping: asyncio.Future[Any] = asyncio.ensure_future(self._clock.sleep(seconds))
        ended: asyncio.Future[Any] = asyncio.shield(process.ended)
        try:
            await asyncio.wait({sleeping, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            ended.cancel()
        if not process.ended.done():
            log.info("service %s did not end within %g s", self.name, seconds)
            process.kill()

    # ---- its life ----

    def _live(self) -> None:
        if self._life is None or self._life.done():
            self._life = self._tasks.start(self._run(), f"service {self.name}")

    async def _run(self) -> None:
        if self.process is not None:
            await self._attend(self.process)
        await self._wait_for_next()
        while self._wanted():
            if not await self._ready():
                break
            try:
                process = await self._others.start_process(self)
            except (SpawnError, OSError) as error:
                self._failed(0.0, str(error))
                await self._wait_for_next()
                continue
            self.process = process
            self._started = self._clock.now()
            self._next = None
            self.error = ""
            self._become("running")
            log.info("service %s runs as %d", self.name, process.inner_pid)
            self._tell(Happened("started"))
            if not self._wanted():  # it was stopped meanwhile
                self._end(0)
            await self._attend(process)
            await self._wait_for_next()
        self._become("stopped")

    async def _ready(self) -> bool:
        """Wait until all that it needs runs; False where it is stopped before."""
        while not self.stopped:
            self._hurry.clear()
            waits = self._others.waits_for(self.definition.needs)
            if not waits:
                self.error = ""
                if self.status != "starting":
                    self._become("starting")
                return True
            if self.status != "starting" or self.error != waits:
                self.error = waits
                self._become("starting")
            await self._hurry.wait()
        return False

    async def _attend(self, process: Process) -> None:
        """See a process to its end, and what it left behind."""
        began = self._clock.monotonic()
        status = await process.ended
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        told, self._told_to_end = self._told_to_end, False
        if not told:
            self._failed(self._ran(began), _how(status))
        await process.finish()
        self._others.process_over(process)
        self.process = None
        self._tell(Happened("stopped" if told else "exit", code))
        self._others.changed(self)

    def _ran(self, began: float) -> float:
        """Seconds that its process ran; of an earlier agent's, by the time of day."""
        of_this_agent = self._clock.monotonic() - began
        by_day = (self._clock.now() - self._started).total_seconds() if self._started is not None else 0.0
        return max(of_this_agent, by_day)

    def _failed(self, ran: float, how: str) -> None:
        seconds = self._backoff.after(ran)
        self._next = self._clock.now() + timedelta(seconds=seconds)
        self.error = how
        self._hurry.clear()
        log.warning("service %s: %s; it is started again in %g s", self.name, how, seconds)
        self._become("failed")
        if self.process is None:
            self._tell(Happened("error", text=how))

    async def _wait_for_next(self) -> None:
        """Wait until it is to be started again; less where somebody wants it now, or no more."""
        while self._next is not None and not self.stopped:
            seconds = (self._next - self._clock.now()).total_seconds()
            if seconds <= 0:
                break
            self._hurry.clear()
            sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
            waiting = asyncio.ensure_future(self._hurry.wait())
            try:
                await asyncio.wait([sleeping, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                waiting.cancel()
            if sleeping.done() and not sleeping.cancelled():
                break
        if self._next is not None:  # else somebody has started it
            self._next = None
            if not self.stopped:
                self.restarts += 1

    def _become(self, status: Status) -> None:
        self.status = status
        if status == "stopped":
            self.error = ""
            self._started = self._next = None
        self._others.changed(self)

    def _tell(self, happened: Happened) -> None:
        for each in list(self.listeners):
            each(happened)

    # ---- views ----

    def view(self) -> dict[str, Any]:
        """The contract's item (2.5)."""
        state: dict[str, Any] = {"name": self.name, "status": self.status, "restart_count": self.restarts}
        if self.process is not None and not self.process.ended.done():
            state["pid"] = self.process.inner_pid
            if self._started is not None:
                state["started_at"] = rfc3339(self._started)
        if self.error:
            state["error"] = self.error
        if self._next is not None:
            state["next_restart_at"] = rfc3339(self._next)
        return {**self.definition.json(), "state": state}

    def note(self) -> dict[str, Any]:
        """What the next agent needs to go on with it."""
        return {
            "definition": self.definition.json(),
            "stopped": self.stopped,
            "restarts": self.restarts,
            "ended": self._backoff.ended,
            "error": self.error,
            "started": self._started.timestamp() if self._started is not None else None,
            "next": self._next.timestamp() if self._next is not None else None,
            "told": self._told_to_end,
            "leaving": self.leaving,
            "process": self.process.note() if self.process is not None and not self.process.ended.done() else None,
        }

    def go_on(self, note: dict[str, Any], process: Process | None) -> None:
        """Go on from an earlier agent's `note`."""
        self.leaving = bool(note["leaving"])
        self.restarts = int(note["restarts"])
        self._backoff = Backoff(int(note["ended"]))
        self._started = _moment(note["started"])
        self.error = str(note["error"])
        if process is None and note["process"] is None:
            self._next = _moment(note["next"])
            if self._next is not None:
                self.status = "failed"
        if process is not None:
            self.process = process
            self.status = "running"
            if note["told"] or self.stopped:
                self._end(_LATE_SECONDS)
            self._live()
        self.resume()


# What a process that was told to end before the agent was replaced gets after that.
_LATE_SECONDS = 10.0


def _moment(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(number).name}"
        return f"it was ended by signal {number}"
    return f"it exited with {os.WEXITSTATUS(status)}"
