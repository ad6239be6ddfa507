"""The API as code inside a sprite sees it (contract 4): the same answers, about its own sprite, with fewer rights.

The node puts the sprite's name into the scope of such a request (node/inside.py). What is not listed here is not there:
no other sprite can be named, and neither policies nor URL settings can be changed.
"""

from __future__ import annotations

import re

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ballpoint import __version__
from ballpoint.api.bodies import Info
from ballpoint.api.errors import http_error_response
from ballpoint.api.guard import CALLER_HEADER
from ballpoint.api.parameters import CHECKPOINT_ID, caller_of
from ballpoint.api.service import NodeService
from ballpoint.api.tasks import PATH as TASKS
from ballpoint.node.inside import SCOPE_KEY

_INFO = "/v1/info"
# What may be asked: pattern of the path -> methods. Below a sprite, the API has the same under its name.
_SERVED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), methods)
    for pattern, methods in (
        (_INFO, ("GET",)),
        ("/v1/checkpoints", ("GET",)),
        (f"/v1/checkpoints/{CHECKPOINT_ID.pattern}", ("GET", "DELETE")),
        (f"/v1/checkpoints/{CHECKPOINT_ID.pattern}/restore", ("POST",)),
        ("/v1/checkpoint", ("POST",)),
        ("/v1/sync", ("POST",)),
        (TASKS, ("GET", "POST", "PUT")),
        (f"{TASKS}/[^/]{{1,500}}", ("GET", "PUT", "DELETE")),
    )
)
_HINT = "/.sprite/llm.txt says what there is"


class Inside:
    """ASGI middleware, outside the guard: turns a request from inside into one about that sprite."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if SCOPE_KEY not in scope:
            await self._app(scope, receive, send)
            return
        name, caller = scope[SCOPE_KEY]
        path, method = scope["path"], scope["method"]
        methods = next((methods for pattern, methods in _SERVED if pattern.fullmatch(path)), None)
        if methods is None:
            await http_error_response(404, f"there is no {path[:200]}", hint=_HINT)(scope, receive, send)
            return
        if method not in methods:
            allowed = ", ".join(methods)
            message, fields = f"only {allowed} is served here", {"Allow": allowed}
            await http_error_response(405, message, headers=fields, hint=_HINT)(scope, receive, send)
            return
        if path not in (_INFO, TASKS) and not path.startswith(f"{TASKS}/"):
            path = f"/v1/sprites/{name}{path.removeprefix('/v1')}"
        headers = [*scope["headers"], (CALLER_HEADER, msgspec.json.encode(caller))]
        await self._app({**scope, "path": path, "raw_path": path.encode(), "headers": headers}, receive, send)


def add_inside_routes(app: FastAPI, node: NodeService) -> None:
    """Give `app` what only code inside a sprite asks."""

    @app.get(_INFO, include_in_schema=False)
    async def info(request: Request) -> Info:
        if SCOPE_KEY not in request.scope:
            raise HTTPException(404)
        name, _ = request.scope[SCOPE_KEY]
        sprite = await node.get(caller_of(request), name)
        return Info(
            name=sprite.name,
            id=sprite.id,
            org=sprite.organization,
            sprite_url=sprite.url,
            version=__version__,
            image=sprite.version,
        )
