"""Tasks, by which code inside a sprite keeps it awake: they are served on the socket inside alone (contract 4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from ballpoint.api.parameters import caller_of
from ballpoint.core.clock import rfc3339
from ballpoint.core.duration import parse_duration
from ballpoint.core.errors import InvalidError
from ballpoint.core.types import Caller
from ballpoint.node.inside import SCOPE_KEY
from ballpoint.node.lifecycle.holds import SECONDS_MAX, Hold

PATH = "/v1/tasks"
_HINT = 'for example {"name": "build", "expire": "10m"}'


class TaskService(Protocol):
    """What the API needs of a node's tasks. A sprite is named by its owner's caller, as in `NodeService`."""

    async def tasks(self, caller: Caller, name: str) -> list[Hold]:
        """Those that have not expired, in the order of their beginning."""

    async def task(self, caller: Caller, name: str, task: str) -> Hold:
        """One of them. Raises NotFoundError."""

    async def create(self, caller: Caller, name: str, task: str, seconds: float) -> Hold:
        """Begin one. Not idempotent: ConflictError where there is one of that name. Raises as `put`."""

    async def put(self, caller: Caller, name: str, task: str, seconds: float) -> Hold:
        """Begin one, or change when it expires. Raises InvalidError, UnavailableError."""

    async def delete(self, caller: Caller, name: str, task: str) -> None:
        """End one. A second call finds none: NotFoundError."""


def add_task_routes(app: FastAPI, tasks: TaskService) -> None:
    """Give `app` the routes below /v1/tasks, for requests from inside."""

    @app.get(PATH, include_in_schema=False)
    async def list_tasks(request: Request) -> dict[str, Any]:
        return {"tasks": [_view(each) for each in await tasks.tasks(*_sprite(request))]}

    @app.post(PATH, include_in_schema=False, status_code=201)
    async def create_task(request: Request) -> dict[str, Any]:
        caller, sprite = _sprite(request)
        said = await _said(request)
        return _view(await tasks.create(caller, sprite, _name(said), _seconds(said)))

    @app.put(PATH, include_in_schema=False)
    async def put_named_task(request: Request) -> dict[str, Any]:
        caller, sprite = _sprite(request)
        said = await _said(request)
        return _view(await tasks.put(caller, sprite, _name(said), _seconds(said)))

    @app.get(PATH + "/{task}", include_in_schema=False)
    async def get_task(request: Request, task: str) -> dict[str, Any]:
        return _view(await tasks.task(*_sprite(request), task))

    @app.put(PATH + "/{task}", include_in_schema=False)
    async def put_task(request: Request, task: str) -> dict[str, Any]:
        caller, sprite = _sprite(request)
        return _view(await tasks.put(caller, sprite, task, _seconds(await _said(request))))

    @app.delete(PATH + "/{task}", include_in_schema=False, status_code=204, response_class=Response)
    async def delete_task(request: Request, task: str) -> None:
        await tasks.delete(*_sprite(request), task)


def _sprite(request: Request) -> tuple[Caller, str]:
    if SCOPE_KEY not in request.scope:
        raise HTTPException(404)
    name, _ = request.scope[SCOPE_KEY]
    return caller_of(request), name


def _view(hold: Hold) -> dict[str, Any]:
    return {"name": hold.name, "started_at": rfc3339(hold.started_at), "expires_at": rfc3339(hold.expires_at)}


async def _said(request: Request) -> Mapping[str, Any]:
    try:
        said = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidError("the body is no JSON", hint=_HINT) from error
    if not isinstance(said, dict):
        raise InvalidError("the body is no JSON object", hint=_HINT)
    return said


def _name(said: Mapping[str, Any]) -> str:
    name = said.get("name")
    if not isinstance(name, str):
        raise InvalidError("name is missing", hint=_HINT)
    return name


def _seconds(said: Mapping[str, Any]) -> float:
    expire = said.get("expire")
    if isinstance(expire, str):
        return parse_duration(expire)
    if isinstance(expire, bool) or not isinstance(expire, int | float):
        raise InvalidError("expire is missing", hint=f"seconds, or a Go duration; {_HINT}")
    return float(min(expire, 2 * SECONDS_MAX))  # a whole number may be more than a float can hold
