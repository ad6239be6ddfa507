"""The agent: the program in an instance's root environment that manages the inner container.

It is forked from the zygote, as root of its own user namespace with no capability of the host, and may be killed at any
moment: what must outlive it (its listening sockets, the container's descriptors, those of its sessions, and its state)
is deposited with the anchor, where the next agent finds it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from ballpoint.agent.anchor import Anchor
from ballpoint.agent.control import Control, how_it_ended
from ballpoint.agent.exec import ExecRoutes
from ballpoint.agent.inner import Inner
from ballpoint.agent.ringlog import RingHandler
from ballpoint.agent.server import Routes, serve
from ballpoint.agent.session import Sessions
from ballpoint.agent.spawn import ContainerSpawner
from ballpoint.host import namespaces

log = logging.getLogger("agent")

_STATE = "state"
_STATE_MAX = 4 << 20
_ENVIRONMENT = {
    "HOME": "/home/sprite",
    "USER": "sprite",
    "LOGNAME": "sprite",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "PATH": "/.sprite/bin:/home/sprite/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_DEPOSITED_NAMESPACES = {"netns": "net", "userns": "user", "inner-pidns": "pid"}


def run(sock: socket.socket, given: dict[str, int] | None, identity: dict[str, str] | None) -> None:
    """Be the agent until killed.

    Args:
        sock: the agent's end of the anchor's socket pair.
        given: descriptors of a new instance by name (http, control, log, inner-cgroup, main-procs, inner-procs-N);
            None when this agent takes an earlier one's place.
        identity: instance, nonce and limits of a new instance.
    """
    anchor = Anchor(sock)
    for name, fd in (given or {}).items():
        anchor.keep(name, fd)
    log_fd = _kept(anchor, "log")
    root = logging.getLogger()
    root.handlers = [RingHandler(log_fd)]
    root.setLevel(logging.INFO)
    try:
        asyncio.run(_Main(anchor, log_fd, identity).serve())
    except BaseException:
        log.exception("the agent failed")
        raise


def _kept(anchor: Anchor, name: str) -> int:
    fd = anchor.get(name)
    if fd is None:
        raise LookupError(f"the anchor keeps no {name}")
    return fd


class Agent:
    """What the agent knows and holds. One per process.

    Attributes:
        state: what the next agent needs, as JSON: instance, nonce, limits, sprite, environment, profile, inner pid,
            sessions.
        phase: `parked` (a blank), `running` (claimed), or `dead` (the inner container has ended).
        log_fd, netns, userns: handed to the node.
    """

    def __init__(self, anchor: Anchor, log_fd: int, identity: dict[str, str] | None) -> None:
        self._anchor = anchor
        self.log_fd = log_fd
        self._own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        if identity is not None:
            self.state: dict[str, Any] = {**identity, "sprite": None, "environment": {}, "profile": "standard"}
            self.inner = self._launch()
            self.phase = "parked"
            self.save()
        else:
            self.state = self._load()
            self.inner, self.phase = self._recover()
        self.netns, self.userns = (_kept(anchor, name) for name in ("netns", "userns"))
        procs = [_kept(anchor, name) for name in ("main-procs", *self._numbered("inner-procs-"))]
        self.spawner = ContainerSpawner(self.inner, procs, anchor)
        self.spawner.profile = self.state["profile"]
        self.sessions: Sessions | None = None

    def claim(self, sprite: dict[str, Any], root: int, binds: Sequence[tuple[str, int]]) -> None:
        """Give the parked container its root and this instance its identity."""
        self.state["sprite"] = sprite["sprite"]
        self.configure(sprite)
        self.inner.enter(root, binds, sprite["resolv_conf"])
        self._anchor.forget("parked")
        self._enter_pidns()
        self.phase = "running"
        self.save()
        log.info("claimed for %s", self.state["sprite"])

    def configure(self, settings: dict[str, Any]) -> None:
        """Take over the environment and privileges that processes started from now on get."""
        if "environment" in settings:
            self.state["environment"] = {str(k): str(v) for k, v in settings["environment"].items()}
        if "profile" in settings:
            self.spawner.profile = self.state["profile"] = str(settings["profile"])
        self.save()

    def inner_ended(self) -> str:
        """Note that the inner container has ended, and say how."""
        self.phase = "dead"
        try:
            status: int | None = os.waitpid(self.inner.pid, os.WNOHANG)[1]
        except ChildProcessError:
            status = self._anchor.exit_status(self.inner.pid)
        how = how_it_ended(status) if status is not None else "unknown"
        log.warning("the inner container ended: %s", how)
        return how

    def environment(self) -> dict[str, str]:
        """What a process of this sprite finds before a request adds to it."""
        return {**_ENVIRONMENT, **self.state["environment"]}

    def save_sessions(self, states: list[dict[str, Any]]) -> None:
        self.state["sessions"] = states
        self.save()

    def save(self) -> None:
        """Deposit the state; the former one is replaced in one step."""
        fd = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(self.state).encode())
            self._anchor.keep(_STATE, fd)
        finally:
            os.close(fd)

    def _load(self) -> dict[str, Any]:
        fd = _kept(self._anchor, _STATE)
        try:
            state: dict[str, Any] = json.loads(os.pread(fd, _STATE_MAX, 0))
        finally:
            os.close(fd)
        return state

    def _launch(self) -> Inner:
        anchor = self._anchor
        cgroup, main_procs = _kept(anchor, "inner-cgroup"), _kept(anchor, "main-procs")
        v1_procs = [_kept(anchor, name) for name in self._numbered("inner-procs-")]
        inner = Inner.launch(cgroup, v1_procs, main_procs, self.state["limits"])
        for fd in (cgroup, main_procs, *v1_procs):
            os.close(fd)
        for name, kind in _DEPOSITED_NAMESPACES.items():
            fd = inner.namespace(kind)
            anchor.keep(name, fd)
            os.close(fd)
        assert inner.parked is not None
        for name, fd in (("inner", inner.pidfd), ("devpts", inner.devpts), ("parked", inner.parked.fileno())):
            anchor.keep(name, fd)
        self.state["inner_pid"] = inner.pid
        return inner

    def _recover(self) -> tuple[Inner, str]:
        parked = self._anchor.get("parked")
        sock = None if parked is None else socket.socket(fileno=parked)
        inner = Inner(self.state["inner_pid"], _kept(self._anchor, "inner"), _kept(self._anchor, "devpts"), sock)
        if sock is not None:
            return inner, "parked"
        self._enter_pidns()
        return inner, "running"

    def _enter_pidns(self) -> None:
        """From now on children are born in the inner pid namespace, so that an exec needs no second fork.

        The kernel refuses new threads after it; the agent has none.
        """
        fd = _kept(self._anchor, "inner-pidns")
        namespaces.setns(fd, namespaces.CLONE_NEWPID)
        os.close(fd)

    def _numbered(self, prefix: str) -> list[str]:
        return sorted(name for name in self._anchor.names() if name.startswith(prefix))


class _Main:
    """The event loop's side of an agent: its listeners, its sessions, and the watch over the inner container."""

    def __init__(self, anchor: Anchor, log_fd: int, identity: dict[str, str] | None) -> None:
        self._anchor = anchor
        self._agent = Agent(anchor, log_fd, identity)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        agent = self._agent
        agent.sessions = sessions = Sessions(agent.spawner, self._anchor, agent.save_sessions)
        if agent.phase == "running":
            sessions.adopt(agent.state.get("sessions", []))
        control = Control(socket.socket(fileno=_kept(self._anchor, "control")), agent)

        def inner_ended() -> None:
            loop.remove_reader(agent.inner.pidfd)
            control.notify("inner-exited", how=agent.inner_ended())

        loop.add_reader(agent.inner.pidfd, inner_ended)
        routes = Routes()
        routes.serving = lambda: agent.phase == "running"
        ExecRoutes(sessions, agent.environment).add_to(routes)
        async with await serve(socket.socket(fileno=_kept(self._anchor, "http")), routes) as server:
            await server.serve_forever()
