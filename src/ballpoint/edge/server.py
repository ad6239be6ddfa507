"""Client connections: one request after the other, each framed, routed and authorized for itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ballpoint.core import ids
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.core.wire import NOT_STARTED
from ballpoint.edge.admission import Admission, Limits
from ballpoint.edge.head import (
    Chunks,
    FramingError,
    Head,
    RequestHead,
    ResponseHead,
    parse_request,
    parse_response,
)
from ballpoint.edge.routes import Routes
from ballpoint.edge.splice import splice
from ballpoint.edge.stream import NotStartedError, Stream, connect

log = logging.getLogger("edge")

_READ = 64 * 1024
_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_CONNECT_SECONDS = 5.0
_RESPONSE_SECONDS = 150.0
_LINGER_SECONDS = 2.0
_IDLE_API_CONNECTIONS = 16
# The control API's server ends a connection that was idle for 5 s; one that it may be ending just now is not used.
_IDLE_API_SECONDS = 3.0
# No token is longer; what is said to be one is no more worth than none.
_TOKEN_MAX = 1024

_REASONS = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    409: "Conflict", 414: "URI Too Long", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
# One client attaches by P/exec/{id} from release candidate 30 on (contract section 1).
_VERSION = b"v0.0.1-rc43"
_NEVER_PASSED = (b"authorization", b"cookie", b"expect", b"x-request-id")
_INTERNAL_PREFIX = b"x-ballpoint-"
_NOT_STARTED = NOT_STARTED.encode()
_RETRY = {"Retry-After": "2"}


class Edge:
    """Serves connections. One per process.

    Args:
        run: the node's run directory.
        limits: how many connections it takes.
    """

    def __init__(self, run: Path, limits: Limits) -> None:
        self._api = run / "api.sock"
        self._routes = Routes(run)
        self._idle: list[tuple[Stream, float]] = []  # and since when
        self._admission = Admission(limits)
        self._connections: set[asyncio.Task[Any]] = set()
        self._quiet: set[asyncio.Task[Any]] = set()  # between two requests
        self._stopping = False

    def connected(self, client: Stream) -> None:
        """Serve a connection that was just made."""
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, client: Stream) -> None:
        peer = client.transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        try:
            refusal = self._admission.enter(address)
            if refusal is not None:
                hint = "end some, or try again"
                await _refuse(client, 503, "too_many_connections", refusal, hint=hint, headers=_RETRY)
                return
            await self._requests(client, address)
            if not client.ended and not self._stopping:
                await client.linger(_LINGER_SECONDS)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or takes nothing
        except asyncio.CancelledError:
            pass  # the edge stops
        except Exception:
            log.exception("a connection from %s failed", address)
        finally:
            self._admission.leave(address)
            client.close()

    async def stop(self, seconds: float) -> None:
        """Take no more requests, and give those under way `seconds` to end."""
        self._stopping = True
        for task in list(self._quiet):
            task.cancel()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for task in late:
                task.cancel()
        self._routes.close()

    async def _requests(self, client: Stream, address: str) -> None:
        while not self._stopping:
            try:
                head = await self._next_head(client)
            except FramingError as error:
                await _refuse(client, error.status, "bad_request", error.message)
                return
            except TimeoutError:
                if client.buffer:
                    await _refuse(client, 408, "timeout", "the header did not come in time")
                return
            if head is None or not await self._request(client, head, address):
                return

    async def _next_head(self, client: Stream) -> RequestHead | None:
        if not client.buffer:
            task = asyncio.current_task()
            assert task is not None
            self._quiet.add(task)
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    if not await client.fill():
                        return None
            finally:
                self._quiet.discard(task)
        async with asyncio.timeout(_HEAD_SECONDS):
            # An empty line before a request is to be ignored (RFC 9112 2.2).
            while b"\r\n".startswith(client.buffer[:2]):
                if len(client.buffer) >= 2:
                    del client.buffer[:2]
                elif not await client.fill():
                    break
            data = await client.head()
        return None if data is None else parse_request(data)

    async def _request(self, client: Stream, head: RequestHead, address: str) -> bool:
        """Handle one request. Returns whether the connection can take another."""
        request_id = ids.new_instance_id()
        refuse = partial(_refuse, client, request_id=request_id, head_only=head.method == b"HEAD")
        status, keep = 500, False
        try:
            question = {"method": head.method.decode(), "target": head.target.decode(), "host": head.host.decode()}
            question |= {"token": _bearer(head), "peer": address}
            for last in (False, True):
                route = await self._routes.ask(question)
                if "refuse" in route:
                    refusal = route["refuse"]
                    status = int(refusal["status"])
                    keep = head.keep_alive and not head.has_body
                    await refuse(
                        status, refusal["error"], refusal["message"],
                        hint=refusal.get("hint"), headers=refusal.get("headers"), keep=keep,
                    )  # fmt: skip
                    return keep
                exchange = _Exchange(self, client, head, route, request_id, last=last)
                try:
                    status, keep = await exchange.run()
                    return keep
                except NotStartedError as error:
                    # Its instance has just ended, or a connection that was kept: the node is asked what comes next.
                    if last or exchange.body_begun:
                        raise
                    if isinstance(error, _RefusedError):
                        question["refused"] = route["socket"]
            raise AssertionError
        except FramingError as error:
            status = error.status
            await refuse(status, "bad_gateway" if status == 502 else "bad_request", error.message)
            return False
        except TimeoutError:
            status = 503
            await refuse(status, "unavailable", "no answer in time", headers=_RETRY)
            return False
        except BallpointError as error:
            status = error.status
            headers = _RETRY if isinstance(error, UnavailableError) else None
            await refuse(status, error.code, error.message, hint=error.hint, headers=headers)
            return False
        finally:
            path = head.target.partition(b"?")[0].decode()
            log.info("%s %s %s %d %s", address, head.method.decode(), path, status, request_id)

    async def api_connection(self, *, new: bool) -> Stream:
        """A connection to the control API: one that is idle, unless it must be `new`."""
        now = asyncio.get_running_loop().time()
        while self._idle and not new:
            stream, since = self._idle.pop()
            # Bytes on an idle connection answer nothing that was asked.
            if now - since < _IDLE_API_SECONDS and not (stream.ended or stream.buffer or stream.transport.is_closing()):
                return stream
            stream.close()
        return await connect(self._api, _CONNECT_SECONDS)

    def give_back(self, stream: Stream) -> None:
        if len(self._idle) < _IDLE_API_CONNECTIONS and not stream.buffer and not self._stopping:
            self._idle.append((stream, asyncio.get_running_loop().time()))
        else:
            stream.close()


class _RefusedError(NotStartedError):
    """An agent says that it does not serve, and lives."""


class _Exchange:
    """One request with its response, between a client and the server its route names.

    Args:
        last: it will not be tried again.

    Attributes:
        body_begun: some of the request's body may have been passed on, so it cannot be sent again.
    """

    def __init__(
        self, edge: Edge, client: Stream, head: RequestHead, route: dict[str, Any], request_id: str, *, last: bool
    ) -> None:
        self._edge = edge
        self._client = client
        self._head = head
        self._route = route
        self._request_id = request_id
        self._last = last
        self.body_begun = False
        self._to_agent = route["to"] == "agent"
        self._body_over = asyncio.Event()  # no more of the request's body is passed on
        self._body_sent = False  # it was passed on whole
        self._broken: FramingError | None = None
        self._client_left = False

    async def run(self) -> tuple[int, bool]:
        """Status of the response, and whether the client's connection can take another request."""
        upstream = await self._open()
        self.body_begun = self._head.has_body
        reuse = False
        body: asyncio.Task[None] | None = None
        try:
            upstream.write(self._preamble() + self._request_head())
            # RFC 9110 10.1.1: an HTTP/1.0 client knows no interim response.
            if b"100-continue" in self._head.tokens(b"expect") and self._head.has_body and self._head.version == 1:
                self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = asyncio.get_running_loop().create_task(self._request_body(upstream))
            response = await self._response_head(upstream)
            if response.status == 101:
                await self._join(upstream, response)
                return 101, False
            if self._to_agent and response.get(_NOT_STARTED) and not (self._last or self.body_begun):
                raise _RefusedError("the agent does not serve", hint="try again")
            keep = await self._respond(upstream, response) and not self._client_left
            reuse = keep and response.keep_alive and not self._to_agent
            return response.status, keep
        finally:
            if body is not None:
                body.cancel()
                with suppress(asyncio.CancelledError):
                    await body
            if reuse:
                self._edge.give_back(upstream)
            else:
                upstream.close()

    async def _open(self) -> Stream:
        if not self._to_agent:
            return await self._edge.api_connection(new=self._last)
        return await connect(Path(self._route["socket"]), _CONNECT_SECONDS)

    def _preamble(self) -> bytes:
        return json.dumps(self._route["preamble"]).encode() + b"\n" if self._to_agent else b""

    def _request_head(self) -> bytes:
        head = self._head
        target = self._route["target"].encode("latin-1") if self._to_agent else head.target
        fields = [
            (name, value)
            for name, value in head.end_to_end()
            if name.lower() not in _NEVER_PASSED and not name.lower().startswith(_INTERNAL_PREFIX)
        ]
        if head.version == 0 and head.get(b"host") is None:
            fields.append((b"Host", b"localhost"))
        if head.chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
        if head.upgrade is not None:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", head.upgrade)]
        elif self._to_agent:
            fields.append((b"Connection", b"close"))
        if not self._to_agent:
            fields.append((b"X-Ballpoint-Caller", json.dumps(self._route["caller"]).encode()))
        fields.append((b"X-Request-Id", self._request_id.encode()))
        return _format(b"%s %s HTTP/1.1" % (head.method, target), fields)

    async def _request_body(self, upstream: Stream) -> None:
        """Pass the request's body on, then watch for a client that goes away: the request goes with it."""
        client = self._client
        try:
            await self._send_body(upstream)
        except FramingError as error:
            self._broken = error
            upstream.abort()
        except ConnectionError:
            self._leave(upstream)
        finally:
            self._body_over.set()
        if not self._body_sent or self._head.upgrade is not None:
            return
        while len(client.buffer) < _READ:  # more than that of a next request is not read ahead
            if not await client.fill():
                self._leave(upstream)
                return

    async def _send_body(self, upstream: Stream) -> None:
        async for data in _body(self._client, self._head, until_close=False):
            upstream.write(data)
            try:
                await upstream.drain()
            except ConnectionError:
                return  # the server wants no more; its answer, if there is one, says why
        self._body_sent = True

    def _leave(self, upstream: Stream) -> None:
        self._client_left = True
        upstream.abort()

    async def _response_head(self, upstream: Stream) -> ResponseHead:
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read_response_head(upstream))
        sending = loop.create_task(self._body_over.wait())
        try:
            # A body takes as long as it takes; the server's time begins after it.
            await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken is not None:
                raise self._broken  # the client's fault, whatever the server makes of it
            async with asyncio.timeout(_RESPONSE_SECONDS):
                return await reading
        finally:
            sending.cancel()
            reading.cancel()
            with suppress(asyncio.CancelledError, FramingError, ConnectionError, UnavailableError):
                await reading

    async def _read_response_head(self, upstream: Stream) -> ResponseHead:
        while True:
            try:
                data = await upstream.head()
                if data is None:
                    if self._client_left:
                        raise ConnectionResetError
                    # What was not read to the end of its head was not begun.
                    if upstream.cut and not self._head.has_body:
                        raise NotStartedError("the server has just ended", hint="try again")
                    raise UnavailableError("the server ended the connection without an answer", hint="try again")
                response = parse_response(data)
            except FramingError as error:
                raise FramingError(f"the server's answer is malformed: {error.message}", 502) from error
            if response.status == 101 or response.status >= 200:
                return response

    async def _join(self, upstream: Stream, response: ResponseHead) -> None:
        if self._head.upgrade is None:
            raise FramingError("an upgrade nobody asked for", 502)
        fields = [*response.end_to_end(), (b"Connection", b"Upgrade"), (b"Upgrade", response.get(b"upgrade") or b"")]
        self._client.write(_format(b"HTTP/1.1 101 Switching Protocols", self._with_ours(fields)))
        await splice(self._client, upstream)

    async def _respond(self, upstream: Stream, response: ResponseHead) -> bool:
        """Pass the response on. Returns whether both connections are at a clean end of it."""
        client = self._client
        empty = self._head.method == b"HEAD" or response.status in (204, 304)
        until_close = not empty and not response.chunked and response.length is None
        bare = response.chunked and not empty and self._head.version == 0  # HTTP/1.0 knows no chunks
        fields = response.end_to_end()
        if response.chunked and not empty and not bare:
            fields.append((b"Transfer-Encoding", b"chunked"))
        keep = self._head.keep_alive and not until_close and not bare and self._body_sent
        fields.append((b"Connection", b"keep-alive" if keep else b"close"))
        line = b"HTTP/1.1 %d %s" % (response.status, response.reason)
        client.write(_format(line, self._with_ours(fields)))
        if not empty:
            try:
                async for data in _body(upstream, response, until_close=until_close, bare=bare):
                    client.write(data)
                    await client.drain()
            except (FramingError, ConnectionError) as error:
                # Where its end is the connection's end, only a reset tells the client that it was cut.
                if bare:
                    client.reset()
                raise ConnectionResetError("the response was cut short") from error
        await client.drain()
        return keep

    def _with_ours(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        ours = [(b"Sprite-Version", _VERSION), (b"X-Request-Id", self._request_id.encode())]
        return [field for field in fields if not _is_ours(field[0].lower())] + ours


def _is_ours(name: bytes) -> bool:
    return name in (b"sprite-version", b"x-request-id") or name.startswith(_INTERNAL_PREFIX)


async def _body(stream: Stream, head: Head, *, until_close: bool, bare: bool = False) -> AsyncIterator[bytes]:
    """The raw bytes of a body, as it is framed, or `bare` of its chunks; a body cut short is a ConnectionError."""
    if head.chunked:
        chunks = Chunks(keep=bare)
        while not chunks.done:
            data = await stream.some(_READ)
            if not data:
                raise ConnectionResetError("a body was cut short")
            used = chunks.take(data)
            stream.unread(data[used:])
            if bare:
                yield bytes(chunks.content)
                chunks.content.clear()
            else:
                yield data[:used]
    elif until_close:
        while data := await stream.some(_READ):
            yield data
    else:
        left = head.length or 0
        while left:
            data = await stream.some(min(left, _READ))
            if not data:
                raise ConnectionResetError("a body was cut short")
            left -= len(data)
            yield data


def _bearer(head: RequestHead) -> str:
    scheme, _, token = (head.get(b"authorization") or b"").partition(b" ")
    token = token.strip()
    return token.decode() if scheme.lower() == b"bearer" and token.isascii() and len(token) <= _TOKEN_MAX else ""


def _format(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([line, *(b"%s: %s" % field for field in fields), b"", b""])


async def _refuse(
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
    fields += [(b"Sprite-Version", _VERSION), (b"X-Request-Id", request_id.encode())]
    fields.append((b"Connection", b"keep-alive" if keep else b"close"))
    reason = _REASONS.get(status, "Error").encode()
    client.write(_format(b"HTTP/1.1 %d %s" % (status, reason), fields) + (b"" if head_only else body))
    await client.drain()
