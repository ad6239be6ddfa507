"""The wall around the routes: who asks, how much a body may hold, and that no failure gets out unshaped."""

from __future__ import annotations

import logging
import re

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ballpoint.api.errors import http_error_response, internal_error_response
from ballpoint.core.hosts import OWN_PATH
from ballpoint.core.ids import new_uuid
from ballpoint.core.types import Caller

log = logging.getLogger(__name__)

# Set by the edge, which strips whatever a client sends under that name.
CALLER_HEADER = b"x-ballpoint-caller"
MAX_BODY = 1024 * 1024
# Answered without a caller's identity, as they tell nothing about anybody.
PUBLIC_PATHS = frozenset({"/docs", "/openapi.json"})
# Asked by the supervisor on the unix socket; a request that came through the edge finds nothing there.
LIVENESS_PATH = "/v1/health"
# The node sends requests to `auth.<domain>` here, in nobody's name; whoever has a name was not sent.
LOG_IN_PATH = f"{OWN_PATH}/log-in"
_NOBODY = b"{}"

_decode_caller = msgspec.json.Decoder(Caller).decode
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_TOO_LARGE = f"a body may hold {MAX_BODY} bytes at most"


class Guard:
    """ASGI middleware, outermost.

    Leaves in the scope `ballpoint.caller` (a `Caller`; absent on public paths) and `ballpoint.request_id`, which every
    response carries as `X-Request-Id`: the edge's own where it sends one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        scope["ballpoint.request_id"] = request_id
        try:
            if (refusal := _refusal(scope)) is not None:
                await refusal(scope, receive, send_with_id)
            else:
                await self._app(_with_json_body(scope), _limited(receive), send_with_id)
        except Exception:
            if started:
                # What was begun cannot be taken back: the server cuts the connection, so no client takes it for whole.
                raise
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            await internal_error_response(request_id)(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else new_uuid()


def _refusal(scope: Scope) -> Response | None:
    """The answer to a request that must not reach a route; else None, with the caller left in `scope`."""
    callers = [value for name, value in scope["headers"] if name == CALLER_HEADER]
    path = scope["path"]
    if path == LIVENESS_PATH:
        return http_error_response(404, f"there is no {path}") if callers else None
    if len(callers) != 1:
        return http_error_response(401, "the request names no caller")
    if path == LOG_IN_PATH:
        if callers[0] != _NOBODY:
            return http_error_response(404, f"there is no {path}")
    elif path not in PUBLIC_PATHS:
        try:
            scope["ballpoint.caller"] = _decode_caller(callers[0])
        except msgspec.DecodeError:
            return http_error_response(401, "the request names no caller")
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not _LENGTH.fullmatch(length):
        return http_error_response(400, "Content-Length is not a length", hint="send the body's length in bytes")
    return http_error_response(413, _TOO_LARGE) if int(length) > MAX_BODY else None


def _limited(receive: Receive) -> Receive:
    """`receive`, refusing a body whose length was not told beforehand as soon as it is too large."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


def _with_json_body(scope: Scope) -> Scope:
    """`scope` with the content type JSON: every body is JSON here, and `curl -d` says otherwise unasked.

    The framework would take any other type for raw bytes. Nothing is lost by it: whether a browser may send this
    request for another site is the edge's decision.
    """
    if scope["method"] in ("GET", "DELETE"):
        return scope
    headers = [header for header in scope["headers"] if header[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
