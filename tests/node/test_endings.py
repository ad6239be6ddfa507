"""What a node makes of the end of an instance. Instances and disks are stand-ins here; the registry is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from ballpoint.core.errors import ConflictError, CorruptError
from ballpoint.core.hosts import Site
from ballpoint.core.types import Caller
from ballpoint.host.changes import Changes
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.lifecycle.running import Running, Starter
from ballpoint.node.logbook import Logbook
from ballpoint.node.node import Node
from ballpoint.registry.database import url_of
from ballpoint.registry.records import Sprite
from ballpoint.registry.registry import Registry


class Runtime:
    id = "v"
    """An instance of no processes."""

    alive = True
    repaired = False
    socket = Path("agent.sock")

    def logs(self) -> bytes:
        return b""

    def release(self) -> None:
        pass


class Starts:
    """A starter whose stops wait until they are let.

    Attributes:
        ended: in order.
    """

    def __init__(self) -> None:
        self.ended: list[Running] = []
        self.stopping = asyncio.Semaphore(0)
        self.let = asyncio.Event()

    async def start(self, sprite: Sprite) -> Running:
        instance: Any = type("Instance", (), {"runtime": Runtime()})()
        return Running(sprite.id, instance, cast(Any, Runtime()), org_id=sprite.org_id)

    async def stop(self, running: Running, *, gently: bool = False) -> None:
        self.stopping.release()
        await self.let.wait()
        self.ended.append(running)


class Savings:
    """Saves nothing."""

    async def changed(self, sprite_id: str, volume_id: str) -> None:
        pass

    def durable_at(self, volume_id: str) -> None:
        pass

    def trouble(self, volume_id: str) -> None:
        pass

    def discarded(self, sprite: Sprite) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Disks:
    """Has every disk here."""

    async def prepare(self, sprite: Sprite) -> None:
        pass

    def is_fenced(self, volume_id: str) -> bool:
        return False

    async def take_from_store(self, sprite: Sprite) -> None:
        pass

    async def mend(self, sprite: Sprite, damage: CorruptError) -> None:
        raise damage

    async def forget(self, volume_id: str) -> None:
        pass


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    registry = await Registry.open(url_of(tmp_path / "registry.db"))
    made = Node(
        registry,
        cast(Any, None),
        Logbook(tmp_path / "logs"),
        Leases(),
        site=Site("test.localhost", "http", 80),
        changes=Changes(tmp_path / "changes", counts=True),
    )
    yield made
    await made.close()
    await registry.close()


async def one_sprite(node: Node) -> tuple[Starts, Caller, Sprite]:
    """Have a running sprite `one`."""
    starts = Starts()
    node.use(cast(Starter, starts), cast(Any, None), Disks(), Savings(), cast(Any, None), cast(Any, None))
    token = (await node.registry.create_token("acme", "of the test"))[0]
    caller = Caller(org_id=token.org_id, org="acme", token_id="t")
    nothing: dict[str, Any] = {"environment": {}, "labels": [], "config": {}, "url_settings": {}}
    sprite = node.registry.new_sprite(caller, "one", sprite_id="s", volume_id="v", image_digest="d", **nothing)
    await node.registry.create_sprite(sprite, "created")
    node.running[sprite.id] = await starts.start(sprite)
    return starts, caller, sprite


@pytest.mark.parametrize("how", ["anchor", "reboot", "halt", "signal 9"])
async def test_the_end_of_one_start_does_not_end_the_next(node: Node, how: str) -> None:
    starts, caller, sprite = await one_sprite(node)
    first = node.running[sprite.id]
    restart = asyncio.create_task(node.restart(caller, "one"))
    await starts.stopping.acquire()
    if how == "anchor":
        node.instance_died(first)
    else:
        node.inner_exited(first, how)
    starts.let.set()
    await restart
    await node.restart(caller, "one")  # one change at a time: it comes after what was made of the first start's end
    kinds = [event.kind for event in await node.registry.events(sprite.id, after=0)]
    assert kinds == ["created", "restarted", "restarted"]
    assert starts.ended[0] is first


async def test_a_sleep_goes_to_its_end_and_a_wake_comes_after_it(node: Node) -> None:
    starts, caller, sprite = await one_sprite(node)
    first = node.running[sprite.id]
    sleep = asyncio.create_task(node.sleep(caller, "one"))
    await starts.stopping.acquire()
    sleep.cancel()  # its client has gone
    wake = asyncio.create_task(node.wake(caller, "one"))
    starts.let.set()
    assert (await wake).status == "running"
    assert starts.ended == [first]
    assert node.running[sprite.id] is not first
    kinds = [event.kind for event in await node.registry.events(sprite.id, after=0)]
    assert kinds == ["created", "cold", "running"]


async def test_a_sprite_whose_removal_failed_half_way_is_not_put_to_sleep(node: Node) -> None:
    starts, caller, sprite = await one_sprite(node)
    await node.registry.set_state(sprite.id, "deleting", kind="deleting", cause="a test")
    with pytest.raises(ConflictError):
        await node.sleep(caller, "one")
    assert starts.ended == []
    assert (await node.registry.sprite_by_id(sprite.id)).state == "deleting"


@pytest.mark.parametrize("alive", [True, False])
def test_an_instance_that_died_before_anybody_listened_is_told_of(alive: bool) -> None:
    told: list[Running] = []
    nothing = cast(Any, None)
    starter = Starter(
        nothing,
        nothing,
        nothing,
        nothing,
        on_death=told.append,
        on_inner_exit=nothing,
        on_question=nothing,
        on_activity=nothing,
        before_stop=nothing,
        ensure_image=nothing,
    )
    runtime = Runtime()
    runtime.alive = alive
    running = Running("s", cast(Any, type("Instance", (), {"runtime": runtime})()), nothing, org_id="o1")
    starter.watch(running)
    assert told == ([] if alive else [running])
