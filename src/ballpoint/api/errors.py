"""Every error's way out: one body shape, and the one place where an exception becomes a status.

The body is `{error, message}` with an optional `hint`, `errors` (each failed check of a request), `retry_after_seconds`
and `request_id`: `error` is a word for programs, the rest is for people. Official clients fall back to showing the raw
body where `error` or `message` is no string, or a number no integer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ballpoint.core.errors import BallpointError, UnavailableError

log = logging.getLogger(__name__)

# The state that makes a node answer "not now" (no blank, a restart) passes within about this many seconds.
RETRY_AFTER = 1

# Errors that a client meets before any verb of the node: (word, hint) by status.
_HTTP_ERRORS: dict[int, tuple[str, str | None]] = {
    400: ("invalid", "send a JSON document in UTF-8"),
    401: ("unauthorized", "send Authorization: Bearer TOKEN"),
    404: ("not_found", "/docs lists every route"),
    405: ("method_not_allowed", "/docs lists every route"),
    413: ("too_large", None),
}


class ErrorBody(BaseModel):
    """What every error answers with."""

    error: str = Field(description="What kind of error it is, as one word for programs.")
    message: str = Field(description="What is wrong, as a sentence.")
    hint: str | None = Field(None, description="What to do about it; absent where there is nothing to add.")
    errors: list[str] | None = Field(None, description="Each failed check of the request, `field: what is wrong`.")
    retry_after_seconds: int | None = Field(None, description="When the same request may succeed.")
    request_id: str | None = Field(None, description="With an internal error: what to look for in the node's log.")


def error_response(
    status: int, error: str, message: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """An error's response; `more` are further keys of the body, left out where they are None."""
    body = {"error": error, "message": message} | {key: value for key, value in more.items() if value is not None}
    if status == 401:  # RFC 9110 section 15.5.2: with the way to mend it
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    # Text of a request may hold lone surrogates, which a JSON escape can spell and UTF-8 cannot.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(text, status, headers, media_type="application/json")


def http_error_response(
    status: int, message: str, *, headers: Mapping[str, str] | None = None, hint: str | None = None
) -> Response:
    """The response for an error of HTTP itself: no such route, no caller, a body too large."""
    word, usual_hint = _HTTP_ERRORS.get(status, ("invalid" if status < 500 else "internal", None))
    return error_response(status, word, message, headers=headers, hint=hint or usual_hint)


def internal_error_response(request_id: str) -> Response:
    """The response for a defect, which tells where to look and nothing of the inside."""
    return error_response(
        500,
        "internal",
        "the node failed to answer this request",
        hint="look for the request's id in the node's log",
        request_id=request_id,
    )


def add_error_handlers(app: FastAPI) -> None:
    """Make `app` answer every error in the one shape."""
    app.add_exception_handler(BallpointError, _node_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)


async def _node_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BallpointError)
    request_id = None
    if error.status == 500:
        request_id = request.scope["ballpoint.request_id"]
        log.error("request %s: %s", request_id, error, exc_info=error)
    later = RETRY_AFTER if isinstance(error, UnavailableError) else None
    return error_response(
        error.status,
        error.code,
        error.message,
        headers={"Retry-After": str(later)} if later else None,
        hint=error.hint,
        retry_after_seconds=later,
        request_id=request_id,
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The framework names the methods of the first route of that path only; RFC 9110 section 15.5.6 wants all.
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    messages = {
        404: f"there is no {request.url.path}",
        405: f"{request.url.path} does not know the method {request.method}",
        400: "the body cannot be read",
    }
    return http_error_response(error.status_code, messages.get(error.status_code, error.detail), headers=headers)


def _methods(request: Request) -> set[str]:
    routes = (route for route in request.app.routes if isinstance(route, Route))
    return {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    failures = error.errors()
    if failures[0]["type"] == "json_invalid":
        position = failures[0]["loc"][-1]
        return http_error_response(400, f"the body is not JSON: {failures[0]['ctx']['error']} at position {position}")
    lines = [f"{_field(failure['loc'])}: {failure['msg']}" for failure in failures]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    hint = failures[0].get("ctx", {}).get("hint")
    return error_response(422, "invalid", lines[0] + more, hint=hint, errors=lines)


def _field(location: tuple[str | int, ...]) -> str:
    """`("body", "labels", 0)` as `labels.0`, `("body",)` as `body`."""
    return ".".join(str(part)[:80] for part in (location[1:] or location))
