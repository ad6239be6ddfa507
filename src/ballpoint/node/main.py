"""The node process, which the supervisor starts by `python -m ballpoint.api`: the layer above hands its API in."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import NO_CAPACITY, BallpointError, InvalidError, UnavailableError
from ballpoint.core.metrics import Metrics
from ballpoint.core.peer import bind_path
from ballpoint.core.tasks import Tasks
from ballpoint.host import mount, namespaces, prctl
from ballpoint.host.blocktrace import BlockTrace, open_trace
from ballpoint.host.cgroup import Limits
from ballpoint.host.changes import Changes
from ballpoint.host.namespaces import CLONE_NEWNS
from ballpoint.image.catalogue import Catalogue
from ballpoint.network.network import Network
from ballpoint.network.resolver import Resolver
from ballpoint.node.disks import Disks
from ballpoint.node.durable.checkpoints import Checkpoints
from ballpoint.node.durable.collecting import Collector
from ballpoint.node.durable.eviction import Eviction
from ballpoint.node.durable.saving import Saver
from ballpoint.node.durable.shown import Shown
from ballpoint.node.durable.storage import Storage
from ballpoint.node.durable.volumes import Volumes
from ballpoint.node.gauges import measure
from ballpoint.node.inside import Inside
from ballpoint.node.lifecycle.holds import Holds
from ballpoint.node.lifecycle.idling import Idling
from ballpoint.node.lifecycle.instances import Instances
from ballpoint.node.lifecycle.leases import Leases
from ballpoint.node.lifecycle.recovery import recover
from ballpoint.node.lifecycle.running import Starter
from ballpoint.node.listing import Listing
from ballpoint.node.logbook import Logbook
from ballpoint.node.node import Node
from ballpoint.node.routing import Routing
from ballpoint.node.settings import Settings
from ballpoint.node.standby.forks import Forks
from ballpoint.node.standby.pool import Pool
from ballpoint.node.standby.spares import MOST as SPARES_MOST
from ballpoint.node.standby.spares import Spares
from ballpoint.node.urls.urls import Urls
from ballpoint.node.watch.health import Health
from ballpoint.node.watch.images import Images
from ballpoint.node.watch.space import Space
from ballpoint.node.watch.walls import Walls
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from ballpoint.runtime.container.journals import JournalSpace
from ballpoint.runtime.container.programs import ensure_programs
from ballpoint.runtime.container.runtime import ContainerRuntime
from ballpoint.volume.guard import PoolGuard
from ballpoint.volume.pool import VolumePool

log = logging.getLogger("node")

# Blanks that must stand by before the node answers.
_FIRST_BLANK_SECONDS = 60.0
_SWITCH_SECONDS = 0.0002
_END_SECONDS = 20
# The edges keep their connections; one that were closed just as a request comes would cost that request.
_API_KEEP_ALIVE_SECONDS = 24 * 3600


async def serve(config: NodeConfig, make_app: Any, port: int, edge_uid: int, ready: Any) -> None:
    """Run the node until SIGTERM, then leave running sprites running.

    Args:
        make_app: makes the control API's ASGI application from the node, what is seen and set of its sprites, its
            checkpoints, its numbers and its URLs; handed in because it is a layer above.
        port: that the front door listens on.
        ready: called once creates work.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        registry = await Registry.open(url_of(config.registry_file))
        stack.push_async_callback(registry.close)
        await _import_token(registry, config)
        storage = await Storage.open(config)
        stack.push_async_callback(storage.close)

        catalogue = Catalogue(config.cache)
        images = Images(config, registry, storage)
        image = await images.current()
        disk_pool = await asyncio.to_thread(VolumePool.open, config.data, pool_gb=config.pool_gb)
        if missing := disk_pool.shortfall():
            log.warning(
                "the pool may grow by %.1f GiB more than is free below %s: sprites will be stopped before it is full",
                missing / (1 << 30),
                config.data,
            )
        disks = Disks(config, catalogue, image, disk_pool)
        stack.callback(disks.close)
        images.of_checkpoints = disk_pool.images
        stack.push_async_callback(images.close)  # while the pool can be read
        await asyncio.to_thread(disks.prepare)

        network = Network(config.node_id, subnet=config.subnet, egress_allow=config.egress_allow, dns=config.dns)
        journals = JournalSpace(config.data)
        programs = ensure_programs(config.cache)
        runtime = ContainerRuntime(config.node_id, config.run, programs, journals, config.journal_mb << 20)
        # What sprites need that run on stays; after a start that failed, too.
        stack.push_async_callback(asyncio.to_thread, lambda: network.stop(keep=bool(runtime.known())))
        await asyncio.to_thread(network.start)
        stack.callback(lambda: runtime.close(keep=bool(runtime.known())))
        await asyncio.to_thread(runtime.start)
        instances = Instances(config.node_id, runtime, network, _limits(config), config.reserve_mb << 20)

        site = config.site(port)
        leases = Leases()
        changes = Changes(config.instance_changes, counts=True)
        stack.callback(changes.close)
        node = Node(registry, disks, Logbook(config.data / "logs"), leases, site=site, changes=changes)
        stack.push_async_callback(node.close)
        pool = Pool(instances, config.pool, config.pool_max)
        stack.push_async_callback(pool.close)
        guard = await asyncio.to_thread(PoolGuard, disk_pool)
        stack.callback(guard.close)
        space = Space(node, guard)
        stack.push_async_callback(space.close)
        inside = Inside(registry)
        starter = Starter(
            pool,
            instances,
            disks,
            network,
            on_death=node.instance_died,
            on_inner_exit=node.inner_exited,
            on_question=inside.answer,
            on_activity=node.activity_changed,
            before_stop=space.release,
            ensure_image=images.ensure,
        )
        spares = Spares(disks, pool, min(config.pool, SPARES_MOST))
        stack.push_async_callback(spares.close)
        forks = Forks(disks, pool, spares)
        stack.push_async_callback(forks.close)
        metrics = Metrics()
        volumes = Volumes(
            node,
            disk_pool,
            storage,
            config.node_id,
            metrics,
            lost=node.volume_lost,
            trace=await _trace(disk_pool),
        )
        stack.push_async_callback(volumes.close)
        volumes.on_forgotten = forks.drop_all
        saver = Saver(node, volumes, disk_pool, metrics, stopped=space.frozen)
        stack.push_async_callback(saver.close)
        collector = Collector(saver, storage, config.node_id, metrics)
        saver.on_trash, saver.on_garbage = collector.destroyed, collector.later
        saver.on_first = images.needed
        holds = Holds(node)
        idling = Idling(
            node,
            [inside, holds],
            idle_seconds=config.idle_seconds,
            cold_seconds=config.cold_seconds,
            short=instances.missing_memory,
        )
        stack.push_async_callback(idling.close)
        health = Health(node)
        node.use(starter, spares, volumes, saver, idling, health)
        await recover(node, instances, disks)
        pool.start()
        spares.start()
        forks.start()
        # Without one of these it would do half of its work and say nothing: the next node takes over what runs.
        tasks = Tasks(failed=stop.set)
        stack.push_async_callback(tasks.close)
        tasks.start(health.run(), "health")
        tasks.start(space.run(), "space")
        tasks.start(images.run(disks), "images")
        tasks.start(saver.run(), "saving")
        tasks.start(Eviction(node, disk_pool, volumes, metrics).run(), "eviction")
        shown = Shown(disks)
        tasks.start(shown.run(node, volumes), "checkpoints inside")
        tasks.start(collector.run(), "collecting")
        tasks.start(images.keep(), "images for the store")
        tasks.start(Walls(node, network).run(), "walls")
        tasks.start(idling.run(), "idling")

        resolver = Resolver(config.dns)
        await resolver.start(str(network.gateway))
        stack.push_async_callback(resolver.close)
        urls = Urls(node, config, site)
        routing = Routing(node, config, urls, leases)
        routing.start(edge_uid)
        stack.callback(routing.close)
        measure(metrics, node, pool, disk_pool, storage)
        checkpoints = Checkpoints(node, disks, volumes, saver, forks, space, shown)
        app = make_app(node, Listing(node), Settings(node), checkpoints, metrics, urls, holds)
        inside.open(app)
        server = _ApiServer(app, config.run / "api.sock", edge_uid)
        tasks.start(server.serve_here(), "control API")
        if config.pool:
            await _first_blank(pool)
        ready()
        log.info("node %s is ready: %d sprites adopted", config.node_id, len(node.running))
        await stop.wait()
        if tasks.failure is not None:
            # The supervisor ends a node that it has told to stop; this one ends itself, whatever its threads hang in.
            signal.alarm(_END_SECONDS)
            raise tasks.failure

        log.info("stopping; %d sprites go on running", len(node.running))
        server.should_exit = True


