"""Client connections: one request after the other, each framed, routed and authorized for itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from ballpoint.core import ids
from ballpoint.core.errors import BallpointError, UnavailableError
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
from ballpoint.edge.stream import Stream, connect

log = logging.getLogger("edge")

_READ = 64 * 1024
_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_CONNECT_SECONDS = 5.0
_RESPONSE_SECONDS = 150.0
_CONNECTIONS_PER_ADDRESS = 2048
_IDLE_API_CONNECTIONS = 16

_REASONS = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    409: "Conflict", 414: "URI Too Long", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
# One client attaches by P/exec/{id} from release candidate 30 on (contract section 1).
_VERSION = b"v0.0.1-rc43"
_NEVER_PASSED = (b"authorization", b"cookie")
_INTERNAL_PREFIX = b"x-ballpoint-"


class Edge:
    """Serves connections. One per process.

    Args:
        run: the node's run directory.
    """

    def __init__(self, run: Path) -> None:
        self._api = run / "api.sock"
        self._routes = Routes(run)
        self._idle: list[Stream] = []
        self._addresses: Counter[str] = Counter()
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
        self._addresses[address] += 1
        try:
            if self._addresses[address] > _CONNECTIONS_PER_ADDRESS:
                await _refuse(client, 503, "too_many_connections", "too many connections from this address")
                return
            await self._requests(client, address)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or takes nothing
        except asyncio.CancelledError:
            pass  # the edge stops
        except Exception:
            log.exception("a connection from %s failed", address)
        finally:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
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
            while client.buffer[:2] == b"\r\n":
                del client.buffer[:2]
                if not client.buffer and not await client.fill():
                    return None
            data = await client.head()
        return None if data is None else parse_request(data)

    async def _request(self, client: Stream, head: RequestHead, address: str) -> bool:
        """Handle one request. Returns whether the connection can take another."""
        request_id = ids.new_instance_id()
        status, keep = 500, False
        try:
            question = {"method": head.method.decode(), "target": head.target.decode(), "host": head.host.decode()}
            question |= {"token": _bearer(head), "peer": address}
            route = await self._routes.ask(question)
            if "refuse" in route:
                refusal = route["refuse"]
                status = int(refusal["status"])
                keep = head.keep_alive and not head.has_body
                await _refuse(
                    client, status, refusal["error"], refusal["message"],
                    hint=refusal.get("hint"), headers=refusal.get("headers"), keep=keep, request_id=request_id,
                )  # fmt: skip
                return keep
            try:
                status, keep = await _Exchange(self, client, head, route, request_id).run()
            except UnavailableError:
                if head.has_body or route["to"] != "agent":
                    raise
                # Its instance has just ended; nothing was answered, so the node is asked what comes next.
                route = await self._routes.ask(question)
                if "refuse" in route:
                    raise
                status, keep = await _Exchange(self, client, head, route, request_id).run()
            return keep
        except FramingError as error:
            status = error.status
            await _refuse(client, status, "bad_request", error.message, request_id=request_id)
            return False
        except (UnavailableError, TimeoutError) as error:
            status = 503
            text = error.message if isinstance(error, BallpointError) else "no answer in time"
            await _refuse(client, status, "unavailable", text, headers={"Retry-After": "2"}, request_id=request_id)
            return False
        finally:
            path = head.target.partition(b"?")[0].decode()
            log.info("%s %s %s %d %s", address, head.method.decode(), path, status, request_id)

    async def api_connection(self) -> Stream:
        """A connection to the control API: one that is idle, or a new one."""
        while self._idle:
            stream = self._idle.pop()
            if not stream.ended and not stream.transport.is_closing():
                return stream
            stream.close()
        return await connect(self._api, _CONNECT_SECONDS)

    def give_back(self, stream: Stream) -> None:
        if len(self._idle) < _IDLE_API_CONNECTIONS and not stream.buffer and not self._stopping:
            self._idle.append(stream)
        else:
            stream.close()


class _Exchange:
    """One request with its response, between a client and the server its route names."""

    def __init__(self, edge: Edge, client: Stream, head: RequestHead, route: dict[str, Any], request_id: str) -> None:
        self._edge = edge
        self._client = client
        self._head = head
        self._route = route
        self._request_id = request_id
        self._to_agent = route["to"] == "agent"
        self._body_sent = False
        self._client_left = False

    async def run(self) -> tuple[int, bool]:
        """Status of the response, and whether the client's connection can take another request."""
        upstream = await self._open()
        reuse = False
        body: asyncio.Task[None] | None = None
        try:
            upstream.write(self._request_head())
            if b"100-continue" in self._head.tokens(b"expect") and self._head.has_body:
                self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = asyncio.get_running_loop().create_task(self._request_body(upstream))
            response = await self._response_head(upstream, body)
            if response.status == 101:
                await self._join(upstream, response)
                return 101, False
            reuse = await self._respond(upstream, response)
            finished = self._body_sent and not self._client_left
            keep = reuse and self._head.keep_alive and finished
            reuse = reuse and finished and response.keep_alive and not self._to_agent
            return response.status, keep
        finally:
            if body is not None:
                body.cancel()
                with suppress(asyncio.CancelledError, FramingError, ConnectionError):
                    await body
            if reuse:
                self._edge.give_back(upstream)
            else:
                upstream.close()

    async def _open(self) -> Stream:
        if not self._to_agent:
            return await self._edge.api_connection()
        stream = await connect(Path(self._route["socket"]), _CONNECT_SECONDS)
        stream.write(json.dumps(self._route["preamble"]).encode() + b"\n")
        return stream

    def _request_head(self) -> bytes:
        head = self._head
        target = self._route["target"].encode("latin-1") if self._to_agent else head.target
        fields = [
            (name, value)
            for name, value in head.end_to_end()
            if name.lower() not in _NEVER_PASSED
            and name.lower() != b"expect"
            and not name.lower().startswith(_INTERNAL_PREFIX)
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
        client, head = self._client, self._head
        async for data in _body(client, head, until_close=False):
            upstream.write(data)
            await upstream.drain()
        self._body_sent = True
        if head.upgrade is not None:
            return
        while len(client.buffer) < _READ:  # more than that of a next request is not read ahead
            if not await client.fill():
                self._client_left = True
                upstream.abort()
                return

    async def _response_head(self, upstream: Stream, body: asyncio.Task[None]) -> ResponseHead:
        reading = asyncio.get_running_loop().create_task(self._read_response_head(upstream))
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                await asyncio.wait({reading, body}, return_when=asyncio.FIRST_COMPLETED)
                if body.done() and isinstance(failure := body.exception(), FramingError):
                    raise failure  # a broken body is the client's fault, whatever the server makes of it
                return await reading
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, FramingError, ConnectionError, UnavailableError):
                await reading

    async def _read_response_head(self, upstream: Stream) -> ResponseHead:
        while True:
            try:
                data = await upstream.head()
            except ConnectionError as error:
                raise UnavailableError("the sprite ended the connection", hint="try again") from error
            if data is None:
                if self._client_left:
                    raise ConnectionResetError
                raise UnavailableError("the server ended the connection without an answer", hint="try again")
            response = parse_response(data)
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
        empty = self._head.method == b"HEAD" or response.status in (204, 304)
        until_close = not empty and not response.chunked and response.length is None
        dechunk = response.chunked and self._head.version == 0
        fields = response.end_to_end()
        if response.chunked and not empty and not dechunk:
            fields.append((b"Transfer-Encoding", b"chunked"))
        keep = self._head.keep_alive and not until_close and not dechunk
        fields.append((b"Connection", b"keep-alive" if keep else b"close"))
        line = b"HTTP/1.1 %d %s" % (response.status, response.reason)
        client = self._client
        client.write(_format(line, self._with_ours(fields)))
        if not empty:
            async for data in _body(upstream, response, until_close=until_close):
                client.write(data)
                await client.drain()
        await client.drain()
        return keep

    def _with_ours(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        ours = [(b"Sprite-Version", _VERSION), (b"X-Request-Id", self._request_id.encode())]
        return [field for field in fields if field[0].lower() not in (b"sprite-version", b"x-request-id")] + ours


async def _body(stream: Stream, head: Head, *, until_close: bool) -> Any:
    """The raw bytes of a body, as it is framed; a body cut short is a ConnectionError."""
    if head.chunked:
        chunks = Chunks()
        while not chunks.done:
            data = await stream.some(_READ)
            if not data:
                raise ConnectionResetError("a body was cut short")
            used = chunks.take(data)
            stream.unread(data[used:])
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
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""


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
    request_id: str = "",
) -> None:
    """Answer with an error of the contract's shape."""
    content = {"error": code, "message": message, **({"hint": hint} if hint else {})}
    body = json.dumps(content).encode()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode())]
    fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    fields += [(b"Sprite-Version", _VERSION), (b"Connection", b"keep-alive" if keep else b"close")]
    if request_id:
        fields.append((b"X-Request-Id", request_id.encode()))
    reason = _REASONS.get(status, "Error").encode()
    client.write(_format(b"HTTP/1.1 %d %s" % (status, reason), fields) + body)
    await client.drain()
