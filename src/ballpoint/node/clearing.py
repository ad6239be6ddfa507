"""What is left of a node that does not run: its instances are ended, its disks let go of, its sprites are cold."""

from __future__ import annotations

import asyncio

from ballpoint.core.config import NodeConfig
from ballpoint.host.cgroup import Limits
from ballpoint.network.network import Network
from ballpoint.node.lifecycle.instances import Instances
from ballpoint.node.logbook import Logbook
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from ballpoint.runtime.container.journals import JournalSpace
from ballpoint.runtime.container.runtime import ContainerRuntime
from ballpoint.volume.pool import VolumePool

_DETACH_SECONDS = 30.0


async def clear(config: NodeConfig) -> None:
    """Remove the instances of a node that is dead, with all that the host holds for them. Idempotent.

    Raises:
        UnavailableError: something does not end.
    """
    journals = JournalSpace(config.data)
    runtime = ContainerRuntime(config.node_id, config.run, config.run, journals)
    network = Network(config.node_id, subnet=config.subnet, egress_allow=config.egress_allow)
    instances = Instances(config.node_id, runtime, network, limits=Limits())
    for instance_id in sorted(instances.known()):
        await instances.clean(instance_id)
    runtime.close(keep=False)
    journals.forget()
    await asyncio.to_thread(network.stop, keep=False)
    if (config.data / "pool").exists():
        pool = await asyncio.to_thread(VolumePool.open, config.data, pool_gb=config.pool_gb)
        for volume_id in pool.volumes():
            volume = await asyncio.to_thread(pool.adopt, volume_id)
            if volume is not None:
                await asyncio.to_thread(volume.detach, _DETACH_SECONDS)
        pool.close()
    if config.registry_file.exists():
        registry = await Registry.open(url_of(config.registry_file))
        logbook = Logbook(config.data / "logs")
        for sprite in await registry.all_sprites():
            if sprite.state in ("running", "warm"):
                cause = "the node was taken down"
                await registry.set_state(sprite.id, "cold", kind="stopped", cause=cause)
                await asyncio.to_thread(logbook.add, sprite.id, b"", cause)
        await registry.close()
