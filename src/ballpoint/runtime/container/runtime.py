"""The container runtime of one node: what its instances share, and how they are made, found again and removed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

from ballpoint.core import ids, peer
from ballpoint.core.errors import InternalError, UnavailableError
from ballpoint.core.peer import Peer
from ballpoint.core.tasks import Tasks
from ballpoint.host import dynmods
from ballpoint.host.bpf import attach_device_policy
from ballpoint.host.cgroup import Cgroup, Hierarchies, Limits
from ballpoint.runtime.container.instance import ContainerInstance
from ballpoint.runtime.container.journals import JournalSpace
from ballpoint.runtime.container.locker import Locker
from ballpoint.runtime.container.zygote import DEVICES

log = logging.getLogger(__name__)

# Terminals are made by the container's own devpts: majors 136-143 (Unix98 slaves), 5:2 (ptmx).
_ALLOWED_DEVICES = [*DEVICES.values(), (5, 2), *((major, None) for major in range(136, 144))]


class ContainerRuntime:
    """Makes and finds the instances of one node.

    Everything it names carries the node's id: the cgroup `ballpoint-<node>` and the files below `run`.

    Args:
        journals: where its agents keep what sessions wrote.
        journal_bytes: how much of it each of them keeps.
    """

    def __init__(self, node_id: str, run: Path, programs: Path, journals: JournalSpace, journal_bytes: int = 0) -> None:
        self._run = run
        self._instances = run / "instances"
        self._programs = programs
        self._hierarchies = Hierarchies.detect()
        self._node_id = node_id
        self._zygote: Peer | None = None
        self._locker: Locker | None = None
        self.tasks = Tasks()
        self.journals = journals
        self.journal_bytes = journal_bytes
        # Not below the systemd unit: a unit whose group has controllers in use below cannot be started again (EBUSY).
        self.cgroup = Cgroup(self._hierarchies, f"ballpoint-{node_id}")

    def start(self) -> None:
        """Make what all instances share: the cgroup with its device policy, the journals, the locker. Idempotent."""
        self._instances.mkdir(parents=True, exist_ok=True)
        # Sockets are reached by an unprivileged edge: it may pass through, and see nothing.
        self._instances.chmod(0o711)
        self.cgroup.make_at_the_top()
        dynmods.hold(self._node_id, self._run.parent, self._hierarchies)
        directory = self.cgroup.open_directory()
        try:
            attach_device_policy(directory, _ALLOWED_DEVICES)
        finally:
            os.close(directory)
        self.journals.open()
        self._locker = Locker(self._run / "lk", self._programs / "locker")

    def close(self, *, keep: bool) -> None:
        """Let go of the shared things; with `keep`, leave the cgroup to the instances that still run."""
        if self._zygote is not None:
            self._zygote.close()
        if self._locker is not None:
            self._locker.close()
        self.journals.close()
        if not keep:
            self.cgroup.remove()
            dynmods.drop(self._node_id, self._run.parent, self._hierarchies)

    def known(self) -> list[str]:
        """Ids of all instances, whole or half-made, of which this host holds anything."""
        found = {path.name for path in self._instances.iterdir()} if self._instances.exists() else set()
        if self.cgroup.exists():
            found |= {entry.name for entry in os.scandir(self.cgroup.v2) if entry.is_dir()}
        return sorted(found | self.journals.known())

    async def fill(self, instance_id: str, uid_base: int, limits: Limits) -> ContainerInstance:
        """Make a blank: cgroups, anchor, agent and a parked inner container. A failure leaves nothing.

        Args:
            instance_id: fresh.
            uid_base: first of the 131,072 host ids this instance owns.
            limits: of the inner container.
        """
        instance = ContainerInstance(self, instance_id, uid_base, ids.new_secret())
        try:
            await instance.make(limits)
        except BaseException:
            await asyncio.shield(instance.destroy())
            raise
        return instance

    async def adopt(self, instance_id: str) -> ContainerInstance | None:
        """The living instance of that id, made by an earlier node process; None where there is none to trust.

        It is known by the nonce its agent holds and by the kernel's own list of the cgroup's members. A dead agent is
        started again under its anchor first.
        """
        record = self._instances / instance_id / "instance.json"
        try:
            known = json.loads(record.read_bytes())
        except (OSError, ValueError):
            return None
        instance = ContainerInstance(self, instance_id, int(known["uid_base"]), str(known["nonce"]))
        instance.note = known.get("note", {})
        try:
            await instance.rejoin()
        except (UnavailableError, InternalError, OSError) as error:
            log.warning("instance %s is not adopted: %s", instance_id, error)
            instance.release()
            return None
        return instance

    async def clean(self, instance_id: str) -> None:
        """Remove whatever is left of an instance. Idempotent."""
        await ContainerInstance(self, instance_id, 0, "").destroy()

    async def zygote(self) -> Peer:
        """A connection to the zygote, made anew after it was started again.

        Raises:
            UnavailableError: there is none; the supervisor is starting it.
        """
        if self._zygote is None or self._zygote.closed:
            try:
                self._zygote = Peer(peer.connect(self._run / "zygote.sock"))
            except OSError as error:
                raise UnavailableError("the zygote does not answer", hint="it is being started again") from error
        return self._zygote

    def instance_directory(self, instance_id: str) -> Path:
        return self._instances / instance_id

    def instance_cgroup(self, instance_id: str) -> Cgroup:
        return self.cgroup.child(instance_id)

    @property
    def locker(self) -> Locker:
        assert self._locker is not None, "the runtime is not started"
        return self._locker
