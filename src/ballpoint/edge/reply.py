"""Heads the edge writes, and the refusals it answers by itself."""

from __future__ import annotations

import json
from html import escape

from ballpoint.core import ids
from ballpoint.edge.stream import Stream

RETRY = {"Retry-After": "2"}
# One client attaches by P/exec/{id} from release candidate 30 on (contract section 1).
_VERSION = b"v0.0.1-rc43"
_REASONS = {
    200: "OK", 204: "No Content", 303: "See Other",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    409: "Conflict", 414: "URI Too Long", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


def of_every_response(request_id: str) -> list[tuple[bytes, bytes]]:
    """The fields that are the edge's to give."""
    return [(b"Sprite-Version", _VERSION), (b"X-Request-Id", request_id.encode())]


def format_head(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    """A head with its final empty line."""
    return b"\r\n".join([line, *[b"%s: %s" % field for field in fields], b"", b""])


async def refuse(
    client: Stream,
    status: int,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    headers: dict[str, str] | None = None,
    keep: bool = False,
    request_id: str | None = None,
    head_only: bool = False,
    page: bool = False,
) -> None:
    """Answer with an error of the contract's shape, or with a `page` that says the same to a person."""
    request_id = request_id or ids.new_instance_id()
    if page:
        headers = {**_PAGE_HEADERS, **(headers or {})}
        body = _page(status, message, hint, request_id)
    else:
        headers = {"Content-Type": "application/json", **(headers or {})}
        content: dict[str, str | int] = {"error": code, "message": message, **({"hint": hint} if hint else {})}
        if "Retry-After" in headers:
            content["retry_after_seconds"] = int(headers["Retry-After"])
        if status == 500:
            content["request_id"] = request_id
        body = json.dumps(content).encode()
    await answer(client, status, headers, body, keep=keep, request_id=request_id, head_only=head_only)


async def answer(
    client: Stream,
    status: int,
    headers: dict[str, str],
    body: bytes = b"",
    *,
    keep: bool,
    request_id: str,
    head_only: bool = False,
) -> None:
    """Send a whole answer."""
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    if status != 204:
        fields.append((b"Content-Length", str(len(body)).encode()))
    fields += of_every_response(request_id)
    fields.append((b"Connection", b"keep-alive" if keep else b"close"))
    reason = _REASONS.get(status, "Error").encode()
    client.write(format_head(b"HTTP/1.1 %d %s" % (status, reason), fields) + (b"" if head_only else body))
    await client.drain()


_PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _page(status: int, message: str, hint: str | None, request_id: str) -> bytes:
    said = message[:1].upper() + message[1:]
    todo = f"<p>{escape(hint[:1].upper() + hint[1:])}.</p>" if hint else ""
    return _PAGE.format(
        status=status, message=escape(said), todo=todo, request=escape(request_id), style=_STYLE
    ).encode()


_STYLE = """:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 36rem; margin: 18vh auto 0; padding: 0 1.5rem; }
h1 { font-size: 1.35rem; margin: 0; } small { opacity: .6; }"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{message}</title><style>{style}</style></head>
<body><h1>{message}.</h1>{todo}<p><small>{status}, request {request}</small></p></body>
</html>
"""
