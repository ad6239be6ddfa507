"""What was granted keeps its sprite awake, in whatever order freezes, touches, tasks and ends of the node come.

Time is the test's own, and each step of a freeze takes place when the test says so: between any two other events.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ballpoint.core.errors import NotFoundError
from ballpoint.core.hosts import Site
from ballpoint.host.changes import Changes
from ballpoint.node.inside import SCOPE_KEY, Inside
from ballpoint.node.lifecycle.holds import Holds
from ballpoint.node.lifecycle.idling import Idling
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.logbook import Logbook
from ballpoint.node.node import Node
from tests.node.test_endings import Disks, Savings
from tests.node.test_idling import IDLE, Clock, Runtime, Starts

SPRITE = "one"
EDGES = st.sampled_from(["edge-1", "edge-2"])
TASKS = st.sampled_from(["build", "test"])
# Nothing here waits for more than that, unless it waits for the test.
_TURNS = 40


class Registry:
    """Knows one sprite, at once."""

    async def sprite_id(self, org_id: str, name: str) -> str:
        return name

    async def sprite_by_id(self, sprite_id: str) -> Any:
        return SimpleNamespace(org_id="o", org="acme", name=sprite_id)

    async def set_state(self, sprite_id: str, state: str, *, kind: str, cause: str) -> None:
        pass

    async def refresh(self) -> None:
        pass


@dataclass
class Question:
    """What code inside asks: that a task lasts so long from now, or that it ends."""

    method: str
    task: str
    seconds: float
    asked_at: float
    status: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def target(self) -> str:
        return f"/v1/tasks/{self.task}"

    @property
    def body(self) -> bytes:
        return json.dumps({"expire": self.seconds}).encode()

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        self.status = status

    async def write(self, data: bytes) -> None:
        pass


class Life:
    """A process of the node, which finds the sprite as the kernel has it."""

    def __init__(self, folder: Path, clock: Clock, runtime: Runtime) -> None:
        self.runtime = runtime
        self.leases = Leases(clock)
        registry: Any = Registry()
        self.changes = Changes(folder / "changes", counts=True)
        site = Site("test.localhost", "http", 80)
        self.node = Node(
            registry, cast(Any, None), Logbook(folder), self.leases, clock, site=site, changes=self.changes
        )
        self.inside, self.holds = Inside(registry), Holds(self.node, clock)
        self.idling = Idling(
            self.node, [self.inside, self.holds], idle_seconds=IDLE, cold_seconds=0, short=lambda: 0, clock=clock
        )
        nothing = cast(Any, None)
        self.node.use(cast(Any, Starts()), nothing, Disks(), Savings(), self.idling, nothing)
        self.inside.open(self._serve)
        instance: Any = SimpleNamespace(runtime=runtime, id=runtime.id)
        volume: Any = SimpleNamespace(id="v", release=lambda: None)
        self.running = Running(SPRITE, instance, volume, org_id="o1", warm=runtime.frozen, changed=clock.at)
        self.node.running[SPRITE] = self.running

    async def _serve(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The control API, as far as it is asked here."""
        name, caller = scope[SCOPE_KEY]
        task = scope["path"].rpartition("/")[2]
        body, status = json.loads((await receive())["body"]), 200
        try:
            if scope["method"] == "PUT":
                await self.holds.put(caller, name, task, body["expire"])
            else:
                await self.holds.delete(caller, name, task)
        except NotFoundError as error:
            status = error.status
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def touch(self, edge: str) -> None:
        """What the node does with an edge's question."""
        await self.node.touch_sprite(SPRITE, SPRITE, "a test")
        assert not self.runtime.frozen, "let in by a sprite that sleeps"
        self.leases.grant(edge, str(self.runtime.socket), "exec")

    async def close(self) -> None:
        await self.idling.close()
        await self.node.close()
        self.changes.close()


