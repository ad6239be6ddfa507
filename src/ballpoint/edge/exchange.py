"""One request with its response, between a client and the server its route names."""

from __future__ import annotations

import asyncio

from ballpoint.core.errors import UnavailableError
from ballpoint.edge.head import FramingError, RequestHead, ResponseHead, parse_response
from ballpoint.edge.journal import CLIENT_LEFT
from ballpoint.edge.passage import Passage, TargetLostError
from ballpoint.edge.reply import format_head, of_every_response
from ballpoint.edge.splice import splice
from ballpoint.edge.stream import NotStartedError, RefusedError, Stream
from ballpoint.edge.targets import Target

RESPONSE_SECONDS = 150.0
_INTERNAL_PREFIX = b"x-ballpoint-"
_NOT_TO_CLIENTS = frozenset({b"sprite-version", b"x-request-id"})


class Exchange:
    """A request that is being served.

    Args:
        last: it will not be tried again.
        begun: it was sent over this connection already, which may have some of the answer (see quick.py).
        patience: for how many seconds an answer is waited for.

    Attributes:
        body_begun: some of the request's body may have been passed on, so it cannot be sent again.
        status: of the answer that came, or CLIENT_LEFT until then.
    """

    def __init__(
        self,
        client: Stream,
        head: RequestHead,
        target: Target,
        request_id: str,
        *,
        last: bool,
        begun: Stream | None = None,
        patience: float | None = None,
    ) -> None:
        self._client = client
        self._head = head
        self._target = target
        self._request_id = request_id
        self._last = last
        self._begun = begun
        self._patience = RESPONSE_SECONDS if patience is None else patience
        self._upstream: Stream
        self._body_sent = not head.has_body
        self._broken: FramingError | None = None
        self._client_left = False
        self._answered = False
        self.body_begun = False
        self.status = CLIENT_LEFT

    async def run(self) -> tuple[int, bool]:
        """Status of the response, and whether the client's connection can take another request.

        Raises:
            NotStartedError: the server certainly did not begin it, and it is not the last attempt.
            BallpointError, TimeoutError: there was no answer.
            FramingError: the request or the response must not be passed on.
            ConnectionError: the client has gone, or its response was cut short.
        """
        self._upstream = upstream = self._begun or await self._target.connect(last=self._last)
        self.body_begun = self._head.has_body
        request: Passage | None = None
        kept = False
        try:
            request = self._send()
            response = await self._response_head()
            if response.status == 101:
                await self._join(response)
                return 101, False
            if self._target.declines(response) and not (self._last or self.body_begun):
                raise RefusedError("the agent does not serve", hint="try again")
            clean, keep = await self._respond(response)
            if clean and not self._client_left and response.keep_alive:
                upstream.limit(None)
                kept = self._target.keep(upstream, self._head, response)
            return response.status, keep and not self._client_left
        finally:
            self._client.on_end = None
            if request is not None:
                request.stop()
            if not kept:
                upstream.limit(None)
                upstream.drop()

    # ---- the request ----

    def _send(self) -> Passage | None:
        head, client, upstream = self._head, self._client, self._upstream
        data = self._target.head(head, self._request_id)
        if not head.has_body:
            if self._begun is None:
                upstream.write(data)
            self._body_over(None)
            return None
        # RFC 9110 10.1.1: an HTTP/1.0 client knows no interim response.
        if head.version == 1 and b"100-continue" in head.tokens(b"expect"):
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = Passage(client, upstream, head, data, self._body_over, watched=True)
        request.start()
        return request

    def _body_over(self, error: Exception | None) -> None:
        """No more of the request's body is passed on: a client that goes away now takes its request along."""
        if not self._answered:
            self._upstream.limit(self._patience)
        if error is None:
            self._body_sent = True
            if self._head.upgrade is None:
                self._client.on_end = self._leave
                if self._client.ended:
                    self._leave()
                else:
                    self._client.go_on()
        elif isinstance(error, FramingError):
            self._broken = error
            self._upstream.abort()
        elif not isinstance(error, TargetLostError):
            self._leave()
        # else: the server wants no more; its answer, if there is one, says why

    def _leave(self) -> None:
        self._client_left = True
        self._upstream.abort()

    # ---- the response ----

    async def _response_head(self) -> ResponseHead:
        while True:
            try:
                data = await self._upstream.head()
                response = None if data is None else parse_response(data)
            except FramingError as error:
                raise FramingError(f"the server's answer is malformed: {error.message}", 502) from error
            finally:
                if self._broken is not None:
                    raise self._broken  # the client's fault, whatever the server makes of it
            if response is None:
                if self._client_left:
                    raise ConnectionResetError("the client has gone")
                if self._target.unread(self._upstream, self._head):
                    raise NotStartedError("the server has just ended", hint="try again")
                raise UnavailableError("the server ended the connection without an answer", hint="try again")
            if response.status == 101 or response.status >= 200:
                self._answered = True
                self.status = response.status
                self._upstream.limit(None)
                return response

    async def _join(self, response: ResponseHead) -> None:
        if self._head.upgrade is None:
            raise FramingError("an upgrade nobody asked for", 502)
        fields = fields_for_client(response, self._request_id)
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", response.get(b"upgrade") or b"")]
        self._client.write(format_head(b"HTTP/1.1 101 Switching Protocols", fields))
        await splice(self._client, self._upstream)

    async def _respond(self, response: ResponseHead) -> tuple[bool, bool]:
        """Pass the response on. Returns whether server's and client's connection are at a clean end of it."""
        client, head = self._client, self._head
        empty = head.method == b"HEAD" or response.status in (204, 304)
        until_end = not empty and not response.chunked and response.length is None
        bare = response.chunked and not empty and head.version == 0  # HTTP/1.0 knows no chunks
        fields = fields_for_client(response, self._request_id)
        if response.chunked and not empty and not bare:
            fields.append((b"Transfer-Encoding", b"chunked"))
        keep = head.keep_alive and not until_end and not bare and self._body_sent
        fields.append((b"Connection", b"keep-alive" if keep else b"close"))
        data = format_head(b"HTTP/1.1 %d %s" % (response.status, response.reason), fields)
        if empty or response.length == 0:
            client.write(data)
        else:
            await self._pass(response, data, until_end=until_end, bare=bare)
        await client.drain()
        return not until_end and self._body_sent, keep

    async def _pass(self, response: ResponseHead, data: bytes, *, until_end: bool, bare: bool) -> None:
        over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def end(error: Exception | None) -> None:
            if not over.done():
                over.set_result(error)

        passage = Passage(
            self._upstream,
            self._client,
            response,
            data,
            end,
            until_end=until_end,
            bare=bare,
            drops_trailers=self._target.drops_trailers,
        )
        try:
            passage.start()
            error = await over
        finally:
            passage.stop()
        if error is not None:
            # Where its end is the connection's end, only a reset tells the client that it was cut.
            if bare and not isinstance(error, TargetLostError):
                self._client.reset()
            raise ConnectionResetError("the response was cut short") from error


def fields_for_client(response: ResponseHead, request_id: str) -> list[tuple[bytes, bytes]]:
    """The fields that a client sees of an answer, but for its framing and its connection."""
    return response.end_to_end(_NOT_TO_CLIENTS, _INTERNAL_PREFIX) + of_every_response(request_id)
