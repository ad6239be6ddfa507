"""The agent: the program in an instance's root environment that manages the inner container.

It is forked from the zygote, as root of its own user namespace with no capability of the host, and may be killed at any
moment: what must outlive it (its listening sockets, the container's descriptors, those of its sessions, and its state)
is deposited with the anchor, where the next agent finds it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from ballpoint.agent.agent import Agent
from ballpoint.agent.anchor import Anchor
from ballpoint.agent.control import Control
from ballpoint.agent.files.routes import FileRoutes
from ballpoint.agent.inside import InsideServer
from ballpoint.agent.ports.handover import HandOver
from ballpoint.agent.ports.listening import Ports
from ballpoint.agent.ports.network import Network
from ballpoint.agent.ports.proxy import ProxyRoutes
from ballpoint.agent.ports.watch import WatchRoutes
from ballpoint.agent.ringlog import CONTAINER, Ring, RingHandler
from ballpoint.agent.server import Routes, serve
from ballpoint.agent.services.disk import Disk
from ballpoint.agent.services.routes import ServiceRoutes
from ballpoint.agent.services.services import Services
from ballpoint.agent.sessions.exec import ExecRoutes
from ballpoint.agent.sessions.journal import Journals
from ballpoint.agent.sessions.sessions import Sessions
from ballpoint.agent.watch import Console, MemoryWatch

log = logging.getLogger("agent")


def run(sock: socket.socket, given: dict[str, int] | None, identity: dict[str, Any] | None) -> None:
    """Be the agent until killed.

    Args:
        sock: the agent's end of the anchor's socket pair.
        given: descriptors of a new instance by name (http, control, log, journal, inner-cgroup, main-procs,
            inner-procs-N); None when this agent takes an earlier one's place.
        identity: instance, nonce, limits and journal_bytes of a new instance.
    """
    anchor = Anchor(sock)
    anchor.keep(given or {})
    log_fd = anchor.take("log")
    root = logging.getLogger()
    root.handlers = [RingHandler(log_fd)]
    root.setLevel(logging.INFO)
    try:
        asyncio.run(_Main(anchor, log_fd, identity).serve())
    except BaseException:
        log.exception("the agent failed")
        raise


class _Main:
    """The event loop's side of an agent: its listeners, its sessions, and the watch over the inner container."""

    def __init__(self, anchor: Anchor, log_fd: int, identity: dict[str, Any] | None) -> None:
        self._anchor = anchor
        self._agent = Agent(anchor, log_fd, identity)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        agent = self._agent
        journals = Journals(self._anchor.get("journal"), int(agent.state.get("journal_bytes", 0)))
        agent.sessions = sessions = Sessions(agent.spawner, self._anchor, journals)
        if agent.phase == "running":
            sessions.adopt()
            log.info("taking an earlier agent's place, with %d sessions", len(sessions))
        groups = self._anchor.take("inner-cgroup")
        services = Services(
            agent.spawner, Disk(agent.spawner), groups, self._anchor, agent.environment, ending=agent.inner.stops
        )
        if agent.phase == "running":
            services.adopt()
        agent.services = services
        console, memory = self._watches(agent)
        control = Control(socket.socket(fileno=self._anchor.take("control")), agent)

        routes = Routes()
        routes.serving = lambda: agent.phase == "running" and not agent.inner.stops()
        network = Network(agent.netns)
        ports = Ports(network)
        ExecRoutes(sessions, agent.environment, ports, control).add_to(routes)
        FileRoutes(agent.spawner).add_to(routes)
        ProxyRoutes(network).add_to(routes)
        WatchRoutes(ports).add_to(routes)
        ServiceRoutes(services).add_to(routes)
        handover = HandOver(network, routes.serving, services.http_port)
        if agent.inner.api is not None:  # an instance of an earlier version has none
            await InsideServer(control, routes).start(socket.socket(fileno=agent.inner.api))
        server = await serve(socket.socket(fileno=self._anchor.take("http")), routes, handover)

        def inner_ended() -> None:
            loop.remove_reader(agent.inner.pidfd)
            # The node ends this process once it is told: a request that were read now might never be answered.
            server.leave_unread()
            if memory is not None:
                memory.close()
            if console is not None:
                console.close()
            control.notify("inner-exited", how=agent.inner_ended())

        loop.add_reader(agent.inner.pidfd, inner_ended)
        await asyncio.Event().wait()  # until it is killed

    def _watches(self, agent: Agent) -> tuple[Console | None, MemoryWatch | None]:
        """None where the instance was made by a version that had none, or the host counts no such thing."""
        counter = self._anchor.get("oom-counter")
        if agent.inner.console is None:
            return None, None
        ring = Ring(agent.log_fd, CONTAINER)
        memory = None if counter is None else MemoryWatch(counter, self._anchor.get("oom-event"), ring)
        return Console(agent.inner.console, ring), memory
