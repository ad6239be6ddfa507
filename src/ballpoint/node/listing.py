"""What callers see of their sprites: pages, what changes, events, logs. Looking wakes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.types import Caller
from ballpoint.node.node import Node
from ballpoint.node.views import Counts, EventView, ListingLine, SpritePage, SpriteView
from ballpoint.registry.records import Event

_HEARTBEAT_SECONDS = 15.0
_LISTING_SECONDS = 0.1
_PAGE = 500


class Listing:
    """The sprites of a node as their organizations see them."""

    def __init__(self, node: Node, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._clock = clock

    async def list(self, caller: Caller, *, prefix: str, limit: int, after: str | None) -> SpritePage:
        sprites, token = await self._node.registry.list_sprites(caller.org_id, prefix=prefix, limit=limit, after=after)
        return SpritePage(sprites=tuple(map(self._node.view, sprites)), next=token, counts=await self._counts(caller))

    async def _counts(self, caller: Caller) -> Counts:
        """As the registry has it, but for those of which it may not know yet what has become of them."""
        running = self._node.running
        behind = [
            each.sprite_id for each in running.values() if each.status != each.recorded and each.org_id == caller.org_id
        ]
        counts, there = await self._node.registry.counts(caller.org_id, apart=behind)
        for sprite_id in there:
            counts[running[sprite_id].status if sprite_id in running else "cold"] += 1
        return Counts(**counts)

    async def watch_list(self, caller: Caller, *, prefix: str) -> AsyncIterator[ListingLine]:
        shown: dict[str, tuple[Any, ...]] = {}
        begun = False
        async with self._node.registry.watch_all() as changed:
            while True:
                views = await self._all(caller, prefix)
                counts = await self._counts(caller)
                for view in views:
                    facts = (view.status, view.health, view.last_running_at, view.last_warming_at)
                    if shown.get(view.name) != facts:
                        shown[view.name] = facts
                        yield ListingLine(kind="sprite", sprite=view, name=view.name, counts=counts)
                for name in shown.keys() - {view.name for view in views}:
                    del shown[name]
                    yield ListingLine(kind="removed", name=name, counts=counts)
                if not begun and not views:  # whoever asks hears at once that the watch is on
                    yield ListingLine(kind="heartbeat", counts=counts)
                begun = True
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):
                        await changed()
                except TimeoutError:
                    yield ListingLine(kind="heartbeat", counts=counts)
                # Of much that happens at once, the sum is told.
                await self._clock.sleep(_LISTING_SECONDS)

    async def _all(self, caller: Caller, prefix: str) -> Sequence[SpriteView]:
        found: tuple[SpriteView, ...] = ()
        after: str | None = None
        while True:
            page = self._node.registry.list_sprites(caller.org_id, prefix=prefix, limit=_PAGE, after=after)
            sprites, after = await page
            found += tuple(map(self._node.view, sprites))
            if after is None:
                return found

    async def events(self, caller: Caller, name: str, *, follow: bool) -> AsyncIterator[EventView]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        after = 0
        async with self._node.registry.watch(sprite.id) as changed:
            while True:
                found = await self._node.registry.events(sprite.id, after=after)
                for event in found:
                    after = event.id
                    yield _event_view(event)
                    if event.kind == "deleted":
                        return
                if found:
                    continue  # there may be more than a page
                if not follow:
                    return
                await changed()

    async def logs(self, caller: Caller, name: str) -> AsyncIterator[bytes]:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        former = await asyncio.to_thread(self._node.logbook.read, sprite.id)
        running = self._node.running.get(sprite.id)
        yield former + (running.instance.runtime.logs() if running is not None else b"")


def _event_view(event: Event) -> EventView:
    return EventView(time=event.time, kind=event.kind, cause=event.cause, detail=event.detail or None)
