"""The routes of a sprite's policies."""

from __future__ import annotations

from enum import Enum

from fastapi import FastAPI, Request, Response

from ballpoint.api.bodies import Privileges, Resources
from ballpoint.api.parameters import SpriteOf, caller_of, errors
from ballpoint.api.service import SettingsService
from ballpoint.node import views

TAGS: list[str | Enum] = ["Policy"]


def add_policy_routes(app: FastAPI, settings: SettingsService) -> None:
    """Give `app` the routes below `/v1/sprites/{name}/policy`."""

    @app.get("/v1/sprites/{name}/policy/privileges", tags=TAGS, responses=errors(404, 503))
    async def get_privileges(request: Request, name: SpriteOf) -> Privileges:
        """What code inside a sprite may do beyond the ordinary."""
        return Privileges.of(await settings.privileges(caller_of(request), name))

    @app.post(
        "/v1/sprites/{name}/policy/privileges", status_code=204, tags=TAGS, responses=errors(400, 404, 413, 422, 503)
    )
    async def set_privileges(request: Request, name: SpriteOf, body: Privileges) -> Response:
        """Replace a sprite's privileges."""
        await settings.set_privileges(caller_of(request), name, body.view())
        return Response(status_code=204)

    @app.delete("/v1/sprites/{name}/policy/privileges", status_code=204, tags=TAGS, responses=errors(404, 503))
    async def clear_privileges(request: Request, name: SpriteOf) -> Response:
        """Go back to the node's default privileges."""
        await settings.clear_privileges(caller_of(request), name)
        return Response(status_code=204)

    @app.get("/v1/sprites/{name}/policy/resources", tags=TAGS, responses=errors(404, 503))
    async def get_resources(request: Request, name: SpriteOf) -> Resources:
        """What a sprite may use; `memory` is null where the node's default holds."""
        return Resources.of(await settings.resources(caller_of(request), name))

    @app.post(
        "/v1/sprites/{name}/policy/resources",
        status_code=204,
        tags=TAGS,
        responses=errors(400, 404, 409, 413, 422, 503),
    )
    async def set_resources(request: Request, name: SpriteOf, body: Resources) -> Response:
        """Replace what a sprite may use, without a restart. It is `ram_mb` of its configuration from then on."""
        await settings.set_resources(caller_of(request), name, body.view())
        return Response(status_code=204)

    @app.delete("/v1/sprites/{name}/policy/resources", status_code=204, tags=TAGS, responses=errors(404, 409, 503))
    async def clear_resources(request: Request, name: SpriteOf) -> Response:
        """Go back to what the node gives by default."""
        await settings.set_resources(caller_of(request), name, views.Resources())
        return Response(status_code=204)
