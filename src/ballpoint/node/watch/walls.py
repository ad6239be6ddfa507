"""Walls: the rules around instances are put back when somebody takes them away, and every sprite's events say so."""

from __future__ import annotations

import asyncio
import logging

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.host.nft import TableWatch
from ballpoint.network.network import Network
from ballpoint.node.node import Node

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0
_UNKNOWN = "something"


class Walls:
    """Watches the rules of a network that has started.

    The kernel tells of a change when it is made, so what a `nft flush ruleset` opens is open for as long as putting it
    back takes, some hundredths of a second. Where it cannot be put back, every sprite's link is taken down until it is.
    """

    def __init__(self, node: Node, network: Network, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._network = network
        self._clock = clock

    async def run(self) -> None:
        with self._network.watch() as watch:
            await self._mend(_UNKNOWN)  # between the start and the watch
            while True:
                await _readable(watch)
                who = watch.read()
                if who is not None:
                    await self._mend(who)

    async def _mend(self, who: str) -> None:
        closed = False
        while True:
            try:
                broken = await asyncio.to_thread(self._network.mend)
            except (BallpointError, OSError) as error:
                log.error("%s changed the node's firewall rules, which cannot be put back: %s", who, error)
                if not closed:
                    closed = await self._close(who, error)
                await self._clock.sleep(_AGAIN_SECONDS)
                continue
            if closed:
                await self._tell("network open", "the firewall rules were put back")
            elif broken:
                log.warning("%s changed the node's firewall rules; they were put back", who)
                await self._tell("network mended", f"{who} changed the node's firewall rules; they were put back")
            return

    async def _close(self, who: str, error: Exception) -> bool:
        try:
            await asyncio.to_thread(self._network.close)
        except OSError as refused:
            log.error("links of sprites cannot be taken down: %s", refused)
            return False
        cause = f"{who} changed the node's firewall rules, and they cannot be put back ({error})"
        await self._tell("network closed", cause)
        return True

    async def _tell(self, kind: str, cause: str) -> None:
        for sprite_id in list(self._node.running):
            try:
                await self._node.registry.add_event(sprite_id, kind, cause)
            except BallpointError as error:
                log.error("cannot note %r for sprite %s: %s", kind, sprite_id, error)


async def _readable(watch: TableWatch) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(watch.fileno(), settle)
    try:
        await readable
    finally:
        loop.remove_reader(watch.fileno())
