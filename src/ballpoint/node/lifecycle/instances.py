"""Instances with everything they need of the host: a slot, a runtime object, a link."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ballpoint.core import ids
from ballpoint.core.errors import NO_CAPACITY, UnavailableError
from ballpoint.host import memory, slots
from ballpoint.host.cgroup import Hierarchies, Limits
from ballpoint.host.slots import Slot
from ballpoint.network.network import Network
from ballpoint.runtime.container.instance import ContainerInstance
from ballpoint.runtime.container.runtime import ContainerRuntime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance:
    """A running runtime object and the slot it lives in."""

    runtime: ContainerInstance
    slot: Slot

    @property
    def id(self) -> str:
        return self.runtime.id


class Instances:
    """Makes, finds and ends the instances of one node.

    Args:
        limits: what an instance may use unless its sprite says otherwise.
        reserve: bytes of memory that stay free: with less, no instance is made.
    """

    def __init__(
        self, node_id: str, runtime: ContainerRuntime, network: Network, limits: Limits, reserve: int = 0
    ) -> None:
        self._node_id = node_id
        self._runtime = runtime
        self._network = network
        self._reserve = reserve
        self._hierarchies = Hierarchies.detect()
        self.limits = limits

    def missing_memory(self) -> int:
        """Bytes that are missing of the memory that is to stay free; 0 where none are."""
        return max(0, self._reserve - memory.available(self._hierarchies))

    async def make(self) -> Instance:
        """A new blank. A failure leaves nothing.

        Raises:
            UnavailableError: no slot or no memory is left (code NO_CAPACITY), or the zygote is being started again.
        """
        if self.missing_memory() > 0:
            raise UnavailableError(
                "the node has no memory left for another sprite",
                hint=f"{self._reserve >> 20} MiB must stay free (reserve_mb): destroy sprites, or give it more memory",
                code=NO_CAPACITY,
            )
        instance_id = ids.new_instance_id()
        slot = await asyncio.to_thread(slots.acquire, self._owner(instance_id))
        try:
            runtime = await self._runtime.fill(instance_id, slot.uid_base, self.limits)
            instance = Instance(runtime, slot)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(slots.release, slot.number, self._owner(instance_id)))
            raise
        try:
            await asyncio.to_thread(self._network.add, instance_id, slot, runtime.netns)
        except BaseException:
            await asyncio.shield(self.end(instance))
            raise
        return instance

    async def adopt(self, instance_id: str) -> Instance | None:
        """A living instance made by an earlier node process; None where there is none to trust."""
        number = next((n for n, owner in self._slots().items() if owner == self._owner(instance_id)), None)
        if number is None:
            return None
        runtime = await self._runtime.adopt(instance_id)
        return None if runtime is None else Instance(runtime, slots.slot(number))

    async def end(self, instance: Instance) -> None:
        """End an instance with all its processes. Idempotent.

        Raises:
            UnavailableError: a process does not die.
        """
        await instance.runtime.destroy()
        await asyncio.to_thread(self._forget, instance.id, [instance.slot.number])

    async def clean(self, instance_id: str) -> None:
        """Remove what is left of an instance nobody can use. Idempotent."""
        await self._runtime.clean(instance_id)
        owner = self._owner(instance_id)
        numbers = [number for number, holder in self._slots().items() if holder == owner]
        await asyncio.to_thread(self._forget, instance_id, numbers)

    def known(self) -> set[str]:
        """Ids of all instances of which the host holds anything: processes, files, slots or links."""
        prefix = self._owner("")
        of_slots = {owner.removeprefix(prefix) for owner in self._slots().values()} - {"node"}
        return {*self._runtime.known(), *of_slots, *self._network.instances()}

    def _forget(self, instance_id: str, numbers: list[int]) -> None:
        self._network.remove(instance_id)
        for number in numbers:
            slots.release(number, self._owner(instance_id))

    def _slots(self) -> dict[int, str]:
        return slots.owned_by(self._owner(""))

    def _owner(self, instance_id: str) -> str:
        return f"{self._node_id}/{instance_id}"