class KeptAwake(RuleBasedStateMachine):
    """One sprite, those who want it, and a node that ends at any time.

    Attributes:
        held: edges that have a connection to the sprite.
        unheard: those of them of which the present process of the node has not heard yet.
        tasks: until when each lasts at least, of those whose answer has come.
        sent: what code inside has asked that has not come to the node yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock, self.runtime = Clock(), Runtime("i-one")
        self.held: set[str] = set()
        self.unheard: set[str] = set()
        self.tasks: dict[str, float] = {}
        self.sent: list[Question] = []
        self.asking: list[tuple[asyncio.Task[None], Question]] = []
        self.touching: list[tuple[asyncio.Task[None], str]] = []
        self.run(self._next_life)

    def run(self, work: Any = None) -> None:
        async def whole() -> None:
            if work is not None:
                work()
            for _ in range(_TURNS):
                await asyncio.sleep(0)

        self.runner.run(whole())
        for task, edge in [each for each in self.touching if each[0].done()]:
            task.result()
            self.held.add(edge)
            self.touching.remove((task, edge))
        for each, question in [each for each in self.asking if each[0].done()]:
            each.result()
            self.asking.remove((each, question))
            if (question.method, question.status) == ("PUT", 200):
                self.tasks[question.task] = question.asked_at + question.seconds

    def _next_life(self) -> None:
        self.life = Life(Path(self.folder.name), self.clock, self.runtime)

    def _touch(self, edge: str) -> None:
        self.touching.append((asyncio.get_running_loop().create_task(self.life.touch(edge)), edge))

    def teardown(self) -> None:
        try:
            self.all_is_done()
        finally:
            self.runner.run(self.life.close())
            self.runner.close()
            self.folder.cleanup()

    # ---- edges ----

    @rule(edge=EDGES)
    def touches(self, edge: str) -> None:
        if edge not in self.unheard:  # an edge says first what it has
            self.run(lambda: self._touch(edge))

    @rule(edge=EDGES)
    def leaves(self, edge: str) -> None:
        """It has no connection any more."""
        if edge in self.held - self.unheard and edge not in [each for _, each in self.touching]:
            self.held.discard(edge)
            self.run(lambda: self.life.leases.end(edge, str(self.runtime.socket), 1 << 30))

    @rule(edge=EDGES)
    def dies(self, edge: str) -> None:
        if edge not in [each for _, each in self.touching]:
            self.held.discard(edge)
            self.unheard.discard(edge)
            self.run(lambda: self.life.leases.drop(edge))

    @precondition(lambda self: self.unheard)
    @rule()
    def edges_say_what_they_hold(self) -> None:
        def say() -> None:
            for edge in self.unheard:
                self.life.leases.restate(edge, [str(self.runtime.socket)])

        self.run(say)
        self.unheard.clear()

    # ---- code inside ----

    @precondition(lambda self: not self.runtime.frozen)
    @rule(method=st.sampled_from(["PUT", "PUT", "DELETE"]), task=TASKS, seconds=st.sampled_from([5, 40, 400]))
    def asks(self, method: str, task: str, seconds: int) -> None:
        """It is on its way, on which the sprite may be frozen."""
        if task not in [each.task for each in [*self.sent, *(question for _, question in self.asking)]]:
            self.tasks.pop(task, None)  # from now on nobody knows, until the answer is there
            self.sent.append(Question(method, task, seconds, self.clock.at))

    @precondition(lambda self: self.sent)
    @rule()
    def comes(self) -> None:
        question = self.sent.pop(0)
        question.asked_at = self.clock.at

        async def answered() -> None:
            await self.life.inside.answer(self.life.running, cast(Any, question))

        self.run(lambda: self.asking.append((asyncio.get_running_loop().create_task(answered()), question)))

    @rule(busy=st.booleans())
    def command_on_a_control_socket(self, busy: bool) -> None:
        if self.runtime.busy != busy:
            self.runtime.busy = busy
            self.run(lambda: self.life.node.activity_changed(self.life.running))

    # ---- the node ----

    @rule(seconds=st.sampled_from([1, IDLE - 1, IDLE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.at += seconds
        self.run(self.life.idling.look)

    @rule(slowly=st.booleans(), task=st.none() | TASKS)
    def begins_to_freeze_it(self, slowly: bool, task: str | None) -> None:
        """All else has ended, but for what code inside has just asked."""
        self.all_is_done()
        for edge in self.held - self.unheard:
            self.leaves(edge)
        self.command_on_a_control_socket(False)
        self.clock.at = max(self.clock.at, *self.tasks.values(), 0.0)
        if task is not None and not self.runtime.frozen:
            self.asks("PUT", task, 400)
        self.runtime.held = slowly
        for _ in range(2):
            self.time_passes(IDLE + 1)

    @rule()
    def one_step(self) -> None:
        self.run(self.runtime.let.release)

    @rule(heard=st.booleans())
    def is_killed(self, heard: bool) -> None:
        """And comes again; the edges may be late, or the next look at who is idle."""
        again = [edge for _, edge in self.touching]

        async def end() -> None:
            for task, _ in [*self.touching, *self.asking]:
                task.cancel()
            await self.life.close()
            for task, _ in [*self.touching, *self.asking]:
                with suppress(asyncio.CancelledError):
                    await task

        self.runner.run(end())
        self.touching, self.asking, self.sent = [], [], []
        self.unheard = set(self.held)
        self.run(self._next_life)
        if heard:
            self.edges_say_what_they_hold()
        for edge in again:
            self.touches(edge)

    # ---- what holds ----

    def keeps(self) -> list[str]:
        """What was granted and has not ended."""
        tasks = [name for name, until in self.tasks.items() if until > self.clock.at]
        return [*(self.held - self.unheard), *tasks, *(["a command"] if self.runtime.busy else [])]

    @rule()
    def all_is_done(self) -> None:
        """Once everything that was begun has had its time, what is kept awake runs, and the node says what is so."""
        self.runtime.held = False
        for _ in range(8):
            self.run(self.runtime.let.release)
        while self.sent:
            self.comes()
        self.run(self.life.idling.look)
        assert (self.touching, self.asking) == ([], [])
        assert self.life.running.warm == self.runtime.frozen
        assert not (self.keeps() and self.runtime.frozen), self.keeps()

    @rule()
    def nobody_wants_it(self) -> None:
        """Then it sleeps, whatever there was before."""
        self.all_is_done()
        if not self.keeps() and not self.unheard:
            self.clock.at += 400
            for _ in range(2):
                self.clock.at += IDLE
                self.run(self.life.idling.look)
            assert self.runtime.frozen

    @invariant()
    def none_who_was_let_in_finds_it_frozen(self) -> None:
        granted = [each for each in self.life.leases.of(str(self.runtime.socket)) if each.number]
        assert not (granted and self.runtime.frozen)


TestKeptAwake = KeptAwake.TestCase
TestKeptAwake.settings = settings(max_examples=150, stateful_step_count=40)
