"""The routes of a sprite's disk: its checkpoints, forks from them, and how far the store is behind."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request, Response

from ballpoint.api.bodies import Checkpoint, Disk, NewCheckpoint, NewFork, Progress, Sprite
from ballpoint.api.parameters import CheckpointOf, SpriteOf, caller_of, content, errors
from ballpoint.api.service import DiskService
from ballpoint.api.streams import LineStream, progress_lines

TAGS: list[str | Enum] = ["Checkpoints and disk"]


def add_checkpoint_routes(app: FastAPI, disks: DiskService) -> None:
    """Give `app` the routes below `/v1/sprites/{name}` that are about its disk."""

    @app.post(
        "/v1/sprites/{name}/checkpoint",
        response_class=Response,
        tags=TAGS,
        responses={200: content(LineStream, Progress), **errors(400, 404, 413, 422, 503)},
    )
    async def create_checkpoint(
        request: Request,
        name: SpriteOf,
        body: NewCheckpoint | None = None,
        wait: Annotated[
            Literal["durable"] | None, Query(description="`durable`: complete once the store has it, too.")
        ] = None,
    ) -> LineStream:
        """Keep the present state of a sprite's disk, and go on writing it.

        Complete once this host has it, with the new checkpoint's id in the last line; the store has it some seconds
        later. It is made also where the client does not wait for the end.
        """
        comment = (body.comment if body else None) or ""
        steps = disks.checkpoint(caller_of(request), name, comment=comment, wait_durable=wait is not None)
        return LineStream(progress_lines(steps, request.scope["ballpoint.request_id"]))

    @app.get("/v1/sprites/{name}/checkpoints", tags=TAGS, responses=errors(404, 422, 503))
    async def list_checkpoints(
        request: Request,
        name: SpriteOf,
        history: Annotated[str, Query(description="Only this checkpoint and those that came from it.")] = "",
        include_auto: Annotated[bool, Query(alias="includeAuto", description="Automatic ones, too.")] = False,
    ) -> list[Checkpoint]:
        """A sprite's checkpoints, oldest first."""
        found = await disks.checkpoints(caller_of(request), name, include_auto=include_auto)
        return [
            Checkpoint.model_validate(each)
            for each in found
            if not history or history == each.id or history in each.history
        ]

    @app.get("/v1/sprites/{name}/checkpoints/{checkpoint}", tags=TAGS, responses=errors(404, 503))
    async def get_checkpoint(request: Request, name: SpriteOf, checkpoint: CheckpointOf) -> Checkpoint:
        """One checkpoint, also an automatic one."""
        return Checkpoint.model_validate(await disks.get_checkpoint(caller_of(request), name, checkpoint))

    @app.delete(
        "/v1/sprites/{name}/checkpoints/{checkpoint}", status_code=204, tags=TAGS, responses=errors(404, 409, 503)
    )
    async def delete_checkpoint(request: Request, name: SpriteOf, checkpoint: CheckpointOf) -> Response:
        """Drop a checkpoint. The one that the disk came from last is in use, and refused (409)."""
        await disks.forget(caller_of(request), name, checkpoint)
        return Response(status_code=204)

    @app.post(
        "/v1/sprites/{name}/checkpoints/{checkpoint}/restore",
        response_class=Response,
        tags=TAGS,
        responses={200: content(LineStream, Progress), **errors(404, 409, 503)},
    )
    async def restore_checkpoint(request: Request, name: SpriteOf, checkpoint: CheckpointOf) -> LineStream:
        """Give a sprite the disk of a checkpoint, and start it afresh over it.

        Processes, memory and sessions are lost. The disk it had is kept in an automatic checkpoint, and stays the
        sprite's where the restore fails. It is done also where the client does not wait for the end.
        """
        steps = disks.restore(caller_of(request), name, checkpoint)
        return LineStream(progress_lines(steps, request.scope["ballpoint.request_id"]))

    @app.post("/v1/sprites/{name}/upgrade", status_code=204, tags=TAGS, responses=errors(404, 409, 503))
    async def upgrade_sprite(request: Request, name: SpriteOf) -> Response:
        """Put a sprite on the node's present standard image, where it is on an older one.

        Its processes end. What it was is kept in an automatic checkpoint, to which it can be restored, image and all.
        """
        await disks.upgrade(caller_of(request), name)
        return Response(status_code=204)

    @app.post("/v1/sprites/{name}/fork", status_code=201, tags=TAGS, responses=errors(400, 404, 409, 413, 422, 503))
    async def fork_sprite(request: Request, name: SpriteOf, body: NewFork) -> Sprite:
        """Make a sprite whose disk begins as this one's. No data is copied."""
        return Sprite.model_validate(await disks.fork(caller_of(request), name, body.request()))

    @app.post("/v1/sprites/{name}/sync", tags=TAGS, responses=errors(404, 503))
    async def sync_disk(request: Request, name: SpriteOf) -> Disk:
        """Wait until the store has everything that was written to a sprite's disk before."""
        return Disk.model_validate(await disks.sync(caller_of(request), name))

    @app.get("/v1/sprites/{name}/disk", tags=TAGS, responses=errors(404, 503))
    async def get_disk(request: Request, name: SpriteOf) -> Disk:
        """Where a sprite's disk is, and how far the store is behind it. Asking does not wake the sprite."""
        return Disk.model_validate(await disks.disk(caller_of(request), name))
