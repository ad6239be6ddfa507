"""A session on this process's streams, over as many connections as it takes.

A session does not need its client, and the node keeps what it writes. So a connection that breaks is made anew, from
the byte on that came last (docs/sessions.md). Only what was sent to a session's input cannot be had again: whether it
has arrived nobody knows, and a command whose input may lack a part must not look as if all were well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from typing import Any
from urllib.parse import quote, urlencode

from ballpoint.cli.client import streams
from ballpoint.cli.client.forward import Forwards
from ballpoint.cli.client.http import Api, error_of, no_answer, sprite_path
from ballpoint.cli.client.said import exit_code_of, number_of, object_of
from ballpoint.cli.client.terminal import RawTerminal, notice, window
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import BallpointError, UnavailableError

_STDIN, _STDOUT, _STDERR, _EXIT, _EOF = 0, 1, 2, 3, 4
_STREAMS = {_STDOUT: "stdout", _STDERR: "stderr"}
_READ = 64 * 1024
_DETACH = b"\x1c"  # Ctrl+\
_END_OF_TYPING = b"\x04"  # Ctrl+D
# A cold sprite is started before the handshake ends, and its disk may have to come from the store.
_OPEN_SECONDS = 120.0
# docs/agent.md: a socket that has been silent for 15 s gets an empty message, so three that lack are no coincidence.
_SILENCE_SECONDS = 45.0
# A node is restarted in less.
_RETRY_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_PASSING = (429, 500, 502, 503, 504)
log = logging.getLogger(__name__)


class Joined:
    """One session on this process's streams.

    Args:
        query: of an exec that begins it.
        session: its id, where somebody has begun it already.
        since: a cursor: what of it is shown first; None as the node has it.
        terminal: becomes raw once the session is known to have one.
        forwards: gets what is said of its ports.
    """

    def __init__(
        self,
        node: Api,
        name: str,
        *,
        terminal: RawTerminal,
        forwards: Forwards | None,
        query: str = "",
        session: str = "",
        since: str | None = None,
    ) -> None:
        self._node = node
        self._name = name
        self._terminal = terminal
        self._forwards = forwards
        self._session = session
        self._begins = not session
        self._query = urlencode({"since": since}) if since is not None else query
        self._tty = False
        self._cursors: dict[str, int] | None = None  # None where a session cannot be gone on with
        self._heard_of = asyncio.Event()
        self._connected = asyncio.Event()
        self._socket: Any = None
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._unsent: list[bytes] = []  # typed while there was no connection
        self._sent_input = self._ended_input = False

    async def run(self) -> int:
        """Pass bytes until the session ends, or its user leaves it. Returns its exit code, or 0.

        Raises:
            BallpointError: it cannot be begun or found, or cannot be gone on with.
        """
        loop = asyncio.get_running_loop()
        talking, typing = loop.create_task(self._talk()), loop.create_task(self._type())
        try:
            await asyncio.wait({talking, typing}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                return await talking
            await typing
            notice(f"session {self._session} goes on: {self._comes_back()}")
            return 0
        finally:
            for task in (talking, typing):
                task.cancel()
            await asyncio.gather(talking, typing, return_exceptions=True)
            if self._forwards is not None:
                await self._forwards.close()

    # ---- what comes from the sprite ----

    async def _talk(self) -> int:
        """One connection after the other, until there is an exit code."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

        broken: float | None = None
        pause = _FIRST_PAUSE
        while True:
            self._heard_of.clear()
            try:
                async with connect(
                    self._url(),
                    additional_headers={"Authorization": f"Bearer {self._node.selection.token}"},
                    max_size=None,
                    compression=None,
                    proxy=None,
                    open_timeout=_OPEN_SECONDS,
                    # No pings: a command that does not read its input holds them back with all the rest.
                    ping_interval=None,
                    close_timeout=1.0,
                ) as socket:
                    log.info("WebSocket %s: open", self._path())
                    return await self._receive(socket)
            except InvalidStatus as error:
                status = error.response.status_code
                failure = error_of(status, bytes(error.response.body or b""))
                passing = status in _PASSING
            except ConnectionClosed as error:
                failure, passing = cut(), True
                log.info("WebSocket %s: %s", self._path(), error)
            except (OSError, TimeoutError, WebSocketException) as error:
                failure, passing = no_answer(self._node.selection, error), True
                log.info("WebSocket %s: %s", self._path(), error)
            finally:
                self._socket = None
                self._connected.clear()
            if self._heard_of.is_set():
                broken, pause = None, _FIRST_PAUSE
            self._may_go_on(failure, passing)
            now = SYSTEM_CLOCK.monotonic()
            if broken is None:
                broken = now
                notice("the connection is lost; trying again" + (r" (Ctrl+\ leaves)" if self._tty else ""))
            elif now - broken > _RETRY_SECONDS:
                raise UnavailableError(failure.message, hint=f"once it does, {self._comes_back()}") from failure
            await SYSTEM_CLOCK.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _may_go_on(self, failure: BallpointError, passing: bool) -> None:
        """Raises what is to be said where another connection would be of no use."""
        if self._cursors is None:
            raise failure
        if not passing:
            if failure.status == 404:
                raise UnavailableError(
                    f"session {self._session} is gone: its sprite stopped meanwhile",
                    hint=f"ballpoint events {self._name} says why",
                ) from failure
            raise failure
        if self._sent_input and not self._tty:
            raise UnavailableError(
                "the connection was lost, and how much of the input has arrived nobody knows",
                hint=f"session {self._session} may go on for a while: {self._comes_back()}",
            ) from failure

    def _comes_back(self) -> str:
        return f"ballpoint -s {self._name} attach {self._session}"

    def _path(self) -> str:
        return sprite_path(self._name, f"/exec/{quote(self._session, safe='')}" if self._session else "/exec")

    def _url(self) -> str:
        query = self._query
        if self._cursors is not None:
            query = urlencode({"since": f"{self._cursors['stdout']},{self._cursors['stderr']}"})
        url = self._node.selection.url.replace("http", "ws", 1) + self._path()
        return f"{url}?{query}" if query else url

    async def _receive(self, socket: Any) -> int:
        while True:
            async with asyncio.timeout(_SILENCE_SECONDS if self._cursors is not None else None):
                message = await socket.recv()
            if isinstance(message, str):
                said = object_of(message)
                if said.get("type") == "exit" and self._tty:
                    return number_of(said, "exit_code")
                await self._told(socket, said)
            elif self._tty:
                self._write(_STDOUT, message)
            elif message[:1] == bytes((_EXIT,)):
                return exit_code_of(message)
            elif message[:1] in (bytes((_STDOUT,)), bytes((_STDERR,))):
                self._write(message[0], message[1:])

    def _write(self, stream: int, data: bytes) -> None:
        streams.write(stream, data)
        if self._cursors is not None:
            self._cursors[_STREAMS[stream]] += len(data)

    async def _told(self, socket: Any, said: dict[str, Any]) -> None:
        kind = said.get("type")
        if kind == "session_info":
            if self._cursors is not None:
                notice("connected again")
            self._session, self._tty = str(said.get("session_id", self._session)), bool(said.get("tty"))
            offsets = said.get("offsets")
            self._cursors = None
            if isinstance(offsets, dict):
                self._cursors = {
                    stream: number_of(offsets, stream) if stream in offsets else 0 for stream in _STREAMS.values()
                }
            await self._introduce(socket)
        elif kind == "dropped":
            start, end, stream = number_of(said, "start"), number_of(said, "end"), str(said.get("stream"))
            if stream in _STREAMS.values():
                lost = f"ballpoint: {end - start} bytes of its {stream} are not kept any more\n"
                streams.write(_STDERR, lost.encode())
                if self._cursors is not None:
                    self._cursors[stream] = end
        elif self._forwards is not None:
            await self._forwards.told(said)

    async def _introduce(self, socket: Any) -> None:
        """Say what the sprite must know before it gets further input."""
        self._heard_of.set()
        if self._tty:
            self._terminal.enter()
            # Before the size is read: there is no moment at which a change is not seen.
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, self._input.put_nowait, None)
            await socket.send(_window())
            while self._unsent:
                await socket.send(self._unsent.pop(0))
        elif self._ended_input:
            # The end of no input at all, which can be said twice. A first message that is an end of input and nothing
            # else is ignored (docs/sessions.md), hence the empty input before.
            await socket.send(bytes((_STDIN,)))
            await socket.send(bytes((_EOF,)))
        self._socket = socket
        self._connected.set()

    # ---- what goes to it ----

    async def _type(self) -> None:
        """Pass input on. Ends where the user leaves."""
        await self._heard_of.wait()
        loop = asyncio.get_running_loop()
        while True:
            data = await self._next_input(loop)
            if data is None:
                await self._send(_window())
            elif self._tty and _DETACH in data:
                await self._send(data[: data.index(_DETACH)])
                return
            elif data and not self._tty:
                await self._connection()
                self._sent_input = True
                await self._send(bytes((_STDIN,)) + data)
            elif data:
                await self._send(data)
            else:
                await self._end()
                await loop.create_future()  # there is nothing more to pass on

    async def _end(self) -> None:
        """Standard input has ended. Only who began a session ends its input without having given any."""
        if self._tty and self._begins:
            await self._send(_END_OF_TYPING)
        elif not self._tty and (self._begins or self._sent_input):
            await self._connection()
            self._ended_input = True
            await self._send(bytes((_EOF,)))

    async def _connection(self) -> None:
        while self._socket is None:  # it may be gone again by the time that this is told of it
            await self._connected.wait()

    async def _send(self, data: bytes | str) -> None:
        """Send it, or note it where there is no connection. That one breaks is seen by who receives from it."""
        from websockets.exceptions import ConnectionClosed

        if not data:
            return
        if self._socket is None:
            if isinstance(data, bytes) and self._tty:
                self._unsent.append(data)
            return
        try:
            await self._socket.send(data)
        except (ConnectionClosed, OSError):
            log.info("%d bytes were not sent", len(data))

    async def _next_input(self, loop: asyncio.AbstractEventLoop) -> bytes | None:
        """What comes next on standard input, empty at its end; None where the window has changed its size.

        A thread that waits for it would outlive the command, so the loop does.
        """
        if self._input.empty():
            try:
                loop.add_reader(0, self._read_input, loop)
            except PermissionError:  # a plain file: always readable, and not to be waited for (epoll_ctl(2))
                return os.read(0, _READ)
        return await self._input.get()

    def _read_input(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(0)
        self._input.put_nowait(os.read(0, _READ))


def _window() -> str:
    size = window()
    return json.dumps({"type": "resize", "rows": size.lines, "cols": size.columns})


def cut() -> UnavailableError:
    """What to say where a command's connection ended before it."""
    return UnavailableError("the connection ended before the command did", hint="ballpoint events says what happened")
