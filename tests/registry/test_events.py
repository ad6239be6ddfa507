"""Events: all of them, in order, to whoever reads or waits; and bounded."""

from __future__ import annotations

import asyncio

import pytest

from ballpoint.registry import registry as module
from ballpoint.registry.records import Event
from ballpoint.registry.registry import Registry

from .world import StandingClock, add

_DEADLINE_SECONDS = 30.0


async def test_events_grow_and_carry_their_cause(registry: Registry, org: str, clock: StandingClock) -> None:
    sprite = await add(registry, org, "web")
    (made,) = await registry.events(sprite.id)
    assert (made.kind, made.cause, made.time) == ("created", "by token t1", sprite.created_at)
    first = await registry.add_event(sprite.id, "degraded", "the agent does not answer", {"seconds": 5})
    moment = clock.pass_by(1)
    second = await registry.add_event(sprite.id, "healthy", "it answers again")
    assert made.id < first.id < second.id
    assert (first.kind, first.cause, first.detail) == ("degraded", "the agent does not answer", {"seconds": 5})
    assert (second.time, second.detail) == (moment, {})
    assert await registry.events(sprite.id) == [made, first, second]
    assert await registry.events(sprite.id, after=first.id) == [second]
    assert await registry.events(sprite.id, after=made.id, limit=1) == [first]
    (others,) = await registry.events((await add(registry, org, "other")).id)
    assert others.kind == "created"


async def test_a_deleted_sprite_leaves_its_events(registry: Registry, org: str) -> None:
    sprite = await add(registry, org, "web")
    await registry.add_event(sprite.id, "degraded", "")
    assert await registry.delete_sprite(sprite.id, "destroyed with token t1")
    left = await registry.events(sprite.id)
    assert [(event.kind, event.cause) for event in left[1:]] == [
        ("degraded", ""),
        ("deleted", "destroyed with token t1"),
    ]
    assert not await registry.delete_sprite(sprite.id, "again")
    assert await registry.events(sprite.id) == left


async def test_of_one_sprite_the_latest_events_are_kept(
    registry: Registry, org: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVENTS_KEPT", 5)
    busy, quiet, other = [await add(registry, org, name) for name in ("busy", "quiet", "other")]
    early = await registry.events(quiet.id)
    made: dict[str, list[Event]] = {sprite.id: await registry.events(sprite.id) for sprite in (busy, other)}
    for _ in range(12):
        for sprite in (busy, other):
            made[sprite.id].append(await registry.add_event(sprite.id, "tick", ""))
            assert await registry.events(sprite.id) == made[sprite.id][-5:]
    assert [event.kind for event in early] == ["created"]
    assert await registry.events(quiet.id) == early


async def test_of_all_sprites_the_latest_events_are_kept(
    registry: Registry, org: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVENTS_KEPT_OF_ALL", 6)
    gone = []
    for _ in range(10):
        sprite = await add(registry, org, "web")
        await registry.delete_sprite(sprite.id, "")
        gone.append(sprite.id)
    kept = [len(await registry.events(sprite_id)) for sprite_id in gone]
    assert sum(kept) == 6
    assert kept == sorted(kept)


async def test_who_waits_is_woken_by_every_kind_of_change(registry: Registry, org: str) -> None:
    sprite = await add(registry, org, "web")
    async with registry.watch(sprite.id) as changed, asyncio.timeout(_DEADLINE_SECONDS):
        for change in (
            registry.add_event(sprite.id, "degraded", ""),
            registry.set_state(sprite.id, "cold", kind="stopped", cause=""),
            registry.delete_sprite(sprite.id, ""),
        ):
            waiting = asyncio.ensure_future(changed())
            await change
            await waiting
    assert [event.kind for event in await registry.events(sprite.id)] == ["created", "degraded", "stopped", "deleted"]


async def test_a_change_before_the_wait_is_not_missed(registry: Registry, org: str) -> None:
    sprite = await add(registry, org, "web")
    async with registry.watch(sprite.id) as changed, asyncio.timeout(_DEADLINE_SECONDS):
        await registry.add_event(sprite.id, "tick", "")
        await registry.add_event(sprite.id, "tick", "")
        await changed()
        waiting = asyncio.ensure_future(changed())
        await registry.events(sprite.id)
        assert not waiting.done()
        await registry.add_event(sprite.id, "tick", "")
        await waiting


async def test_only_who_watches_the_sprite_is_woken(registry: Registry, org: str) -> None:
    sprite, other = await add(registry, org, "web"), await add(registry, org, "other")
    async with (
        registry.watch(sprite.id) as first,
        registry.watch(sprite.id) as second,
        registry.watch(other.id) as third,
    ):
        waiting = [asyncio.ensure_future(each()) for each in (first, second, third)]
        await registry.add_event(sprite.id, "tick", "")
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await asyncio.gather(*waiting[:2])
        await registry.events(other.id)
        assert not waiting[2].done()
        waiting[2].cancel()


async def test_a_follower_sees_each_event_once_and_in_order(registry: Registry, org: str) -> None:
    sprite = await add(registry, org, "web")
    seen: list[Event] = []

    async def follow() -> None:
        async with registry.watch(sprite.id) as changed:
            while not seen or seen[-1].kind != "deleted":
                new = await registry.events(sprite.id, after=seen[-1].id if seen else 0)
                seen.extend(new)
                if not new:
                    await changed()

    async with asyncio.timeout(_DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await asyncio.gather(*(registry.add_event(sprite.id, "tick", str(number)) for number in range(50)))
        await registry.delete_sprite(sprite.id, "")
    assert seen == await registry.events(sprite.id)
