"""What a request may be sent to. Each kind says how it is reached, what it sees of a request, what its end means."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from ballpoint.core.addresses import Networks
from ballpoint.core.wire import NOT_STARTED
from ballpoint.edge.dial import dial
from ballpoint.edge.head import RequestHead, ResponseHead
from ballpoint.edge.kept import Kept
from ballpoint.edge.known import SAFE
from ballpoint.edge.reply import format_head
from ballpoint.edge.stream import CONNECT_SECONDS, Stream, connect
from ballpoint.edge.visitor import fields_for_sprite

_INTERNAL_PREFIX = b"x-ballpoint-"
_NOT_TO_OWN_SERVERS = frozenset({b"authorization", b"cookie", b"expect", b"x-request-id"})
_NOT_STARTED = NOT_STARTED.encode()
_API_KEY = "api"


class Target(ABC):
    """A server of a request.

    Attributes:
        drops_trailers: what follows the last chunk of its answers is left out, and not refused.
    """

    drops_trailers = False

    @abstractmethod
    async def connect(self, *, last: bool) -> Stream:
        """A connection for the request, which uses it alone.

        Args:
            last: the request will not be tried again: it must be one that the server cannot be ending just now.

        Raises:
            NotStartedError: nobody is there; the request may be tried again.
            BallpointError: it cannot be served.
        """

    @abstractmethod
    def head(self, head: RequestHead, request_id: str) -> bytes:
        """What is sent before the body."""

    def declines(self, response: ResponseHead) -> bool:
        """Whether the answer says that nothing was begun, and another server is to be asked for."""
        return False

    @abstractmethod
    def unread(self, upstream: Stream, head: RequestHead) -> bool:
        """Whether a server that ended without an answer has certainly begun nothing that counts."""

    def keep(self, upstream: Stream, head: RequestHead, response: ResponseHead) -> bool:
        """Take back a connection at the clean end of an answer. Returns whether it is kept for another request."""
        return False


class ToApi(Target):
    """The control API of this node."""

    def __init__(self, route: dict[str, Any], path: Path, kept: Kept) -> None:
        self._route = route
        self._path = path
        self._kept = kept

    async def connect(self, *, last: bool) -> Stream:
        stream = None if last else self._kept.take(_API_KEY)
        return stream or await connect(self._path, CONNECT_SECONDS)

    def head(self, head: RequestHead, request_id: str) -> bytes:
        fields = _fields_for_own(head, request_id)
        fields.insert(-1, (b"X-Ballpoint-Caller", json.dumps(self._route["caller"]).encode()))
        target = self._route.get("target")
        return _formatted(head, head.target if target is None else target.encode("latin-1"), fields)

    def unread(self, upstream: Stream, head: RequestHead) -> bool:
        return _cut_unread(upstream, head)

    def keep(self, upstream: Stream, head: RequestHead, response: ResponseHead) -> bool:
        return self._kept.give(_API_KEY, upstream)


class ToAgent(Target):
    """A sprite's agent, which serves one request a connection."""

    def __init__(self, route: dict[str, Any]) -> None:
        self._route = route

    async def connect(self, *, last: bool) -> Stream:
        return await connect(Path(self._route["socket"]), CONNECT_SECONDS)

    def head(self, head: RequestHead, request_id: str) -> bytes:
        fields = _fields_for_own(head, request_id)
        if head.upgrade is None:
            fields.insert(-1, (b"Connection", b"close"))
        preamble = json.dumps(self._route["preamble"]).encode() + b"\n"
        return preamble + _formatted(head, self._route["target"].encode("latin-1"), fields)

    def declines(self, response: ResponseHead) -> bool:
        return bool(response.get(_NOT_STARTED))

    def unread(self, upstream: Stream, head: RequestHead) -> bool:
        return _cut_unread(upstream, head)


class ToSprite(Target):
    """A server inside a sprite, by a connection that its agent has made.

    A connection that was used before serves requests that change nothing, and only they leave one behind: whatever
    becomes of it, the request can be sent again; and a server that misread its end cannot take a body for the next
    request, which may be another client's.

    Args:
        reused: the request was sent already, over a connection that was used before.
    """

    drops_trailers = True

    def __init__(
        self,
        route: dict[str, Any],
        head: RequestHead,
        kept: Kept,
        address: str,
        trusted: Networks,
        *,
        reused: bool = False,
    ) -> None:
        self._route = route
        self._shares = head.method in SAFE and not head.has_body and head.upgrade is None
        self._key = key_of(route)
        self._kept = kept
        self._address = address
        self._trusted = trusted
        self._reused = reused

    async def connect(self, *, last: bool) -> Stream:
        stream = self._kept.take(self._key) if self._shares and not last else None
        self._reused = stream is not None
        return stream or await dial(Path(self._route["socket"]), self._route["preamble"])

    def head(self, head: RequestHead, request_id: str) -> bytes:
        fields = fields_for_sprite(head, self._address, self._trusted, token=self._route["token"])
        fields += _framing(head)
        if head.upgrade is None and not self._shares:
            fields.append((b"Connection", b"close"))
        fields.append((b"X-Request-Id", request_id.encode()))
        return _formatted(head, head.target, fields)

    def unread(self, upstream: Stream, head: RequestHead) -> bool:
        # TCP does not tell whether a server has read what it did not answer.
        return self._reused

    def keep(self, upstream: Stream, head: RequestHead, response: ResponseHead) -> bool:
        # Some servers send a body where there is none.
        if not self._shares or head.method == b"HEAD" or response.status in (204, 304):
            return False
        return self._kept.give(self._key, upstream)


def key_of(route: dict[str, Any]) -> Hashable:
    """What connections to a port of a sprite are kept by."""
    return route["socket"], route["preamble"]["connect"]["port"]


def _cut_unread(upstream: Stream, head: RequestHead) -> bool:
    return upstream.cut and not head.has_body  # what was not read to the end of its head was not begun


def _framing(head: RequestHead) -> list[tuple[bytes, bytes]]:
    fields = [(b"Transfer-Encoding", b"chunked")] if head.chunked else []
    upgrade = head.upgrade
    return fields + ([(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)] if upgrade is not None else [])


def _fields_for_own(head: RequestHead, request_id: str) -> list[tuple[bytes, bytes]]:
    """What our own servers see of a request."""
    fields = head.end_to_end(_NOT_TO_OWN_SERVERS, _INTERNAL_PREFIX)
    if head.version == 0 and head.get(b"host") is None:
        fields.append((b"Host", b"localhost"))
    return [*fields, *_framing(head), (b"X-Request-Id", request_id.encode())]


def _formatted(head: RequestHead, target: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return format_head(b"%s %s HTTP/1.1" % (head.method, target), fields)
