"""Heads the edge writes, and the refusals it answers by itself."""

from __future__ import annotations

import json

from ballpoint.core import ids
from ballpoint.edge.stream import Stream

RETRY = {"Retry-After": "2"}
# One client attaches by P/exec/{id} from release candidate 30 on (contract section 1).
_VERSION = b"v0.0.1-rc43"
_REASONS = {
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
) -> None:
    """Answer with an error of the contract's shape."""
    request_id = request_id or ids.new_instance_id()
    content: dict[str, str | int] = {"error": code, "message": message, **({"hint": hint} if hint else {})}
    if headers and "Retry-After" in headers:
        content["retry_after_seconds"] = int(headers["Retry-After"])
    if status == 500:
        content["request_id"] = request_id
    body = json.dumps(content).encode()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode())]
    fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    fields += of_every_response(request_id)
    fields.append((b"Connection", b"keep-alive" if keep else b"close"))
    reason = _REASONS.get(status, "Error").encode()
    client.write(format_head(b"HTTP/1.1 %d %s" % (status, reason), fields) + (b"" if head_only else body))
    await client.drain()
