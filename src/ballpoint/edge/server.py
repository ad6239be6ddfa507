"""Client connections: one request after the other, each framed, routed and authorized for itself."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from pathlib import Path
from typing import Any

from ballpoint.core import ids
from ballpoint.core.addresses import networks
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, UnavailableError
from ballpoint.edge.admission import Admission, Limits
from ballpoint.edge.exchange import Exchange
from ballpoint.edge.head import FramingError, RequestHead, parse_request
from ballpoint.edge.journal import Journal
from ballpoint.edge.kept import Kept
from ballpoint.edge.known import Known
from ballpoint.edge.question import is_of_sprite, question_of
from ballpoint.edge.quick import Begun, Quick, Shared
from ballpoint.edge.reply import RETRY, answer, refuse
from ballpoint.edge.routes import Routes
from ballpoint.edge.stream import NotStartedError, RefusedError, Stream
from ballpoint.edge.targets import Target, ToAgent, ToApi, ToSprite
from ballpoint.edge.visitor import wants_html
from ballpoint.host.changes import Changes

log = logging.getLogger("edge")

_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_LINGER_SECONDS = 2.0
_IDLE_API_CONNECTIONS = 16
# The control API's server ends a connection that was idle for 5 s; one that it may be ending just now is not used.
_IDLE_API_SECONDS = 3.0
# Many servers end one that was idle for 5 s, too. Each holds its instance's network namespace while it lives.
_IDLE_SPRITE_CONNECTIONS = 64
_IDLE_SPRITE_SECONDS = 3.0
# tcp(7): a client whose host has gone without a word is noticed two minutes after it was heard last.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
_UNACKNOWLEDGED_MS = 120_000


class Edge:
    """Serves connections. One per process.

    Args:
        run: the node's run directory.
        config: the node's settings.
        limits: how many connections it takes.
        counts: all that tell of changes (known.py); None where they cannot be seen.
    """

    def __init__(self, run: Path, config: NodeConfig, limits: Limits, counts: list[Changes] | None = None) -> None:
        self._api = run / "api.sock"
        self._domain = config.domain
        self._trusted = networks(config.trusted_proxies)
        self._routes = Routes(run)
        self._to_api = Kept(_IDLE_API_SECONDS, _IDLE_API_CONNECTIONS)
        self._to_sprites = Kept(_IDLE_SPRITE_SECONDS, _IDLE_SPRITE_CONNECTIONS)
        self._admission = Admission(limits)
        self._journal = Journal()
        self._known = Known(counts, self._routes.holds, lambda: self._routes.connected)
        self._shared = Shared(
            self._domain, self._trusted, self._known, self._routes.holds, self._to_sprites, self._journal
        )
        self._connections: set[asyncio.Task[Any]] = set()
        self._quiet: dict[asyncio.Task[Any], Quick] = {}  # between two requests of the general way
        self._stopping = False

    def connected(self, client: Stream) -> None:
        """Serve a connection that was just made."""
        _notice_its_end(client.transport.get_extra_info("socket"))
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, client: Stream) -> None:
        peer = client.transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        quick = Quick(client, address, self._shared)
        try:
            refusal = self._admission.enter(address)
            if refusal is not None:
                hint = "end some, or try again"
                await refuse(client, 503, "too_many_connections", refusal, hint=hint, headers=RETRY)
                return
            await self._requests(client, address, quick)
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
            quick.close()
            client.close()

    async def stop(self, seconds: float) -> None:
        """Take no more requests, and give those under way `seconds` to end."""
        self._stopping = True
        for task, quick in list(self._quiet.items()):
            if quick.stop():
                task.cancel()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for task in late:
                task.cancel()
        self._to_api.close()
        self._to_sprites.close()
        self._routes.close()
        self._journal.flush()

    async def _requests(self, client: Stream, address: str, quick: Quick) -> None:
        while not self._stopping:
            try:
                begun = await self._between(client, quick)
                head = await self._next_head(client) if begun is None else parse_request(begun.raw)
            except FramingError as error:
                await refuse(client, error.status, "bad_request", error.message)
                return
            except TimeoutError:
                if client.buffer:
                    await refuse(client, 408, "timeout", "the header did not come in time")
                return
            if head is None or not await self._request(client, head, address, quick, begun):
                return

    async def _between(self, client: Stream, quick: Quick) -> Begun | None:
        """Wait for more of a client that has said nothing, and serve meanwhile what needs no task.

        Returns:
            A request that was begun so, and is to be gone on with.
        """
        if client.buffer or client.ended:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._quiet[task] = quick
        try:
            if quick.wanted:
                return await quick.wait(_IDLE_SECONDS)
            client.limit(_IDLE_SECONDS)
            await client.fill()
        finally:
            client.limit(None)
            del self._quiet[task]
        return None

    async def _next_head(self, client: Stream) -> RequestHead | None:
        await client.drain()
        try:
            client.limit(_HEAD_SECONDS)
            # An empty line before a request is to be ignored (RFC 9112 2.2).
            while b"\r\n".startswith(client.buffer[:2]):
                if len(client.buffer) >= 2:
                    del client.buffer[:2]
                elif not await client.fill():
                    break
            data = await client.head()
        finally:
            client.limit(None)
        return None if data is None else parse_request(data)

    async def _request(
        self, client: Stream, head: RequestHead, address: str, quick: Quick, begun: Begun | None
    ) -> bool:
        """Handle one request, or go on with one. Returns whether the connection can take another."""
        request_id = ids.new_instance_id() if begun is None else begun.request_id
        head_only = head.method == b"HEAD"
        of_sprite = is_of_sprite(head, self._domain)
        page = of_sprite and wants_html(head)
        say = partial(refuse, client, request_id=request_id, head_only=head_only, page=page)
        status, keep = 500, False  # a mistake of ours, unless something else is known
        try:
            question = question_of(head, address, self._domain)
            key = Known.key(head, question) if of_sprite else None
            for last in (False, True):
                resumed = begun if not last else None
                if resumed is not None:
                    route = resumed.route
                else:
                    route = await self._ask(question, key, anew=last)
                    quick.wanted = "lasts" in route
                keep = head.keep_alive and not head.has_body
                if "answer" in route:
                    given = route["answer"]
                    status = int(given["status"])
                    await answer(
                        client, status, given["headers"], keep=keep, request_id=request_id, head_only=head_only
                    )
                    return keep
                if "refuse" in route:
                    refusal = route["refuse"]
                    status = int(refusal["status"])
                    await say(
                        status, refusal["error"], refusal["message"],
                        hint=refusal.get("hint"), headers=refusal.get("headers"), keep=keep,
                    )  # fmt: skip
                    return keep
                exchange = Exchange(
                    client,
                    head,
                    self._target(route, head, address, resumed),
                    request_id,
                    last=last,
                    begun=None if resumed is None else resumed.upstream,
                    patience=None if resumed is None else resumed.patience,
                )
                held = route["socket"] if "lease" in route else None
                if held is not None and resumed is None:
                    self._routes.holds.take(held, route["lease"])
                try:
                    status, keep = await exchange.run()
                    return keep
                except ConnectionError:
                    status = exchange.status
                    raise
                except NotStartedError as error:
                    # Its instance has just ended, or a connection that was kept: the node is asked what comes next.
                    if last or exchange.body_begun:
                        raise
                    if isinstance(error, RefusedError):
                        question["refused"] = route["socket"]
                finally:
                    if held is not None:
                        self._routes.holds.release(held)
            raise AssertionError
        except FramingError as error:
            status = error.status
            await say(status, "bad_gateway" if status == 502 else "bad_request", error.message)
            return False
        except TimeoutError:
            status = 503
            await say(status, "unavailable", "no answer in time", headers=RETRY)
            return False
        except BallpointError as error:
            status = error.status
            headers = RETRY if isinstance(error, UnavailableError) else None
            await say(status, error.code, error.message, hint=error.hint, headers=headers)
            return False
        finally:
            path = head.target.partition(b"?")[0].decode()
            self._journal.served(address, head.method.decode(), path, status, request_id)

    async def _ask(self, question: dict[str, Any], key: str | None, *, anew: bool) -> dict[str, Any]:
        """The node's answer, or what it certainly still is; `anew`: only what it says now."""
        if key is None:
            return await self._routes.ask(question)
        known = None if anew else self._known.recall(key)
        if known is not None:
            return known
        looked = self._known.look()
        route = await self._routes.ask(question)
        if not anew:
            self._known.remember(key, looked, route)
        return route

    def _target(self, route: dict[str, Any], head: RequestHead, address: str, begun: Begun | None) -> Target:
        match route["to"]:
            case "agent":
                return ToAgent(route)
            case "sprite":
                reused = begun is not None
                return ToSprite(route, head, self._to_sprites, address, self._trusted, reused=reused)
        return ToApi(route, self._api, self._to_api)


def _notice_its_end(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        client.setsockopt(socket.IPPROTO_TCP, option, value)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
