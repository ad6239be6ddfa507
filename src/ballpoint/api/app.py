"""The control API: the part of the contract that the node itself answers.

It listens on a unix socket that only the edge and the supervisor reach. The edge has framed and authenticated each
request and says in `X-Ballpoint-Caller` who asks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from ballpoint import __version__
from ballpoint.api.bodies import Event, ListingChange, Progress
from ballpoint.api.checkpoints import add_checkpoint_routes
from ballpoint.api.docs_page import render_docs
from ballpoint.api.errors import add_error_handlers
from ballpoint.api.guard import LIVENESS_PATH, Guard
from ballpoint.api.inside import Inside, add_inside_routes
from ballpoint.api.log_in import add_log_in_routes
from ballpoint.api.metrics import add_metrics_route
from ballpoint.api.organization import add_organization_routes
from ballpoint.api.policy import add_policy_routes
from ballpoint.api.service import DiskService, ListingService, LogInService, NodeService, SettingsService
from ballpoint.api.sprites import add_sprite_routes
from ballpoint.api.tasks import TaskService, add_task_routes
from ballpoint.core.metrics import Metrics

_DESCRIPTION = """\
A sprite is a computer with a durable disk that is there in milliseconds. This page lists what the node answers itself;
what a sprite's own agent answers below `/v1/sprites/{name}` (commands, files, services) needs the same token.

Every request carries `Authorization: Bearer TOKEN`. Bodies are JSON of 1 MiB at most, whatever `Content-Type` says.
Every answer carries `X-Request-Id`. Every error has the same body, with `error` as a word for programs and `message`
and `hint` for people.
"""

# What the page shows does nothing: no scripts, no forms, nothing fetched from anywhere.
_DOCS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ControlApi(FastAPI):
    """FastAPI whose document says that the edge wants a token, and what the lines of a stream are."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document = super().openapi()
            components = document["components"]
            for line in (Event, ListingChange, Progress):
                schema = line.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
                schema.pop("$defs", None)  # they are components already
                components["schemas"][line.__name__] = schema
            token = {"type": "http", "scheme": "bearer", "description": "`org/orgid/tokenid/value`"}
            components["securitySchemes"] = {"token": token}
            document["security"] = [{"token": []}]
        return super().openapi()


def make_app(
    node: NodeService,
    listing: ListingService,
    settings: SettingsService,
    disks: DiskService,
    metrics: Metrics | None = None,
    log_ins: LogInService | None = None,
    tasks: TaskService | None = None,
) -> FastAPI:
    """The ASGI application that answers for `node`.

    Args:
        listing: answers for what is seen of its sprites.
        settings: answers for what may be changed of them.
        disks: answers for the states of its sprites' disks.
        metrics: the node's numbers; where it is None, there are none.
        log_ins: lets browsers log in; where it is None, there is no page for it.
        tasks: answers for what keeps sprites awake; where it is None, nobody does.
    """
    app = ControlApi(
        title="Ballpoint",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.add_middleware(Guard)
    app.add_middleware(Inside)
    add_error_handlers(app)
    add_sprite_routes(app, node, listing, settings)
    add_checkpoint_routes(app, disks)
    add_policy_routes(app, settings)
    add_organization_routes(app, listing)
    add_metrics_route(app, (metrics or Metrics()).samples)
    add_inside_routes(app, node)
    if log_ins is not None:
        add_log_in_routes(app, log_ins)
    if tasks is not None:
        add_task_routes(app, tasks)

    @cache
    def docs_page() -> str:
        return render_docs(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(), headers=_DOCS_HEADERS)

    @app.get(LIVENESS_PATH, include_in_schema=False)
    async def liveness() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
