"""What a node is, in numbers that are looked up when somebody asks."""

from __future__ import annotations

from ballpoint.core.metrics import Metrics
from ballpoint.node.durable.storage import Storage
from ballpoint.node.node import Node
from ballpoint.node.standby.pool import Pool
from ballpoint.volume.pool import VolumePool


def measure(metrics: Metrics, node: Node, blanks: Pool, pool: VolumePool, storage: Storage) -> None:
    """Add the numbers of a node to `metrics`."""
    running = node.running
    metrics.gauge("ballpoint_running_sprites", "Sprites that run.", lambda: len(running))
    metrics.gauge(
        "ballpoint_degraded_sprites",
        "Of these, those whose disk or agent does not answer.",
        lambda: sum(each.trouble is not None for each in running.values()),
    )
    metrics.gauge(
        "ballpoint_frozen_disks",
        "Disks whose writers wait, because the pool is full.",
        lambda: sum(each.frozen for each in running.values()),
    )
    metrics.gauge("ballpoint_blanks", "Blanks that stand by.", lambda: blanks.size)
    metrics.gauge("ballpoint_pool_bytes", "Size of the volume pool.", lambda: pool.usage(len(running)).total)
    metrics.gauge("ballpoint_pool_free_bytes", "Of it, what is free.", lambda: pool.usage(len(running)).free)
    metrics.gauge(
        "ballpoint_pool_soft_mark_bytes",
        "Below so many free bytes, what is in the store is left to it.",
        lambda: pool.usage(len(running)).soft,
    )
    metrics.gauge(
        "ballpoint_pool_hard_mark_bytes",
        "Below so many free bytes, writers are stopped.",
        lambda: pool.usage(len(running)).hard,
    )
    metrics.gauge("ballpoint_store_up", "Whether the store answered last.", lambda: storage.away_since is None)
