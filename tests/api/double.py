"""A node of values only: it remembers sprites, and fails in the way a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError
from ballpoint.core.types import Caller
from ballpoint.node.views import (
    Counts,
    EventView,
    NewSprite,
    Privileges,
    SpriteChanges,
    SpritePage,
    SpriteView,
)

ALICE = Caller(org_id="o1", org="acme", token_id="t1")
MALLORY = Caller(org_id="o2", org="other", token_id="t2")
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def caller_header(caller: Caller = ALICE) -> dict[str, str]:
    """What the edge says of `caller`."""
    return {"X-Ballpoint-Caller": msgspec.json.encode(caller).decode()}


class NodeDouble:
    """Implements `NodeService`.

    Attributes:
        failure: raised by every verb while it is set.
        asked: each verb's name and arguments, in order.
        more: wakes `follow`ing readers of events; a False in it ends them.
        late_failure: raised after the first event.
        open_streams: event iterators that were begun and not closed; `closed` is set when one is closed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sprites: dict[tuple[str, str], SpriteView] = {}
        self.policies: dict[tuple[str, str], Privileges] = {}
        self.requests: list[NewSprite] = []
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None
        self.asked: list[tuple[str, Any]] = []
        self.more: asyncio.Queue[bool] = asyncio.Queue()
        self.open_streams = 0
        self.closed = asyncio.Event()
        self.counts = Counts(running=1, warm=2, cold=3)

    def put(self, name: str, caller: Caller = ALICE, **fields: Any) -> SpriteView:
        """Have a sprite of that name."""
        view = SpriteView(
            id=f"sprite-{name}",
            name=name,
            organization=caller.org,
            url=f"http://{name}-{caller.org_id}.example",
            version="blake3:00",
            **{"status": "running", "created_at": START, "updated_at": START, **fields},
        )
        self.sprites[caller.org_id, name] = view
        return view

    def _meet(self, verb: str, **arguments: Any) -> None:
        self.asked.append((verb, arguments))
        if self.failure is not None:
            raise self.failure

    def _find(self, caller: Caller, name: str) -> SpriteView:
        try:
            return self.sprites[caller.org_id, name]
        except KeyError:
            raise NotFoundError(f"there is no sprite {name!r}", hint="list shows yours") from None

    async def create(self, caller: Caller, request: NewSprite) -> SpriteView:
        self._meet("create")
        if (caller.org_id, request.name) in self.sprites:
            raise ConflictError("the name is taken", hint="choose another", code="sprite_exists")
        self.requests.append(request)
        return self.put(
            request.name,
            caller,
            environment=request.environment,
            labels=request.labels,
            config=request.config,
            url_settings=request.url_settings,
            last_running_at=START,
        )

    async def get(self, caller: Caller, name: str) -> SpriteView:
        self._meet("get")
        return self._find(caller, name)

    async def list(self, caller: Caller, *, prefix: str, limit: int, after: str | None) -> SpritePage:
        self._meet("list", prefix=prefix, limit=limit, after=after)
        if after is not None and not after.startswith("after:"):
            raise InvalidError("that is no continuation token")
        mine = sorted(name for org, name in self.sprites if org == caller.org_id and name.startswith(prefix))
        rest = [name for name in mine if after is None or name > after.removeprefix("after:")]
        return SpritePage(
            sprites=tuple(self.sprites[caller.org_id, name] for name in rest[:limit]),
            next=f"after:{rest[limit - 1]}" if len(rest) > limit else None,
            counts=self.counts,
        )

    async def update(self, caller: Caller, name: str, changes: SpriteChanges) -> SpriteView:
        self._meet("update")
        view = self._find(caller, name)
        if changes.labels is not None:
            view = msgspec.structs.replace(view, labels=changes.labels)
        if changes.url_settings is not None:
            view = msgspec.structs.replace(view, url_settings=changes.url_settings.applied_to(view.url_settings))
        self.sprites[caller.org_id, name] = view
        return view

    async def destroy(self, caller: Caller, name: str) -> None:
        self._meet("destroy")
        self._find(caller, name)
        del self.sprites[caller.org_id, name]

    async def restart(self, caller: Caller, name: str) -> SpriteView:
        self._meet("restart")
        return self._find(caller, name)

    async def events(self, caller: Caller, name: str, *, follow: bool) -> AsyncIterator[EventView]:
        self._meet("events", follow=follow)
        self._find(caller, name)
        self.open_streams += 1
        try:
            yield EventView(time=START, kind="created", cause="the API asked", detail={"image": "blake3:00"})
            if self.late_failure is not None:
                raise self.late_failure
            yield EventView(time=START + timedelta(seconds=1), kind="running", cause="claimed a blank")
            while follow and await self.more.get():
                yield EventView(time=START, kind="note", cause="a test")
        finally:
            self.open_streams -= 1
            self.closed.set()

    async def logs(self, caller: Caller, name: str) -> AsyncIterator[bytes]:
        self._meet("logs")
        self._find(caller, name)
        for line in (b"agent: ready\n", "container: gr\u00fc\u00df dich\n".encode()):
            yield line

    async def privileges(self, caller: Caller, name: str) -> Privileges:
        self._meet("privileges")
        self._find(caller, name)
        return self.policies.get((caller.org_id, name), Privileges())

    async def set_privileges(self, caller: Caller, name: str, privileges: Privileges) -> None:
        self._meet("set_privileges")
        self._find(caller, name)
        self.policies[caller.org_id, name] = privileges

    async def clear_privileges(self, caller: Caller, name: str) -> None:
        self._meet("clear_privileges")
        self._find(caller, name)
        self.policies.pop((caller.org_id, name), None)
