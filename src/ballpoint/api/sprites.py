"""The routes of sprites: making, finding, changing, stopping, starting, watching and destroying them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request, Response

from ballpoint.api.bodies import (
    Activity,
    Check,
    CreateSprite,
    Event,
    ListingChange,
    OrganizationCounts,
    Restarted,
    Sprite,
    SpriteList,
    UpdateSprite,
)
from ballpoint.api.parameters import SpriteOf, caller_of, content, errors
from ballpoint.api.service import ListingService, NodeService, SettingsService
from ballpoint.api.streams import LineStream, TextStream, event_lines, listing_lines

# The contract's page size. Clients that ask for more get this much, as they do from the original.
MAX_PAGE = 50
TAGS: list[str | Enum] = ["Sprites"]


def add_sprite_routes(app: FastAPI, node: NodeService, listing: ListingService, settings: SettingsService) -> None:
    """Give `app` the routes below `/v1/sprites` that the node itself answers."""

    @app.post("/v1/sprites", status_code=201, tags=TAGS, responses=errors(400, 409, 413, 422, 503))
    async def create_sprite(request: Request, body: CreateSprite) -> Sprite:
        """Make a sprite.

        It is ready for its first command when the answer comes. Where no blank stands by, that takes until the next
        one is filled: allow 120 seconds.
        """
        return Sprite.model_validate(await node.create(caller_of(request), body.request()))

    @app.get(
        "/v1/sprites",
        response_model=SpriteList,
        tags=TAGS,
        responses={200: content(LineStream, ListingChange), **errors(400, 422, 503)},
    )
    async def list_sprites(
        request: Request,
        prefix: Annotated[str, Query(pattern=r"^[^\x00]*$", description="What the names begin with.")] = "",
        max_results: Annotated[
            int, Query(description=f"Sprites a page, from 1 to {MAX_PAGE}; other numbers are moved into that range.")
        ] = MAX_PAGE,
        continuation_token: Annotated[
            str | None,
            Query(pattern=r"^[\x20-\x7e]*$", description="`next_continuation_token` of the page before."),
        ] = None,
    ) -> SpriteList | LineStream:
        """The organization's sprites, one page at a time, and how many there are of each status.

        With `Accept: application/x-ndjson` it does not end: one JSON object a line, first for every sprite and then for
        each that changes or is removed, and a heartbeat every 15 seconds.
        """
        caller = caller_of(request)
        if LineStream.media_type in request.headers.get("accept", ""):
            return LineStream(listing_lines(listing.watch_list(caller, prefix=prefix), caller.org))
        limit = min(max(max_results, 1), MAX_PAGE)
        page = await listing.list(caller, prefix=prefix, limit=limit, after=continuation_token or None)
        counts = {"name": caller.org, **msgspec.structs.asdict(page.counts)}
        return SpriteList(
            **counts,
            sprites=[Sprite.model_validate(sprite) for sprite in page.sprites],
            has_more=page.next is not None,
            next_continuation_token=page.next,
            org=OrganizationCounts(**counts),
        )

    @app.get("/v1/sprites/{name}", tags=TAGS, responses=errors(404, 503))
    async def get_sprite(request: Request, name: SpriteOf) -> Sprite:
        """A sprite as it is now. Asking does not wake it."""
        return Sprite.model_validate(await node.get(caller_of(request), name))

    @app.put("/v1/sprites/{name}", tags=TAGS, responses=errors(400, 404, 413, 422, 503))
    async def update_sprite(request: Request, name: SpriteOf, body: UpdateSprite) -> Sprite:
        """Change a sprite's settings. What the body leaves out stays as it is."""
        return Sprite.model_validate(await settings.update(caller_of(request), name, body.changes()))

    @app.delete("/v1/sprites/{name}", status_code=204, tags=TAGS, responses=errors(404, 503))
    async def destroy_sprite(request: Request, name: SpriteOf) -> Response:
        """Destroy a sprite and its disk."""
        await node.destroy(caller_of(request), name)
        return Response(status_code=204)

    @app.post("/v1/sprites/{name}/restart", tags=TAGS, responses=errors(404, 503))
    async def restart_sprite(request: Request, name: SpriteOf) -> Restarted:
        """Start a sprite afresh from its disk. Processes and memory are lost; a degraded sprite is mended."""
        sprite = await node.restart(caller_of(request), name)
        return Restarted(sprite_name=sprite.name, machine_id=sprite.id, message=f"{sprite.name} has restarted")

    @app.post("/v1/sprites/{name}/sleep", tags=TAGS, responses=errors(404, 409, 503))
    async def sleep_sprite(request: Request, name: SpriteOf) -> Sprite:
        """Stop a sprite. Its disk stays, processes and memory are lost; the next command in it starts it again."""
        return Sprite.model_validate(await node.sleep(caller_of(request), name))

    @app.post("/v1/sprites/{name}/wake", tags=TAGS, responses=errors(404, 409, 503))
    async def wake_sprite(request: Request, name: SpriteOf) -> Sprite:
        """Start a sprite from its disk where it does not run."""
        return Sprite.model_validate(await node.wake(caller_of(request), name))

    @app.get("/v1/sprites/{name}/activity", tags=TAGS, responses=errors(404, 503))
    async def sprite_activity(request: Request, name: SpriteOf) -> Activity:
        """Why a sprite is awake, or for how long nothing has kept it so. Asking does not wake it."""
        return Activity.model_validate(await node.activity(caller_of(request), name))

    @app.get("/v1/sprites/{name}/check", tags=TAGS, responses=errors(404, 503))
    async def check_sprite(request: Request, name: SpriteOf) -> Check:
        """Whether a sprite's agent and disk answer, asked now. Asking does not wake it."""
        found = await node.check(caller_of(request), name)
        return Check(
            sprite_name=found.sprite.name,
            sprite_id=found.sprite.id,
            status=found.status,
            reason=found.reason,
            checked_at=found.checked_at,
            elapsed=f"{found.elapsed:.6f}s",
        )

    @app.get(
        "/v1/sprites/{name}/events",
        response_class=Response,
        tags=TAGS,
        responses={200: content(LineStream, Event), **errors(404, 422, 503)},
    )
    async def sprite_events(
        request: Request,
        name: SpriteOf,
        follow: Annotated[bool, Query(description="Go on with what happens until the client leaves.")] = False,
    ) -> LineStream:
        """What happened to a sprite and why, oldest first, one JSON object a line."""
        return LineStream(event_lines(listing.events(caller_of(request), name, follow=follow)))

    @app.get(
        "/v1/sprites/{name}/logs",
        response_class=Response,
        tags=TAGS,
        responses={200: content(TextStream), **errors(404, 503)},
    )
    async def sprite_logs(request: Request, name: SpriteOf) -> TextStream:
        """What the sprite's agent, console and kernel said, and why it stopped before, as lines of text."""
        return TextStream(listing.logs(caller_of(request), name))
