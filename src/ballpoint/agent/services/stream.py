"""The answer to a verb about a service: what happens to it and what it writes, a JSON object a line (contract 2.5)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ballpoint.agent.server import Connection
from ballpoint.agent.services.log import Line, Reader, parse_line
from ballpoint.agent.services.service import Happened, Service
from ballpoint.core.clock import Clock
from ballpoint.core.errors import BallpointError

# A client that takes nothing for so long is cut off.
_CLIENT_SECONDS = 60.0


class Stream:
    """Says what it is told, in the order of its happening: what a service wrote before it ended comes before its end.

    Args:
        log_path: of the service, inside.
    """

    def __init__(self, connection: Connection, clock: Clock, log_path: str) -> None:
        self._connection = connection
        self._clock = clock
        self._log_path = log_path
        self._happened: asyncio.Queue[Happened | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._reader: Reader | None = None
        self._pump: asyncio.Task[None] | None = None
        self._service: Service | None = None
        self._begun = False
        self.gone = False

    # ---- what its connection tells ----

    def writable(self) -> None:
        self._room.set()

    def lost(self) -> None:
        """The client has gone: what it began goes on."""
        self.gone = True
        self._room.set()
        self._happened.put_nowait(None)

    # ---- the answer ----

    def begin(self) -> None:
        """From here on nothing can be refused."""
        self._begun = True
        fields = {"content-type": "application/x-ndjson", "transfer-encoding": "chunked", "connection": "close"}
        self._connection.start_response(200, fields)

    @property
    def begun(self) -> bool:
        return self._begun

    async def read(self, reader: Reader) -> None:
        """Say what comes from a log from now on; once what was asked of it is there, this returns."""
        self._reader = reader
        await reader.lines()
        self._pump = asyncio.ensure_future(self._say_lines(reader))
        await reader.began()

    def watch(self, service: Service) -> None:
        """Say what happens to a service from now on."""
        self._service = service
        service.listeners.add(self._happened.put_nowait)

    async def until(self, kinds: set[str], seconds: float) -> Happened | None:
        """Say all until one of `kinds` has happened and was said; None where that takes longer, or the client goes."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while not self.gone:
            try:
                async with asyncio.timeout_at(due):
                    happened = await self._happened.get()
            except TimeoutError:
                return None
            if happened is None:
                return None
            await self.say(happened)
            if happened.kind in kinds:
                return happened
        return None

    async def say(self, happened: Happened) -> None:
        """Say one thing, after all that was written before it."""
        if self._reader is not None and happened.kind in ("exit", "stopped", "error"):
            await self._reader.catch_up()
        fields: dict[str, Any] = {}
        if happened.code is not None:
            fields["exit_code"] = happened.code
        if happened.text:
            fields["data"] = happened.text
        await self._send(happened.kind, self._now(), **fields)

    async def end(self, error: BallpointError | None = None) -> None:
        """Say the last words, and that they are the last."""
        if error is not None:
            await self.say(Happened("error", text=str(error)))
        if self._reader is not None and not self.gone:
            await self._reader.catch_up()
        self.close()
        files = dict.fromkeys(("combined", "stdout", "stderr"), self._log_path)
        await self._send("complete", self._now(), log_files=files)
        if not self.gone:
            self._connection.send(b"0\r\n\r\n")
            self._connection.close()

    def close(self) -> None:
        """Watch and read no more. Idempotent."""
        if self._service is not None:
            self._service.listeners.discard(self._happened.put_nowait)
        if self._pump is not None:
            self._pump.cancel()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def _say_lines(self, reader: Reader) -> None:
        while (data := await reader.next()) is not None:
            line: Line = parse_line(data, self._clock.now().timestamp())
            await self._send(line.stream, line.moment, data=line.text)

    async def _send(self, kind: str, moment: int, **fields: Any) -> None:
        if self.gone:
            return
        data = json.dumps({"type": kind, "timestamp": moment, **fields}).encode() + b"\n"
        self._room.clear()
        if self._connection.send(b"%x\r\n" % len(data), data, b"\r\n"):
            return
        try:
            async with asyncio.timeout(_CLIENT_SECONDS):
                await self._room.wait()
        except TimeoutError:
            self._connection.abort()

    def _now(self) -> int:
        return round(self._clock.now().timestamp() * 1000)
