"""What an agent knows and holds, and what it deposits with its anchor for the next one."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from ballpoint.agent import notes
from ballpoint.agent.anchor import Anchor
from ballpoint.agent.inner import Inner, how_it_ended
from ballpoint.agent.reveal import Reveal
from ballpoint.agent.services.services import Services
from ballpoint.agent.sessions.sessions import Sessions
from ballpoint.agent.spawn import ContainerSpawner
from ballpoint.host import namespaces

log = logging.getLogger("agent")

_STATE = "state"
_ENVIRONMENT = {
    "HOME": "/home/sprite",
    "USER": "sprite",
    "LOGNAME": "sprite",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "PATH": "/.sprite/bin:/home/sprite/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_DEPOSITED_NAMESPACES = {"netns": "net", "userns": "user", "inner-pidns": "pid"}


class Agent:
    """What the agent knows and holds. One per process.

    Attributes:
        state: what the next agent needs, as JSON: instance, nonce, limits, journal_bytes, sprite, environment, profile,
            no_new_privileges, inner pid, shown checkpoints.
        reveal: the checkpoints that can be read inside.
        phase: `parked` (a blank), `running` (claimed), or `dead` (the inner container has ended).
        how: how that ended, once it has.
        log_fd, netns, userns: handed to the node.
    """

    def __init__(self, anchor: Anchor, log_fd: int, identity: dict[str, Any] | None) -> None:
        self._anchor = anchor
        self.log_fd = log_fd
        self._own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        if identity is not None:
            self.state: dict[str, Any] = {**identity, "sprite": None, "environment": {}, "profile": "standard"}
            self.state["no_new_privileges"] = False
            self.inner = self._launch()
            self.phase = "parked"
            self.save()
        else:
            self.state = notes.read(anchor.take(_STATE))
            self.inner, self.phase = self._recover()
        self.netns, self.userns = (anchor.take(name) for name in ("netns", "userns"))
        procs = [anchor.take(name) for name in ("main-procs", *self._numbered("inner-procs-"))]
        self.spawner = ContainerSpawner(self.inner, procs, anchor)
        self.spawner.profile = self.state["profile"]
        self.spawner.no_new_privileges = self.state.get("no_new_privileges", False)
        self.reveal = Reveal(self.inner, self.state.setdefault("shown", []))
        self.sessions: Sessions | None = None
        self.services: Services | None = None
        self.how = ""

    def claim(self, sprite: dict[str, Any], root: int, binds: Sequence[tuple[str, int]]) -> None:
        """Give the parked container its root and this instance its identity."""
        self.state["sprite"] = sprite["sprite"]
        self.configure(sprite)
        self.inner.enter(root, binds, sprite["resolv_conf"])
        self._anchor.forget(["parked"])
        self._enter_pidns()
        self.phase = "running"
        self.save()
        if self.services is not None:
            # A node of an earlier version does not say whether there may be any.
            self.services.wake(bool(sprite.get("services", True)))
        log.info("claimed for %s", self.state["sprite"])

    def configure(self, settings: dict[str, Any]) -> None:
        """Take over the environment and privileges that processes started from now on get."""
        if "environment" in settings:
            self.state["environment"] = {str(k): str(v) for k, v in settings["environment"].items()}
        if "profile" in settings:
            self.spawner.profile = self.state["profile"] = str(settings["profile"])
        if "no_new_privileges" in settings:
            self.spawner.no_new_privileges = self.state["no_new_privileges"] = bool(settings["no_new_privileges"])
        self.save()

    def inner_ended(self) -> str:
        """Note that the inner container has ended, and say how."""
        self.phase = "dead"
        try:
            status: int | None = os.waitpid(self.inner.pid, os.WNOHANG)[1]
        except ChildProcessError:
            status = self._anchor.exit_status(self.inner.pid)
        how = how_it_ended(status) if status is not None else "unknown"
        self.how = how
        log.warning("the inner container ended: %s", how)
        return how

    def environment(self) -> dict[str, str]:
        """What a process of this sprite finds before a request adds to it."""
        return {**_ENVIRONMENT, **self.state["environment"]}

    def save(self) -> None:
        """Deposit the state; the former one is replaced in one step."""
        fd = notes.write(self.state)
        try:
            self._anchor.keep({_STATE: fd})
        finally:
            os.close(fd)

    def _launch(self) -> Inner:
        anchor = self._anchor
        cgroup, main_procs = anchor.take("inner-cgroup"), anchor.take("main-procs")
        v1_procs = [anchor.take(name) for name in self._numbered("inner-procs-")]
        inner = Inner.launch(cgroup, v1_procs, main_procs, self.state["limits"])
        for fd in (cgroup, main_procs, *v1_procs):
            os.close(fd)
        assert inner.parked is not None
        assert inner.console is not None
        assert inner.api is not None
        fds = {name: inner.namespace(kind) for name, kind in _DEPOSITED_NAMESPACES.items()}
        own = {"inner": inner.pidfd, "devpts": inner.devpts, "console": inner.console, "api": inner.api}
        anchor.keep({**fds, **own, "parked": inner.parked.fileno()})
        for fd in fds.values():
            os.close(fd)
        self.state["inner_pid"] = inner.pid
        return inner

    def _recover(self) -> tuple[Inner, str]:
        parked = self._anchor.get("parked")
        sock = None if parked is None else socket.socket(fileno=parked)
        pidfd, devpts = self._anchor.take("inner"), self._anchor.take("devpts")
        console, api = self._anchor.get("console"), self._anchor.get("api")
        inner = Inner(self.state["inner_pid"], pidfd, devpts, console, api, sock)
        if sock is not None:
            return inner, "parked"
        self._enter_pidns()
        return inner, "running"

    def _enter_pidns(self) -> None:
        """From now on children are born in the inner pid namespace, so that an exec needs no second fork.

        The kernel refuses new threads after it; the agent has none.
        """
        fd = self._anchor.take("inner-pidns")
        namespaces.setns(fd, namespaces.CLONE_NEWPID)
        os.close(fd)

    def _numbered(self, prefix: str) -> list[str]:
        return sorted(name for name in self._anchor.names() if name.startswith(prefix))
