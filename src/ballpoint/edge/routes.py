"""The edge's questions to the node: where does this request go, and may it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from ballpoint.core import peer
from ballpoint.core.errors import UnavailableError
from ballpoint.core.peer import Peer
from ballpoint.edge.holds import Holds

# A sprite that must be started first takes this long at most.
_ANSWER_SECONDS = 130.0
_CONNECT_SECONDS = 10.0
_RETRY_SECONDS = 0.05


class Routes:
    """A connection to the node, made again when the node is; requests in the gap wait a little.

    Absence is only ever the node's word: when it cannot be asked, that is 503.

    Attributes:
        holds: what keeps sprites awake.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "route.sock"
        self.holds = Holds(self._notify)
        self._peer: Peer | None = None
        self._connecting: asyncio.Task[Peer] | None = None
        self._failure: str | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the node is there that answered last."""
        return self._peer is not None and not self._peer.closed

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The node's answer (see node.routing).

        Raises:
            UnavailableError: the node does not answer.
        """
        for _ in range(2):
            connection = await self._connection()
            try:
                answer, _ = await connection.call(
                    "route", seconds=_ANSWER_SECONDS, on_late=self._give_back, **cast(Any, question)
                )
                return dict(answer)
            except UnavailableError:
                if not connection.closed:
                    raise
        raise UnavailableError("the node is being started again", hint="try again")

    def _give_back(self, route: dict[str, Any]) -> None:
        """Nobody waits for this answer any more; its lease would keep the sprite awake for ever."""
        if "lease" in route:
            self.holds.take(route["socket"], route["lease"])
            self.holds.release(route["socket"])

    async def _connection(self) -> Peer:
        """The connection there is, or the next one; many may wait for it, and one task makes it."""
        if self._peer is not None and not self._peer.closed:
            return self._peer
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        connecting = self._connecting
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await asyncio.shield(connecting)
        except TimeoutError as error:
            raise UnavailableError(f"the node is not running: {self._failure}", hint="try again") from error

    async def _connect(self) -> Peer:
        loop = asyncio.get_running_loop()
        while True:
            try:
                made = Peer(peer.connect(self._path), on_close=self._lost)
                made.notify(self.holds.held())
                self._peer = made
                return made
            except OSError as error:
                self._failure = error.strerror
            # Nobody tells when a socket file appears, or a full backlog empties; the node takes a moment to start.
            retry = loop.create_future()
            loop.call_later(_RETRY_SECONDS, _settle, retry)
            await retry

    def _notify(self, notice: dict[str, Any]) -> None:
        if self._peer is not None:
            self._peer.notify(notice)

    def _lost(self) -> None:
        """The node has gone. The next one must hear what is held, also where nobody asks it anything."""
        if not self._closed and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._peer is not None:
            self._peer.close()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
