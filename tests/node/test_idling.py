"""When a sprite sleeps, by a clock that the test moves, and who gets in while it is on its way."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ballpoint.core.hosts import Site
from ballpoint.core.types import Caller
from ballpoint.host.changes import Changes
from ballpoint.node.lifecycle.idling import Idling
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.listing import Listing
from ballpoint.node.logbook import Logbook
from ballpoint.node.node import Node
from ballpoint.node.views import Reason
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from tests.node.test_endings import Disks, Savings

IDLE, COLD = 30.0, 3600.0
# The first words of the names of tasks: what idling does with a sprite, and the records of what became of it.
BY_THE_WAY = ("idle", "running", "warm")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass(eq=False)
class Runtime:
    """An instance of no processes, which is frozen as slowly as the test wants."""

    id: str
    busy: bool = False
    frozen: bool = False
    freezes: bool = True
    held: bool = False
    let: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    note: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.socket = Path(f"{self.id}.sock")

    async def _step(self) -> None:
        if self.held:
            await self.let.acquire()

    async def ping(self, seconds: float) -> dict[str, Any]:
        await self._step()
        return {}

    async def freeze(self) -> bool:
        await self._step()
        self.frozen = self.freezes
        await self._step()
        return self.freezes

    def thaw(self) -> None:
        self.frozen = False

    async def set_note(self, note: dict[str, Any]) -> None:
        self.note = note
        await self._step()

    def logs(self) -> bytes:
        return b""

    def release(self) -> None:
        pass


class Starts:
    """Ends what it is told to, and starts nothing."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, bool]] = []

    async def stop(self, running: Running, *, gently: bool = False) -> None:
        self.ended.append((running.sprite_id, gently))


