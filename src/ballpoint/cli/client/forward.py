"""Ports of a sprite on this machine's loopback: each connection is a WebSocket of its own (contract 2.8)."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from ballpoint.cli.client.http import Api, error_of, no_answer, sprite_path
from ballpoint.cli.client.said import object_of
from ballpoint.core.errors import BallpointError, UnavailableError

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1")
READ = 256 * 1024
_EOF = json.dumps({"type": "eof"})
# Of one command: what a sprite says takes no more of this machine than that.
_FORWARDED_MOST = 32
_PRIVILEGED = 1024
_ANSWER_SECONDS = 30.0
_CLOSE_SECONDS = 1.0
_WILDCARDS = ("0.0.0.0", "::")


@asynccontextmanager
async def tunnel(node: Api, name: str, host: str, port: int) -> AsyncIterator[Any]:
    """A WebSocket that is connected to `host` and `port` as the sprite `name` sees them.

    Raises:
        BallpointError: it cannot be, and why.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

    url = node.selection.url.replace("http", "ws", 1) + sprite_path(name, "/proxy")
    headers = {"Authorization": f"Bearer {node.selection.token}"}
    try:
        # No pings: a sprite's server that reads nothing holds them back with all the rest.
        opened = await connect(
            url,
            additional_headers=headers,
            max_size=None,
            compression=None,
            proxy=None,
            ping_interval=None,
            close_timeout=_CLOSE_SECONDS,
        )
    except InvalidStatus as error:
        raise error_of(error.response.status_code, bytes(error.response.body or b"")) from error
    except (OSError, WebSocketException) as error:
        raise no_answer(node.selection, error) from error
    try:
        try:
            await opened.send(json.dumps({"host": host, "port": port}))
            async with asyncio.timeout(_ANSWER_SECONDS):
                said = object_of(await opened.recv())
        except (ConnectionClosed, TimeoutError) as error:
            raise UnavailableError("the sprite did not answer", hint="try again") from error
        if said.get("status") != "connected":
            raise UnavailableError(str(said.get("message", "the sprite refused")))
        log.info("proxy to %s of %s: open", said.get("target"), name)
        yield opened
    finally:
        await opened.close()


async def join(opened: Any, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass bytes both ways until the sprite's side ends.

    Args:
        read: what comes next from this side, empty at its end, of which the sprite's side is told.

    Raises:
        UnavailableError: the connection was cut. What `read` and `write` raise ends it, too.
    """
    from websockets.exceptions import ConnectionClosed, ConnectionClosedError

    async def send() -> None:
        with suppress(ConnectionClosed):  # which is told by the other direction
            while data := await read():
                await opened.send(data)
            await opened.send(_EOF)

    async def receive() -> None:
        while True:
            message = await opened.recv()
            if isinstance(message, bytes):
                await write(message)

    sending, receiving = asyncio.ensure_future(send()), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_EXCEPTION)
        if not receiving.done():
            await sending  # it failed
        await receiving
    except ConnectionClosedError as error:
        reason = error.rcvd.reason if error.rcvd is not None else ""
        raise UnavailableError(reason or "the connection to the sprite was cut") from error
    except ConnectionClosed:
        return
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)


class Listener:
    """A port of this machine's loopback that leads to one of a sprite.

    Args:
        failed: told why a connection could not be passed on.

    Attributes:
        local: its number, once it listens.
    """

    def __init__(self, node: Api, name: str, host: str, port: int, failed: Callable[[BallpointError], None]) -> None:
        self._node = node
        self._name = name
        self._host = host
        self._port = port
        self._failed = failed
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[Any]] = set()
        self.local = 0

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return bool(self._connections)

    async def start(self, local: int) -> None:
        """Listen on `local`, 0 for any that is free. OSError where it is taken."""
        first = await asyncio.start_server(self._accept, LOOPBACK[0], local, limit=READ)
        self._servers.append(first)
        self.local = first.sockets[0].getsockname()[1]
        with suppress(OSError):  # this machine has no IPv6, or somebody else has it there
            self._servers.append(await asyncio.start_server(self._accept, LOOPBACK[1], self.local, limit=READ))

    def stop(self) -> None:
        """Listen no more; the connections go on."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """Listen no more, and end the connections."""
        self.stop()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._pass_on(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()  # asyncio's streams would show a cancelled task as a failure
        finally:
            self._connections.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            async with tunnel(self._node, self._name, self._host, self._port) as opened:
                await join(opened, lambda: reader.read(READ), write)
        except BallpointError as error:
            self._failed(error)
            # socket(7): closed with a linger time of zero, a TCP connection is reset, which nobody takes for its end.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        except ConnectionError:
            writer.transport.abort()  # who was connected here has gone
        else:
            with suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()


class Forwards:
    """The ports of a command, which come and go with it: each on the same number here, or on another that is free.

    Nothing that goes wrong here concerns the command.

    Args:
        say: shows a line to whoever is there to read it.
    """

    def __init__(self, node: Api, name: str, say: Callable[[str], None]) -> None:
        self._node = node
        self._name = name
        self._say = say
        self._addresses: dict[int, set[str]] = {}
        self._listeners: dict[int, Listener] = {}
        self._stopped: list[Listener] = []  # whose connections may go on

    async def told(self, message: dict[str, Any]) -> None:
        """Take a text of the exec socket; what tells of no port is ignored."""
        kind, port, address = message.get("type"), message.get("port"), message.get("address")
        if type(port) is not int or not 0 < port < 1 << 16 or not isinstance(address, str):
            return
        if kind == "port_opened":
            await self._opened(port, address)
        elif kind == "port_closed":
            self._closed(port, address)

    async def close(self) -> None:
        """Forward no more."""
        listeners = [*self._listeners.values(), *self._stopped]
        await asyncio.gather(*(each.close() for each in listeners), return_exceptions=True)

    async def _opened(self, port: int, address: str) -> None:
        addresses = self._addresses.setdefault(port, set())
        addresses.add(address)
        if port in self._listeners or len(self._listeners) >= _FORWARDED_MOST:
            return
        host = "localhost" if address in (*_WILDCARDS, *LOOPBACK) else address
        listener = Listener(self._node, self._name, host, port, lambda error: log.info("port %d: %s", port, error))
        # A command must not get a port here that users of this machine take for a system service's.
        for local in (port, 0) if port >= _PRIVILEGED else (0,):
            try:
                await listener.start(local)
            except OSError as error:
                log.info("port %d is not free here: %s", local, error)
                continue
            self._listeners[port] = listener
            self._say(f"port {port} of {self._name} is at {LOOPBACK[0]}:{listener.local}")
            return

    def _closed(self, port: int, address: str) -> None:
        addresses = self._addresses.get(port, set())
        addresses.discard(address)
        if not addresses:
            self._addresses.pop(port, None)
            listener = self._listeners.pop(port, None)
            if listener is not None:  # a server may well listen no more and still serve who is there
                listener.stop()
                self._stopped = [each for each in self._stopped if each.busy] + [listener]
