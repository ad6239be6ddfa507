"""Requests that are like the one before, served by callbacks: without a task, and without a question.

Here is what exchange.py does for the commonest case: GET without a body, to a port of a sprite, the node's answer
known (known.py), a connection kept, and an answer with a length. A head is taken for known only where its bytes are
those of one that was parsed, so it means what it meant. Everything else is left to the general way: a request before
anything of it was sent, an answer before anything of it was passed on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ballpoint.core import ids
from ballpoint.core.addresses import Networks
from ballpoint.core.hosts import OWN_PATH
from ballpoint.edge import exchange
from ballpoint.edge.exchange import fields_for_client
from ballpoint.edge.head import FramingError, RequestHead, ResponseHead, find_end, parse_request, parse_response
from ballpoint.edge.holds import Holds
from ballpoint.edge.journal import CLIENT_LEFT, Journal
from ballpoint.edge.kept import Kept
from ballpoint.edge.known import Known
from ballpoint.edge.passage import Passage
from ballpoint.edge.question import is_of_sprite, question_of
from ballpoint.edge.reply import format_head
from ballpoint.edge.stream import READ_AHEAD, Stream, settle
from ballpoint.edge.targets import key_of
from ballpoint.edge.visitor import fields_for_sprite

# A target without a fragment (RFC 9112 3.2.1), as parse_request() takes it.
_LINE = re.compile(rb"GET (/[\x21\x22\x24-\x7e]*) HTTP/1\.1")
_OWN = OWN_PATH.encode()
# What is remembered of heads is as long as they are, for each connection.
_HEAD_MAX = 8192
_NO_BODY = frozenset({204, 304})
_ID = b"00000000"


@dataclass
class Shared:
    """What all connections of an edge have in common."""

    domain: str
    trusted: Networks
    known: Known
    holds: Holds
    kept: Kept
    journal: Journal


@dataclass(slots=True)
class _Like:
    """What requests with the same fields have in common.

    Attributes:
        rest: what follows the target, for a server in a sprite, up to the request's id; by whether a token is ours.
    """

    head: RequestHead
    key: str
    rest: dict[bool, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Form:
    """What answers with the same head have in common.

    Attributes:
        keeps: their server's connection can take another request.
        before, after: what a client sees around its request's id.
    """

    head: ResponseHead
    length: int
    keeps: bool
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Begun:
    """A request that was sent, and is to be gone on with.

    Attributes:
        raw: its head.
        upstream: has what came of the answer.
        patience: seconds for which an answer is still waited for.
    """

    raw: bytes
    request_id: str
    route: dict[str, Any]
    upstream: Stream
    patience: float


class Quick:
    """One client's connection, between those of its requests that are served in the general way.

    Attributes:
        busy: a request is under way here.
        wanted: it is worth a look: a request was sent to a sprite by an answer that may be remembered.
    """

    def __init__(self, client: Stream, address: str, shared: Shared) -> None:
        self._client = client
        self._address = address
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self.busy = False
        self.wanted = False
        self._stopping = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_seconds = 0.0
        self._late = False
        self._cut = False
        self._begun: Begun | None = None
        # What was seen last, and what it means.
        self._fields, self._like = b"", None  # type: bytes, _Like | None
        self._raw, self._form = b"", None  # type: bytes, _Form | None
        # Of the request under way.
        self._since = 0.0
        self._head = b""
        self._path = b""
        self._request_id = ""
        self._key: Hashable = None
        self._route: dict[str, Any] = {}
        self._upstream: Stream
        self._passage: Passage | None = None
        self._answer = _Answer(self)

    async def wait(self, seconds: float) -> Begun | None:
        """Serve what can be served here, until there is something else in the client's buffer, or its end.

        Returns:
            A request that was begun here, if there is one; the caller owns its connection and its place among what is
            held.

        Raises:
            TimeoutError: nothing came for so many seconds.
            ConnectionError: an answer was cut short, and so must be the client's connection.
        """
        client = self._client
        self._idle_seconds, self._since, self._late = seconds, self._loop.time(), False
        self._waiter = self._loop.create_future()
        client.passage = self
        client.go_on()
        self._arm(self._period)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
            if client.passage is self:
                client.passage = None
        if self._cut:
            raise ConnectionResetError("the response was cut short")
        if self._late:
            raise TimeoutError
        begun, self._begun = self._begun, None
        return begun

    def stop(self) -> bool:
        """Take no more requests. Returns whether none is under way."""
        self._stopping = True
        return not self.busy

    def close(self) -> None:
        """Give up what is under way. Idempotent."""
        if self.busy:
            self._give_up()
        if self._begun is not None:
            self._begun.upstream.abort()
            self._shared.holds.release(self._begun.route["socket"])
            self._begun = None

    # ---- told by the client's connection ----

    def received(self, data: bytes) -> None:
        client = self._client
        if self.busy:
            client.buffer += data  # the next request waits its turn
            if len(client.buffer) > READ_AHEAD:
                client.hold()
        elif not self._begin(data):
            client.buffer += data
            self._wake()

    def source_ended(self) -> None:
        if self.busy:
            self._give_up()
        self._wake()

    # ---- a request ----

    def _begin(self, data: bytes) -> bool:
        """Send the request that `data` is, if it is one for here."""
        end = data.find(b"\r\n")
        line = _LINE.fullmatch(data, 0, end) if end > 0 and len(data) <= _HEAD_MAX else None
        if line is None or self._stopping:
            return False
        fields = data[end + 2 :]
        like = self._like if fields == self._fields else self._learn(data, fields)
        target = line[1]
        if like is None or target.startswith(_OWN):
            return False
        shared = self._shared
        route = shared.known.recall(like.key)
        if route is None:
            return False
        self._key = key_of(route)
        upstream = shared.kept.take(self._key)
        if upstream is None:
            return False
        # No turn of the loop is between the look at what is held and this.
        shared.holds.take(route["socket"], route["lease"])
        rest = like.rest.get(route["token"])
        if rest is None:
            rest = like.rest[route["token"]] = self._rest(like.head, token=route["token"])
        self.busy = True
        self._since = self._loop.time()
        self._head, self._path, self._route, self._upstream = data, target, route, upstream
        self._request_id = request_id = ids.new_instance_id()
        upstream.passage = self._answer
        upstream.write(b"GET %b%b%b\r\n\r\n" % (target, rest, request_id.encode()))
        return True

    def _learn(self, data: bytes, fields: bytes) -> _Like | None:
        """What a head means, if it is all there is, and of a kind that is served here."""
        self._like = None
        try:
            if find_end(data) == len(data):
                head = parse_request(data)
                if head.keep_alive and not head.has_body and head.upgrade is None and b"expect" not in head.names:
                    self._like = self._like_of(head)
        except FramingError:
            pass  # the general way says so
        self._fields = fields if self._like is not None else b""
        return self._like

    def _like_of(self, head: RequestHead) -> _Like | None:
        if not is_of_sprite(head, self._shared.domain):
            return None
        key = Known.key(head, question_of(head, self._address, self._shared.domain))
        return None if key is None else _Like(head, key)

    def _rest(self, head: RequestHead, *, token: bool) -> bytes:
        fields = fields_for_sprite(head, self._address, self._shared.trusted, token=token)
        return format_head(b" HTTP/1.1", [*fields, (b"X-Request-Id", b"")])[: -len(b"\r\n\r\n")]

    # ---- its answer ----

    def answered(self, data: bytes) -> None:
        """The first of it has come."""
        end = data.find(b"\r\n\r\n") + 4
        raw = data[:end]
        if end < 4:
            form = None
        elif raw == self._raw:
            form = self._form
        else:
            form = self._learn_answer(raw)
        have = len(data) - end
        if form is None or have > form.length:
            self.hand_over(data)
            return
        client, upstream = self._client, self._upstream
        first = b"%b%b%b" % (form.before, self._request_id.encode(), form.after)
        upstream.passage = None
        if have == form.length:
            client.write(first + data[end:] if have else first)
            self._done(form)
            return
        self._passage = Passage(upstream, client, form.head, first, self._passed)
        upstream.buffer += data[end:]
        self._passage.start()

    def _learn_answer(self, raw: bytes) -> _Form | None:
        self._raw, self._form = b"", None
        try:
            if find_end(raw) < 0:
                return None
            head = parse_response(raw)
        except FramingError:
            return None  # the general way says so
        if head.status < 200 or head.status in _NO_BODY or head.length is None:
            return None
        fields = [*fields_for_client(head, _ID.decode()), (b"Connection", b"keep-alive")]
        text = format_head(b"HTTP/1.1 %d %b" % (head.status, head.reason), fields)
        # It is the last but one of the fields.
        before, after = text[: text.rindex(_ID)], text[text.rindex(_ID) + len(_ID) :]
        if len(raw) <= _HEAD_MAX:
            self._raw = raw
        self._form = _Form(head, head.length, head.keep_alive, before, after)
        return self._form

    def _passed(self, error: Exception | None) -> None:
        passage, self._passage = self._passage, None
        if not self.busy or passage is None:
            return
        if error is None and self._form is not None:
            self._done(self._form)
            return
        self._give_up(answered=True)
        self._cut = True
        self._wake()

    def _done(self, form: _Form) -> None:
        """The answer was passed on whole."""
        upstream, client = self._upstream, self._client
        self.busy = False
        upstream.passage = None
        if not (form.keeps and self._shared.kept.give(self._key, upstream)):
            upstream.drop()
        self._note(form.head.status)
        self._since = self._loop.time()
        if client.buffer or client.ended or self._stopping or not client.writable:
            self._wake()

    def hand_over(self, data: bytes) -> None:
        """Let the general way go on with the request: with what came of its answer, or its server's end."""
        self.busy = False
        self._upstream.passage = None
        self._upstream.buffer += data
        patience = max(0.0, self._since + exchange.RESPONSE_SECONDS - self._loop.time())
        self._begun = Begun(self._head, self._request_id, self._route, self._upstream, patience)
        self._wake()

    def _give_up(self, *, answered: bool = False) -> None:
        """The client has gone, or the answer was cut short."""
        self.busy = False
        if self._passage is not None:
            answered = True
            self._passage.stop()
            self._passage = None
        self._upstream.passage = None
        self._upstream.abort()
        self._note(self._form.head.status if answered and self._form is not None else CLIENT_LEFT)

    def _note(self, status: int) -> None:
        self._shared.holds.release(self._route["socket"])
        path = self._path.partition(b"?")[0].decode()
        self._shared.journal.served(self._address, "GET", path, status, self._request_id)

    # ---- time ----

    @property
    def _period(self) -> float:
        return min(self._idle_seconds, exchange.RESPONSE_SECONDS)

    def _arm(self, seconds: float) -> None:
        """One timer for many requests: it looks at how late it is, and goes on."""
        self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        left = self._since + (exchange.RESPONSE_SECONDS if self.busy else self._idle_seconds) - self._loop.time()
        if self._passage is not None or left > 0:
            self._arm(self._period if self._passage is not None else min(left, self._period))
        elif self.busy:
            self.hand_over(b"")
        else:
            self._late = True
            self._wake()

    def _wake(self) -> None:
        """Let the general way go on."""
        if self._client.passage is self:
            self._client.passage = None
        settle(self._waiter)


class _Answer:
    """The server's side of a request that is under way."""

    def __init__(self, quick: Quick) -> None:
        self._quick = quick

    def received(self, data: bytes) -> None:
        self._quick.answered(data)

    def source_ended(self) -> None:
        self._quick.hand_over(b"")
