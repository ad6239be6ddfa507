"""A WebSocket on a `Connection`: framing by `websockets` (sans-I/O) but for the messages it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as Framing
from websockets.protocol import Side, State
from websockets.utils import accept_key

from ballpoint.agent.frames import BINARY, TEXT, head
from ballpoint.agent.server import Connection, Request
from ballpoint.core.errors import InvalidError

MESSAGE_MAX = 16 << 20
_KEEPALIVE_SECONDS = 15.0
_CLOSE_SECONDS = 1.0
# Well above what sessions ever leave unsent: the rest is answers to a client that pings and never reads.
_UNSENT_MAX = 4 << 20


class WebSocket:
    """The server's side. Reads messages into `on_message`; a broken protocol closes it with the code RFC 6455 gives.

    Args:
        on_message: (binary, data); text comes as UTF-8 bytes.
        on_writable, on_lost: as `Handler`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        on_message: Callable[[bool, bytes], None],
        on_writable: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._on_message = on_message
        self.writable = on_writable
        self._on_lost = on_lost
        self._framing = Framing(Side.SERVER, state=State.OPEN, max_size=MESSAGE_MAX)
        self._parts: list[bytes] = []
        self._binary = False
        self._loop = asyncio.get_running_loop()
        self._spoke = self._loop.time()
        self._keepalive: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None

    def accept(self, request: Request, headers: dict[str, str], *, keepalive: bool = True) -> None:
        """Answer the upgrade.

        Args:
            keepalive: send empty binary messages when nothing else is said.

        Raises:
            InvalidError: it is no WebSocket handshake of RFC 6455.
        """
        answer_upgrade(self._connection, request, headers)
        if keepalive:
            self._schedule_keepalive()

    def send_binary(self, *messages: Sequence[bytes | memoryview]) -> bool:
        """Send messages, each given in parts, at once; False asks to wait for `on_writable`."""
        return self._send(BINARY, *messages)

    def send_text(self, text: str) -> None:
        self._send(TEXT, (text.encode(),))

    def close(self, code: int, last: str | bytes) -> None:
        """Send a last message and start the closing handshake, at once; end the connection when it is done, or soon."""
        if self._framing.state is State.OPEN:
            data = last.encode() if isinstance(last, str) else last
            message = head(TEXT if isinstance(last, str) else BINARY, len(data)) + data
            self._framing.send_close(code)
            self._connection.send(message, *self._framing.data_to_send())
        if self._closing is None:
            self._closing = self._loop.call_later(_CLOSE_SECONDS, self._connection.close)

    def _send(self, opcode: int, *messages: Sequence[bytes | memoryview]) -> bool:
        # Not by the framing, which copies what it sends, and whose own frames have gone out before.
        if self._framing.state is not State.OPEN:
            return True
        self._spoke = self._loop.time()
        chunks: list[bytes | memoryview] = []
        for parts in messages:
            chunks += (head(opcode, sum(map(len, parts))), *parts)
        return self._connection.send(*chunks)

    # ---- Handler ----

    def data(self, data: bytes) -> None:
        self._framing.receive_data(data)
        for frame in self._framing.events_received():
            assert isinstance(frame, Frame)
            self._take(frame)
        self._flush()
        if self._connection.unsent > _UNSENT_MAX:
            self._connection.abort()
        if self._framing.parser_exc is not None and self._closing is None:
            self._closing = self._loop.call_later(_CLOSE_SECONDS, self._connection.close)

    def end(self) -> None:
        pass

    def lost(self) -> None:
        for timer in (self._keepalive, self._closing):
            if timer is not None:
                timer.cancel()
        self._on_lost()

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._binary = frame.opcode is Opcode.BINARY
            self._parts = [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
        else:
            return  # ping and close are answered by the framing itself
        if frame.fin:
            message, self._parts = b"".join(self._parts), []
            self._on_message(self._binary, message)

    def _flush(self) -> bool:
        chunks = self._framing.data_to_send()
        ended = bool(chunks) and chunks[-1] == b""
        going = self._connection.send(*chunks) if chunks else self._connection.writable
        if ended:
            self._connection.close()
        return going

    def _schedule_keepalive(self) -> None:
        self._keepalive = self._loop.call_at(self._spoke + _KEEPALIVE_SECONDS, self._keep_alive)

    def _keep_alive(self) -> None:
        """One client counts data messages only, and gives up after 45 s without (contract 3.6)."""
        if self._loop.time() - self._spoke >= _KEEPALIVE_SECONDS - 0.1:
            self.send_binary(())
        if self._framing.state is State.OPEN:
            self._schedule_keepalive()


def answer_upgrade(connection: Connection, request: Request, headers: dict[str, str]) -> None:
    """Answer the handshake; from then on the connection's handler gets raw bytes.

    Raises:
        InvalidError: it is no WebSocket handshake of RFC 6455.
    """
    key = request.headers.get("sec-websocket-key", "")
    if request.headers.get("sec-websocket-version") != "13" or len(key) != 24:
        raise InvalidError("this is not a WebSocket handshake", hint="RFC 6455, version 13")
    answer = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept_key(key), **headers}
    connection.start_response(101, answer)
    connection.upgrade()
