"""Health: a sprite whose agent or disk misses its deadline is degraded, and says so, until it answers again."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import BallpointError
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.node import Node

log = logging.getLogger(__name__)

_ROUND_SECONDS = 10.0
_AGENT_SECONDS = 5.0
_DISK_SECONDS = 10.0
_PROBE_FILE = ".health"


class Health:
    """Looks at every running sprite, round after round.

    The disk is asked by a small write and fsync, and only where it was used since the last round: an idle disk is left
    alone. A probe that hangs keeps its thread and is not repeated before it comes back.
    """

    def __init__(self, node: Node, clock: Clock = SYSTEM_CLOCK) -> None:
        self._node = node
        self._clock = clock
        self._written: dict[str, str] = {}
        self._hanging: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        while True:
            for sprite_id, running in list(self._node.running.items()):
                if running.frozen:
                    continue  # said already, with its cause; the disk would only be found not to answer
                try:
                    trouble = await self.check(running)
                    # One whose writers were made to wait meanwhile would be said not to answer, or to be well.
                    if self._node.running.get(sprite_id) is running and not running.frozen:
                        await self._node.report_trouble(running, trouble)
                except Exception:  # noqa: BLE001 - told here; what one sprite's agent says must not end the watch over all
                    log.exception("whether %s is well could not be found out", sprite_id)
            await self._clock.sleep(_ROUND_SECONDS)

    async def check(self, running: Running, *, now: bool = False) -> str | None:
        """Why `running` is degraded, or None.

        Args:
            now: its disk is asked also where it was not used.
        """
        try:
            await running.instance.runtime.ping(_AGENT_SECONDS)
        except BallpointError as error:
            return f"the agent does not answer ({error.message})"
        return await self._check_disk(running, now)

    async def _check_disk(self, running: Running, now: bool) -> str | None:
        volume = running.volume
        probe = self._hanging.get(volume.id)
        if probe is None:
            statistics = (Path("/sys/block") / Path(volume.device).name / "stat").read_text()
            if self._written.get(volume.id) == statistics and not now:
                return None
            probe = self._hanging[volume.id] = _in_thread(volume.mount)
            # Several may wait for it, as who asks and the round; it is the first to hear of its end.
            probe.add_done_callback(lambda _: self._hanging.pop(volume.id))
        try:
            async with asyncio.timeout(_DISK_SECONDS):
                await asyncio.shield(probe)
        except TimeoutError:
            return f"the disk does not take a write within {_DISK_SECONDS:g} s"
        except OSError as error:
            return f"the disk refuses a write ({error.strerror})"
        self._written[volume.id] = (Path("/sys/block") / Path(volume.device).name / "stat").read_text()
        return None


def _in_thread(mount: int) -> asyncio.Future[None]:
    """Probe in a thread of its own: one that hangs in the kernel must not use up a shared pool of them."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if not outcome.done():
            if error is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(error)

    def work() -> None:
        failure: OSError | None = None
        try:
            fd = os.open(_PROBE_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=mount)
            try:
                os.pwrite(fd, os.urandom(16), 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=work, name="disk probe", daemon=True).start()
    return outcome