class Tasks:
    """What code inside asked for."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def reasons(self, running: Running) -> list[Reason]:
        return [Reason(kind="task", what="t")] if running.sprite_id in self.held else []


class Scene:
    """A node whose sprites run nothing, and what watches over them."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.clock = Clock()
        self.leases = Leases(self.clock)
        site = Site("test.localhost", "http", 80)
        changes = Changes(folder / "changes", counts=True)
        logbook = Logbook(folder / "logs")
        self.node = Node(registry, cast(Any, None), logbook, self.leases, self.clock, site=site, changes=changes)
        self.tasks = Tasks()
        self.missing = 0
        self.idling = Idling(
            self.node,
            [self.tasks],
            idle_seconds=IDLE,
            cold_seconds=COLD,
            short=lambda: self.missing,
            clock=self.clock,
        )
        self.starts = Starts()
        nothing = cast(Any, None)
        self.node.use(cast(Any, self.starts), nothing, Disks(), Savings(), self.idling, nothing)

    async def sprite(self, name: str) -> Runtime:
        """A running sprite."""
        token = (await self.node.registry.create_token("acme", name))[0]
        self.caller = Caller(org_id=token.org_id, org="acme", token_id="t")
        empty: dict[str, Any] = {"environment": {}, "labels": [], "config": {}, "url_settings": {}}
        made = self.node.registry.new_sprite(
            self.caller, name, sprite_id=name, volume_id=f"v-{name}", image_digest="d", **empty
        )
        await self.node.registry.create_sprite(made, "created")
        runtime = Runtime(f"i-{name}")
        instance: Any = type("Instance", (), {"runtime": runtime, "id": runtime.id})()
        volume: Any = type("Volume", (), {"id": f"v-{name}", "release": lambda self: None})()
        self.node.running[name] = Running(name, instance, volume, org_id=token.org_id, changed=self.clock.at)
        return runtime

    async def touch(self, name: str, edge: object) -> None:
        """What the node does with an edge's question."""
        running = await self.node.touch_sprite(name, name, "a test")
        runtime = cast(Runtime, running.instance.runtime)
        assert not runtime.frozen, "let in by a sprite that sleeps"
        self.leases.grant(edge, str(runtime.socket), "exec")

    async def pass_time(self, seconds: float) -> None:
        self.clock.at += seconds
        self.idling.look()
        await self.turn()

    async def turn(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Wait until nothing goes on any more of what nobody waits for: changes of sprites, and their records."""
        while going := [each for each in asyncio.all_tasks() if each.get_name().partition(" ")[0] in BY_THE_WAY]:
            await asyncio.wait(going)

    async def kinds(self, name: str) -> list[tuple[str, str]]:
        await self.settle()
        return [(each.kind, each.cause) for each in await self.node.registry.events(name)]


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            registry = await Registry.open(url_of(Path(folder) / "registry.db"))
            stack.push_async_callback(registry.close)
            made = Scene(registry, Path(folder))
            stack.push_async_callback(made.node.close)
            stack.push_async_callback(made.idling.close)
            yield made


async def test_idle_warm_cold() -> None:
    async with scene() as at:
        runtime = await at.sprite("one")
        await at.pass_time(IDLE - 1)
        assert not runtime.frozen
        await at.pass_time(1)
        assert (runtime.frozen, at.node.running["one"].warm) == (True, True)
        await at.pass_time(COLD - 1)
        assert "one" in at.node.running
        await at.pass_time(1)
        await at.settle()
        assert at.starts.ended == [("one", True)]
        assert await at.kinds("one") == [
            ("created", "created"), ("warm", "idle for 30 s"), ("cold", "idle for 3600 s more"),
        ]  # fmt: skip


async def test_the_time_begins_when_the_last_use_ends() -> None:
    async with scene() as at:
        runtime = await at.sprite("one")
        for edge in ("a", "b"):
            await at.touch("one", edge)
        await at.pass_time(10 * IDLE)
        at.leases.end("a", str(runtime.socket), 1)
        await at.pass_time(10 * IDLE)
        assert not runtime.frozen
        at.leases.drop("b")
        await at.pass_time(IDLE - 1)
        assert not runtime.frozen
        await at.pass_time(1)
        assert runtime.frozen


async def test_an_end_that_crossed_a_grant_is_none() -> None:
    leases = Leases(Clock())
    first = leases.grant("edge", "s", "exec")
    leases.grant("edge", "s", "exec")
    leases.end("edge", "s", first)
    assert len(leases.of("s")) == 1
    leases.restate("next", ["s", "t"])
    leases.end("next", "t", 0)
    assert (len(leases.of("s")), leases.of("t")) == (2, [])


@pytest.mark.parametrize("what", ["task", "control", "verb", "never", "trouble", "full pool"])
async def test_what_keeps_it_awake(what: str) -> None:
    async with scene() as at:
        runtime = await at.sprite("one")
        running = at.node.running["one"]
        async with AsyncExitStack() as stack:
            if what == "task":
                at.tasks.held.add("one")
            elif what == "control":
                runtime.busy = True
            elif what == "verb":
                await stack.enter_async_context(at.node.lock("one"))
            elif what == "never":
                running.idle_timeout = 0
            elif what == "trouble":
                running.trouble = "a test"
            else:
                running.frozen = True
            for _ in range(3):
                await at.pass_time(10 * IDLE)
            assert not runtime.frozen
        at.tasks.held.clear()
        runtime.busy, running.idle_timeout, running.trouble, running.frozen = False, None, None, False
        await at.pass_time(IDLE)
        assert runtime.frozen


async def test_a_task_that_comes_when_it_is_frozen_has_it_thawed() -> None:
    """Code inside had asked before; nothing else goes cold for it, or wakes."""
    async with scene() as at:
        one, two = await at.sprite("one"), await at.sprite("two")
        await at.pass_time(IDLE)
        assert (one.frozen, two.frozen) == (True, True)
        at.tasks.held.add("one")
        at.missing = 1
        await at.pass_time(COLD)
        await at.settle()
        assert (one.frozen, at.node.running["one"].warm) == (False, False)
        assert at.starts.ended == [("two", True)]
        assert (await at.kinds("one"))[-1] == ("running", "task: t")


async def test_one_that_cannot_be_frozen_goes_on_and_is_tried_again() -> None:
    async with scene() as at:
        runtime = await at.sprite("one")
        runtime.freezes = False
        await at.pass_time(IDLE)
        assert not at.node.running["one"].warm
        await at.touch("one", "edge")
        at.leases.drop("edge")
        runtime.freezes = True
        await at.pass_time(IDLE)
        assert runtime.frozen


async def test_where_memory_is_short_the_oldest_warm_one_goes_first() -> None:
    async with scene() as at:
        for name in ("one", "two", "three"):
            await at.sprite(name)
        at.node.running["three"].idle_timeout = 0
        await at.touch("two", "edge")
        await at.pass_time(IDLE)
        at.leases.drop("edge")
        await at.pass_time(IDLE)
        assert [at.node.running[name].warm for name in ("one", "two", "three")] == [True, True, False]
        at.missing = 1 << 20
        for gone in (["one"], ["one", "two"], ["one", "two"]):
            await at.pass_time(1)
            await at.settle()
            assert [name for name, _ in at.starts.ended] == gone
        assert (await at.kinds("one"))[-1] == ("cold", "memory is short")


async def test_every_sprite_is_counted_once_while_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the registry has it already and the node does not know that yet."""
    async with scene() as at:
        for name in ("one", "two"):
            await at.sprite(name)
        at.tasks.held.add("two")
        recorded, go_on = asyncio.Event(), asyncio.Event()
        set_state = at.node.registry.set_state

        async def and_waits(*arguments: Any, **more: Any) -> Any:
            done = await set_state(*arguments, **more)
            recorded.set()
            await go_on.wait()
            return done

        monkeypatch.setattr(at.node.registry, "set_state", and_waits)
        listing = Listing(at.node, at.clock)

        async def counted() -> tuple[int, int, int]:
            found = (await listing.list(at.caller, prefix="neither", limit=10, after=None)).counts
            return found.running, found.warm, found.cold

        assert await counted() == (2, 0, 0)
        await at.pass_time(IDLE)
        assert await counted() == (1, 1, 0)
        await recorded.wait()
        assert await counted() == (1, 1, 0)
        go_on.set()
        await at.settle()
        assert await counted() == (1, 1, 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("touch"), st.integers(0, 2)),
            st.tuples(st.just("end"), st.integers(0, 2)),
            st.tuples(st.sampled_from(["hold", "let", "task", "no task", "busy", "not busy", "edge dies"]), st.just(0)),
            st.tuples(st.just("time"), st.sampled_from([1, 29, 31])),
            st.tuples(st.just("let"), st.just(0)),
        ),
        max_size=40,
    )
)
@example([("hold", 0), ("time", 31), ("let", 0), ("touch", 0), ("let", 0)])
@example([("hold", 0), ("time", 31), ("let", 0), ("let", 0), ("touch", 0), ("let", 0)])
@settings(max_examples=60)
def test_whoever_is_let_in_has_a_sprite_that_runs(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of grants, ends, freezes and touches; and one that nobody holds sleeps in the end."""

    async def play() -> None:
        async with scene() as at:
            runtime = await at.sprite("one")
            touching: list[asyncio.Task[None]] = []
            for kind, value in steps:
                if kind == "touch":
                    touching.append(asyncio.create_task(at.touch("one", value)))
                elif kind == "end":
                    at.leases.end(value, str(runtime.socket), 1 << 30)
                elif kind == "edge dies":
                    at.leases.drop(0)
                elif kind == "hold":
                    runtime.held = True
                elif kind == "let":
                    runtime.let.release()
                elif kind in ("task", "no task"):
                    (at.tasks.held.add if kind == "task" else at.tasks.held.discard)("one")
                elif kind in ("busy", "not busy"):
                    runtime.busy = kind == "busy"
                    at.node.activity_changed(at.node.running["one"])
                else:
                    await at.pass_time(value)
                await at.turn()
                if at.leases.of(str(runtime.socket)):
                    assert not runtime.frozen
            runtime.held = False
            for _ in range(4):
                runtime.let.release()
            async with asyncio.timeout(10):
                await asyncio.gather(*touching)
            await at.turn()
            assert not (at.leases.of(str(runtime.socket)) and runtime.frozen)
            for edge in range(3):
                at.leases.drop(edge)
            at.tasks.held.clear()
            runtime.busy = False
            await at.pass_time(IDLE)
            await at.pass_time(IDLE)
            assert runtime.frozen
            assert at.node.running["one"].warm

    asyncio.run(play())
