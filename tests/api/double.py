"""A node of values only: it remembers sprites, and fails in the way a test asks for."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from ballpoint.api.app import make_app
from ballpoint.api.service import LogInService
from ballpoint.api.tasks import TaskService
from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError
from ballpoint.core.metrics import Metrics
from ballpoint.core.types import Caller
from ballpoint.node.views import (
    DEFAULT_IDLE_TIMEOUT,
    ActivityView,
    CheckpointView,
    CheckView,
    Counts,
    DiskView,
    EventView,
    ListingLine,
    NewFork,
    NewSprite,
    Privileges,
    Progress,
    Reason,
    Resources,
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


def behind_edge(app: ASGIApp) -> ASGIApp:
    """`app` with the edge's part played: every request comes from Alice."""

    async def edge(scope: Scope, receive: Receive, send: Send) -> None:
        caller = [(name.lower().encode(), value.encode()) for name, value in caller_header().items()]
        await app({**scope, "headers": [*scope["headers"], *caller]}, receive, send)

    return edge


class NodeDouble:
    """Implements `NodeService` and `DiskService`.

    Attributes:
        failure: raised by every verb while it is set.
        asked: each verb's name and arguments, in order.
        more: wakes `follow`ing readers of events, and while `slow` is set lets a checkpoint or restore come to its
            end; a False in it breaks them off.
        lag: of every disk that is not synced now, in seconds.
        late_failure: raised after the first event, and after the first step of a checkpoint or restore.
        open_streams: iterators that were begun and not closed; `closed` is set when one is closed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sprites: dict[tuple[str, str], SpriteView] = {}
        self.policies: dict[tuple[str, str], Privileges] = {}
        self.checkpoints_of: dict[tuple[str, str], list[CheckpointView]] = {}
        self.requests: list[NewSprite] = []
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None
        self.asked: list[tuple[str, Any]] = []
        self.more: asyncio.Queue[bool] = asyncio.Queue()
        self.slow = False
        self.lag: float | None = 4.25
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

    def put_checkpoint(
        self, name: str, caller: Caller = ALICE, *, comment: str = "", durable: bool = False
    ) -> CheckpointView:
        """Have another checkpoint of that sprite."""
        made = self._checkpoints(caller, name)
        view = CheckpointView(
            id=f"v{len(made)}",
            create_time=START,
            comment=comment,
            is_auto=False,
            durable=durable,
            source_id=made[-1].id if made else None,
            history=tuple(each.id for each in made),
        )
        made.append(view)
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
            idle_timeout=request.idle_timeout,
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
        if changes.idle_timeout is not None:
            asked = None if changes.idle_timeout == DEFAULT_IDLE_TIMEOUT else changes.idle_timeout
            view = msgspec.structs.replace(view, idle_timeout=asked)
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

    async def sleep(self, caller: Caller, name: str) -> SpriteView:
        self._meet("sleep")
        return self._change(caller, name, status="cold")

    async def wake(self, caller: Caller, name: str) -> SpriteView:
        self._meet("wake")
        return self._change(caller, name, status="running")

    def _change(self, caller: Caller, name: str, **fields: Any) -> SpriteView:
        view = self.sprites[caller.org_id, name] = msgspec.structs.replace(self._find(caller, name), **fields)
        return view

    async def activity(self, caller: Caller, name: str) -> ActivityView:
        self._meet("activity")
        reason = Reason(kind="request", what="exec", since=START)
        return ActivityView(status=self._find(caller, name).status, reasons=(reason,), idle_timeout=30.0)

    async def check(self, caller: Caller, name: str) -> CheckView:
        self._meet("check")
        sprite = self._find(caller, name)
        return CheckView(sprite=sprite, status="healthy", reason=None, checked_at=START, elapsed=0.25)

    async def watch_list(self, caller: Caller, *, prefix: str) -> AsyncIterator[ListingLine]:
        self._meet("watch_list", prefix=prefix)
        self.open_streams += 1
        try:
            for (org, name), view in sorted(self.sprites.items()):
                if org == caller.org_id and name.startswith(prefix):
                    yield ListingLine(kind="sprite", sprite=view, name=name, counts=self.counts)
            while await self.more.get():
                yield ListingLine(kind="heartbeat", counts=self.counts)
        finally:
            self.open_streams -= 1
            self.closed.set()

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

    async def resources(self, caller: Caller, name: str) -> Resources:
        self._meet("resources")
        return Resources(memory_mb=self._find(caller, name).config.ram_mb)

    async def set_resources(self, caller: Caller, name: str, resources: Resources) -> None:
        self._meet("set_resources", resources=resources)
        config = self._find(caller, name).config
        self._change(caller, name, config=msgspec.structs.replace(config, ram_mb=resources.memory_mb))

    async def checkpoint(
        self, caller: Caller, name: str, *, comment: str, wait_durable: bool
    ) -> AsyncIterator[Progress]:
        self._meet("checkpoint", comment=comment, wait_durable=wait_durable)
        self._find(caller, name)
        view = self.put_checkpoint(name, caller, comment=comment, durable=wait_durable)
        async with aclosing(self._steps("the disk is kept", f"{name} has the checkpoint {view.id}")) as steps:
            async for step in steps:
                yield step

    async def restore(self, caller: Caller, name: str, checkpoint_id: str) -> AsyncIterator[Progress]:
        self._meet("restore", checkpoint_id=checkpoint_id)
        self._checkpoint(caller, name, checkpoint_id)
        async with aclosing(self._steps("the disk is there", f"{name} runs from {checkpoint_id}")) as steps:
            async for step in steps:
                yield step

    async def _steps(self, first: str, last: str) -> AsyncGenerator[Progress]:
        self.open_streams += 1
        try:
            yield Progress(kind="info", data=first, time=START)
            if self.late_failure is not None:
                raise self.late_failure
            if not self.slow or await self.more.get():
                yield Progress(kind="complete", data=last, time=START + timedelta(seconds=1))
        finally:
            self.open_streams -= 1
            self.closed.set()

    def _checkpoints(self, caller: Caller, name: str) -> builtins.list[CheckpointView]:
        self._find(caller, name)
        return self.checkpoints_of.setdefault((caller.org_id, name), [])

    async def checkpoints(self, caller: Caller, name: str, *, include_auto: bool) -> builtins.list[CheckpointView]:
        self._meet("checkpoints", include_auto=include_auto)
        return [each for each in self._checkpoints(caller, name) if include_auto or not each.is_auto]

    async def get_checkpoint(self, caller: Caller, name: str, checkpoint_id: str) -> CheckpointView:
        self._meet("get_checkpoint", checkpoint_id=checkpoint_id)
        return self._checkpoint(caller, name, checkpoint_id)

    def _checkpoint(self, caller: Caller, name: str, checkpoint_id: str) -> CheckpointView:
        for each in self._checkpoints(caller, name):
            if each.id == checkpoint_id:
                return each
        raise NotFoundError(f"there is no checkpoint {checkpoint_id!r}", hint="checkpoint list shows those there are")

    async def forget(self, caller: Caller, name: str, checkpoint_id: str) -> None:
        self._meet("forget", checkpoint_id=checkpoint_id)
        found = self._checkpoint(caller, name, checkpoint_id)
        made = self._checkpoints(caller, name)
        if found is made[-1]:
            raise ConflictError(f"{checkpoint_id} is in use", hint="make another first", code="in_use")
        made.remove(found)

    async def fork(self, caller: Caller, name: str, request: NewFork) -> SpriteView:
        self._meet("fork", request=request)
        self._find(caller, name)
        if request.checkpoint is not None:
            self._checkpoint(caller, name, request.checkpoint)
        if (caller.org_id, request.name) in self.sprites:
            raise ConflictError("the name is taken", hint="choose another", code="sprite_exists")
        return self.put(request.name, caller)

    async def upgrade(self, caller: Caller, name: str) -> None:
        self._meet("upgrade")
        self._find(caller, name)

    async def sync(self, caller: Caller, name: str) -> DiskView:
        self._meet("sync")
        return self._disk(caller, name, lag_seconds=None)

    async def disk(self, caller: Caller, name: str) -> DiskView:
        self._meet("disk")
        return self._disk(caller, name, lag_seconds=self.lag)

    def _disk(self, caller: Caller, name: str, *, lag_seconds: float | None) -> DiskView:
        return DiskView(
            place="partly",
            bytes_written=3 << 30,
            bytes_stored=5 << 20,
            checkpoints=len(self._checkpoints(caller, name)),
            lag_seconds=lag_seconds,
            durable_at=START,
            size=100 << 30,
        )


def app_of(
    node: NodeDouble,
    metrics: Metrics | None = None,
    log_ins: LogInService | None = None,
    tasks: TaskService | None = None,
) -> FastAPI:
    """The control API of a node that is a double in all that it does."""
    return make_app(node, node, node, node, metrics, log_ins, tasks)
