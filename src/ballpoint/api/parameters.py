"""What every route says of its parameters and errors."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ballpoint.api.errors import ErrorBody
from ballpoint.core.errors import InvalidError, NotFoundError
from ballpoint.core.ids import check_name
from ballpoint.core.types import Caller

CHECKPOINT_ID = re.compile(r"[A-Za-z0-9.:_-]{1,64}")
_DESCRIPTIONS = {
    400: "The request is wrong: a body that is no JSON, a bad continuation token, a device that is not offered.",
    401: "No token, or one that is unknown or revoked.",
    404: "The organization has no such sprite, or the sprite no such checkpoint.",
    409: "The name is taken, or what the request names is in use.",
    413: "The body is larger than 1 MiB.",
    422: "The body or a parameter fails a check; `errors` lists each.",
    500: "The node failed; `request_id` finds the reason in its log.",
    503: "It cannot be done now; `Retry-After` says when to ask again.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its documentation; 401 and 500 go with every one."""
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in sorted({401, 500, *statuses})
    }
    return {**documented, "default": {"model": ErrorBody, "description": "Any other error has the same body."}}


def content(response: type[Response], item: type[BaseModel] | None = None) -> dict[str, Any]:
    """A streamed response for a route's documentation: `item`s, or text where there is none."""
    schema = {"$ref": f"#/components/schemas/{item.__name__}"} if item else {"type": "string"}
    return {"description": "What there is, as it comes.", "content": {response.media_type: {"schema": schema}}}


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard has left it in the scope. Not a dependency: one costs more than the route's own work."""
    caller = request.scope["ballpoint.caller"]
    assert isinstance(caller, Caller)
    return caller


def _existing_form(name: str) -> str:
    """A name that no sprite can have is a sprite that is not there."""
    try:
        return check_name(name)
    except InvalidError as error:
        raise NotFoundError(f"there is no sprite {name[:80]!r}", hint="list shows those there are") from error


SpriteOf = Annotated[str, AfterValidator(_existing_form), Path(description="The sprite's name.")]


def _existing_checkpoint(checkpoint_id: str) -> str:
    """An id that no checkpoint can have is a checkpoint that is not there."""
    if not CHECKPOINT_ID.fullmatch(checkpoint_id):
        raise NotFoundError(
            f"there is no checkpoint {checkpoint_id[:80]!r}", hint="checkpoint list shows those there are"
        )
    return checkpoint_id


CheckpointId = Annotated[str, AfterValidator(_existing_checkpoint)]
CheckpointOf = Annotated[CheckpointId, Path(description="The checkpoint's id.")]