async def _trace(pool: VolumePool) -> BlockTrace | None:
    """What notes writes to disks, where the kernel can."""
    try:
        return await asyncio.to_thread(open_trace, pool.root / "staging")
    except (UnavailableError, OSError) as error:
        log.warning("disks that are written at random will be slow while they are saved: %s", error)
        return None


async def _first_blank(pool: Pool) -> None:
    """Wait until a create would find a blank, or say why none comes.

    Where the host has nothing left for one, the node serves the sprites it has, and those that can be started later.
    """
    try:
        await pool.stand_by(_FIRST_BLANK_SECONDS)
    except UnavailableError as error:
        if error.code != NO_CAPACITY:
            raise
        log.warning("no blank stands by: %s", error)


async def _import_token(registry: Registry, config: NodeConfig) -> None:
    if config.token_file is None:
        return
    try:
        text = config.token_file.read_text()
    except OSError as error:
        raise InvalidError(f"cannot read the token file {config.token_file}: {error.strerror}") from error
    await registry.import_token(text)


def _limits(config: NodeConfig) -> Limits:
    cpus = config.cpus or float(os.cpu_count() or 1)
    return Limits(cpus=cpus, memory=config.memory_mb << 20, pids=config.pids)


class _ApiServer(uvicorn.Server):
    """uvicorn inside the node's own loop, which handles signals itself."""

    def __init__(self, app: Any, path: Path, uid: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_keep_alive=_API_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,  # or it would wait for those who follow events
            )
        )
        self._path = path
        self._uid = uid

    async def serve_here(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bind_path(listener, self._path, 0o600)
        os.chown(self._path, self._uid, self._uid)
        listener.listen(512)
        await self.serve(sockets=[listener])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(make_app: Any) -> int:
    """Entry of the node process; prints one sentence where it cannot run."""
    parser = argparse.ArgumentParser(prog="node")
    parser.add_argument("config", type=Path)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--edge-uid", type=int, default=0)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    prctl.set_name("node")
    prctl.die_with_parent()
    # A thread that comes back from a system call waits this long for one that computes (5 ms by default).
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What it mounts goes with it, not with the supervisor, whose mounts it has until here.
    namespaces.unshare(CLONE_NEWNS)
    mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    config = msgspec.json.decode(options.config.read_bytes(), type=NodeConfig, dec_hook=lambda kind, value: kind(value))

    told = False

    def tell(words: bytes) -> None:
        nonlocal told
        if not told:
            os.write(options.ready_fd, words)
            os.close(options.ready_fd)
        told = True

    try:
        uvloop.run(serve(config, make_app, options.port, options.edge_uid, lambda: tell(b"ready")))
    except BallpointError as error:
        tell(f"{error.message}\n{error.hint or ''}".encode())
        log.error("%s", error)
        return error.exit_code
    return 0
