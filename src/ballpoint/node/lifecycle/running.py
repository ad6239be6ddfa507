"""Running sprites, and the one primitive: claim a blank, attach the volume, start the inner container."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import BallpointError, ConflictError
from ballpoint.host.cgroup import Limits
from ballpoint.network.network import Network
from ballpoint.node.disks import BINDS, Disks, may_have_services
from ballpoint.node.lifecycle.instances import Instance, Instances
from ballpoint.node.standby.pool import Pool
from ballpoint.registry.records import Sprite
from ballpoint.runtime.container.questions import Question
from ballpoint.volume.pool import AttachedVolume

log = logging.getLogger(__name__)

# A client waits 120 s for a create; a blank that does not come in this time is not coming.
_BLANK_SECONDS = 100.0
Awake = Literal["running", "warm"]
# In a sprite's `config`.
IDLE_TIMEOUT = "idle_timeout"


@dataclass
class Running:
    """A sprite that has an instance.

    Attributes:
        org_id: of the organization that owns it.
        recorded: what the registry has for it, which may be behind what it is.
        trouble: why it is degraded; None while it is well.
        frozen: its writers wait, because the pool is full.
        said: its log, once it is being stopped; the instance may be gone before its volume is.
        ends: set when it is being stopped, or has died: whoever wants the sprite waits for what comes next.
        since: when it was started, by the monotonic clock; long ago where an earlier process did it.
        warm: its processes are frozen, and it keeps its memory.
        pausing: it is about to be warm: whoever wants it waits for the sprite's lock.
        changed: when it became warm or ceased to be, by the monotonic clock.
        idle_timeout: seconds after which it is frozen when nobody uses it; 0 is never, None as the node has it.
    """

    sprite_id: str
    instance: Instance
    volume: AttachedVolume
    org_id: str = field(kw_only=True)
    recorded: Awake = "running"
    trouble: str | None = None
    frozen: bool = False
    said: bytes = b""
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = -math.inf
    warm: bool = False
    pausing: bool = False
    changed: float = field(default_factory=SYSTEM_CLOCK.monotonic)
    idle_timeout: float | None = None

    @property
    def status(self) -> Awake:
        """As the contract calls it, whose three values have none for trouble; `health` beside it says what is wrong."""
        return "running" if self.trouble is None and not self.warm else "warm"

    @property
    def awake(self) -> bool:
        """Whether what is sent to it is done now."""
        return not (self.ending or self.warm or self.pausing)

    @property
    def ending(self) -> bool:
        return self.ends.is_set()


class Starter:
    """Starts and stops sprites. There is no other way to either.

    Args:
        on_death: called with a running sprite whose instance has died under it.
        on_inner_exit: called with a running sprite and how its inner container ended.
        on_question: answers what code inside a running sprite asks.
        on_activity: called with a running sprite that has something to do of which no edge knows, or no more.
        before_stop: awaited with the volume's id before its processes are ended.
        ensure_image: awaited with the digest of an image before anything is started over it.
    """

    def __init__(
        self,
        pool: Pool,
        instances: Instances,
        disks: Disks,
        network: Network,
        *,
        on_death: Callable[[Running], None],
        on_inner_exit: Callable[[Running, str], None],
        on_question: Callable[[Running, Question], Awaitable[None]],
        on_activity: Callable[[Running], None],
        before_stop: Callable[[str], Awaitable[None]],
        ensure_image: Callable[[str], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._instances = instances
        self._disks = disks
        self._network = network
        self._on_death = on_death
        self._on_inner_exit = on_inner_exit
        self._on_question = on_question
        self._on_activity = on_activity
        self._before_stop = before_stop
        self._ensure_image = ensure_image

    async def start(
        self,
        sprite: Sprite,
        volume: AttachedVolume | None = None,
        *,
        patient: bool = False,
    ) -> Running:
        """Give `sprite` a running instance over its volume. A failure leaves none, and the volume detached.

        Args:
            volume: the sprite's own where it is attached already, or one that may become it; taken over.
            patient: as `Pool.take`.

        Raises:
            UnavailableError: no blank, or the volume is still in use.
            CorruptError: its disk cannot be used.
        """
        async with AsyncExitStack() as undo:
            if volume is not None:
                undo.callback(volume.release)
            await self._ensure_image(sprite.image_digest)
            if volume is None:
                volume = await asyncio.to_thread(self._disks.attach, sprite.volume_id)
                undo.callback(volume.release)
            blank = await self._pool.take(_BLANK_SECONDS, patient=patient)
            undo.push_async_callback(self._end, blank)
            try:
                image, services = await asyncio.to_thread(self._look, sprite, volume)
                limits = self.limits(sprite.config)
                if limits != self._instances.limits:
                    blank.runtime.limit(limits)
                # Written before anything of the sprite is in the instance: after a crash it is known whose it was, and
                # over which of the sprite's disks it runs.
                await blank.runtime.set_note({"sprite": sprite.id, "disk": volume.inode})
                await blank.runtime.claim(
                    image,
                    volume.mount,
                    BINDS,
                    sprite=sprite.id,
                    environment={**self._disks.injection.environment, **sprite.environment},
                    profile=sprite.privileges.get("profile") or "standard",
                    no_new_privileges=bool(sprite.privileges.get("no_new_privileges")),
                    resolv_conf=f"nameserver {self._network.gateway}\n",
                    services=services,
                )
            finally:
                self._pool.claimed()
            running = Running(
                sprite.id,
                blank,
                volume,
                org_id=sprite.org_id,
                since=SYSTEM_CLOCK.monotonic(),
                idle_timeout=sprite.config.get(IDLE_TIMEOUT),
            )
            self.watch(running)
            undo.pop_all()
            return running

    def _look(self, sprite: Sprite, volume: AttachedVolume) -> tuple[int, bool]:
        """Mount of its image, and whether it may have services."""
        return self._disks.image_mount(sprite.image_digest), may_have_services(volume)

    def watch(self, running: Running) -> None:
        """Hear of the end of its instance or container, also of one that nobody listened to."""
        runtime = running.instance.runtime
        runtime.on_death = lambda: self._on_death(running)
        runtime.on_inner_exit = lambda how: self._on_inner_exit(running, how)
        runtime.on_question = lambda question: self._on_question(running, question)
        runtime.on_activity = lambda: self._on_activity(running)
        if not runtime.alive:
            self._on_death(running)

    async def stop(self, running: Running, *, gently: bool = False) -> None:
        """End the instance, and let go of the volume when nobody else holds it.

        Args:
            gently: its processes are asked first, and have some seconds.

        Raises:
            UnavailableError: a process or the volume does not let go; call again.
        """
        running.instance.runtime.on_inner_exit = None
        await self._before_stop(running.volume.id)
        if gently:
            running.instance.runtime.thaw()
            try:
                await running.instance.runtime.halt()
            except BallpointError as error:
                log.warning("the processes of %s are ended unasked: %s", running.sprite_id, error)
        await self._instances.end(running.instance)
        await asyncio.to_thread(running.volume.detach)

    def undisturbed(self) -> AbstractContextManager[None]:
        """Within, what can wait does: somebody waits for more than a start."""
        return self._pool.undisturbed()

    async def calm(self, seconds: float) -> None:
        """As `Pool.calm`."""
        await self._pool.calm(seconds)

    async def _end(self, instance: Instance) -> None:
        try:
            await self._instances.end(instance)
        except BallpointError as error:
            log.error("instance %s is left behind: %s", instance.id, error)

    async def limit(self, running: Running, config: dict[str, Any], former: dict[str, Any]) -> None:
        """Give what runs the limits of `config` in place of those of `former`.

        Raises:
            ConflictError: it uses more memory now, and the kernel cannot take it back; the limit is as before.
        """
        runtime = running.instance.runtime
        try:  # in a thread, as the kernel first takes back what it can
            await asyncio.to_thread(runtime.limit, self.limits(config))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            await asyncio.to_thread(runtime.limit, self.limits(former))
            raise ConflictError("the sprite uses more memory than that", hint="end what uses it, or restart") from error

    def limits(self, config: dict[str, Any]) -> Limits:
        """Limits of a sprite: what it asked for, up to what the node gives."""
        default = self._instances.limits
        memory, cpus = config.get("ram_mb"), config.get("cpus")
        return Limits(
            cpus=float(cpus) if cpus else default.cpus,
            memory=int(memory) << 20 if memory else default.memory,
            pids=default.pids,
        )
