"""One instance of the container runtime: filled as a blank, claimed, found again, destroyed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ballpoint.agent import ringlog
from ballpoint.core import peer
from ballpoint.core.errors import ConflictError, InternalError, InvalidError, UnavailableError
from ballpoint.core.peer import Peer, words
from ballpoint.core.tasks import Tasks
from ballpoint.host import namespaces, prctl
from ballpoint.host.cgroup import Cgroup, Limits
from ballpoint.host.files import remove_tree, write_atomically
from ballpoint.runtime.container import rootfs
from ballpoint.runtime.container.journals import JournalSpace
from ballpoint.runtime.container.locker import Locker
from ballpoint.runtime.container.questions import Question
from ballpoint.runtime.container.rootfs import Bind

log = logging.getLogger(__name__)

# Deadlines, in seconds. A blank is filled in milliseconds; what takes this long is broken.
_FILL_SECONDS = 30.0
_CLAIM_SECONDS = 20.0
_KILL_SECONDS = 10.0
_FREEZE_SECONDS = 2.0
# Its init gives its processes 5 s.
_HALT_SECONDS = 8.0
# An agent has one for each connection inside, of which there are fewer (agent/inside.py). Who took it over may ask for
# more, and leave the answers.
QUESTIONS_MAX = 64

# An agent's own limits: it serves sessions, and whoever took it over gets no more than this.
_AGENT_LIMITS = Limits(memory=256 << 20, pids=64)
_PTYS = 512
_SHM_BYTES = 1 << 30


class Surroundings(Protocol):
    """What the instances of a node share.

    Attributes:
        tasks: what an instance does in the background is owned by them.
        journals: where its agent keeps what sessions wrote, and how many bytes of it.
    """

    tasks: Tasks
    journals: JournalSpace
    journal_bytes: int

    @property
    def locker(self) -> Locker: ...

    def instance_directory(self, instance_id: str) -> Path:
        """Where its files are; the instance makes and removes it."""
        ...

    def instance_cgroup(self, instance_id: str) -> Cgroup:
        """Its cgroup; the instance makes and removes it."""
        ...

    async def zygote(self) -> Peer:
        """A connection to the zygote; UnavailableError while it is started again."""
        ...


class ContainerInstance:
    """One instance. Idempotent to destroy; everything else fails cleanly once its anchor is dead.

    Attributes:
        id, uid_base, nonce: as filled.
        note: what the node wrote beside it (which sprite it was claimed for); kept over a restart of the node.
        netns, userns: descriptors of the inner container's namespaces.
        phase: `parked`, `running` or `dead`, as the agent said last.
        on_death: called once when the anchor, and with it the instance, has died.
        on_inner_exit: called with how the inner container ended.
        on_question: answers what code inside asks; cancelled when the agent dies.
        on_activity: called when the agent has something to do that no connection of an edge tells of, or no more.
        busy: whether there is such a thing, as the agent said last: a command on a control socket.
    """

    def __init__(self, surroundings: Surroundings, instance_id: str, uid_base: int, nonce: str) -> None:
        self._surroundings = surroundings
        self.id = instance_id
        self.uid_base = uid_base
        self.nonce = nonce
        self.note: dict[str, Any] = {}
        self.phase = "parked"
        self.netns = self.userns = self._anchor = self._log = -1
        self.on_death: Callable[[], None] | None = None
        self.on_inner_exit: Callable[[str], None] | None = None
        self.on_question: Callable[[Question], Awaitable[None]] | None = None
        self.on_activity: Callable[[], None] | None = None
        self.busy = False
        self._questions: dict[int, Question] = {}
        self._control: Peer | None = None
        self._directory = surroundings.instance_directory(instance_id)
        self._cgroup = surroundings.instance_cgroup(instance_id)
        self._reviving = asyncio.Lock()
        self._ending = False
        self._inner_ended = asyncio.Event()

    @property
    def socket(self) -> Path:
        """Where its agent serves HTTP."""
        return self._directory / "http.sock"

    @property
    def cgroup(self) -> Cgroup:
        return self._cgroup

    @property
    def alive(self) -> bool:
        """Whether the anchor lives."""
        return self._anchor >= 0

    @property
    def usable(self) -> bool:
        """Whether anchor and container live."""
        return self.alive and self.phase != "dead"

    # ---- made, found again ----

    async def make(self, limits: Limits) -> None:
        with ExitStack() as stack:
            given = await asyncio.to_thread(self._prepare, limits, stack)
            zygote = await self._surroundings.zygote()
            _, fds = await zygote.call(
                "fill",
                seconds=_FILL_SECONDS,
                fds=list(given.values()),
                names=list(given),
                instance=self.id,
                nonce=self.nonce,
                uid_base=self.uid_base,
                limits=f"{_PTYS},{_SHM_BYTES}",
                journal_bytes=self._surroundings.journal_bytes,
            )
            self._log = os.dup(given["log"])
        self._watch_anchor(fds[0])
        try:
            await self._greet()
        except UnavailableError as error:
            raise InternalError(f"the agent of a new instance ended: {self._last_words()}") from error
        await asyncio.to_thread(self._check_namespaces)
        await asyncio.to_thread(self._limit_all, limits)

    def _prepare(self, limits: Limits, stack: ExitStack) -> dict[str, int]:
        """Files, sockets and cgroups of a new instance; the descriptors its agent deposits, by name."""
        self._directory.mkdir(mode=0o711)
        self._record()
        agent, inner = self._cgroup.child("agent"), self._cgroup.child("inner")
        main = inner.child("main")
        for group in (self._cgroup, agent, inner, main):
            group.make()
        self._cgroup.delegate(self.uid_base, ["cgroup.procs"], directory=False)
        agent.delegate(self.uid_base, ["cgroup.procs"], directory=False)
        delegated = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"]
        inner.delegate(self.uid_base + 1, delegated, directory=True)
        main.delegate(self.uid_base + 1, delegated, directory=True)

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        http = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(http.close)
        peer.bind_path(http, self.socket, 0o666)
        http.listen(512)
        control = peer.listen(self._directory / "control.sock", mode=0o600)
        stack.callback(control.close)
        given = {
            "cgroup": owned(self._cgroup.open_directory()),
            "agent-group": owned(agent.open_procs()),
            "inner-cgroup": owned(inner.open_directory()),
            "main-procs": owned(main.open_procs()),
            "http": http.fileno(),
            "control": control.fileno(),
            "log": owned(ringlog.create()),
            "journal": owned(self._surroundings.journals.make(self.id, self.uid_base)),
        }
        given.update({f"agent-procs-{i}": owned(fd) for i, fd in enumerate(agent.open_v1_procs())})
        given.update({f"inner-procs-{i}": owned(fd) for i, fd in enumerate(inner.open_v1_procs())})
        given.update(zip(("oom-counter", "oom-event"), map(owned, inner.watch_oom()), strict=False))
        return given

    def _limit_all(self, limits: Limits) -> None:
        """Hand controllers down, and set limits with them.

        Only now: anchor and init are born in groups that a v2 kernel lets nobody into once they hand something down.
        """
        agent, inner = self._cgroup.child("agent"), self._cgroup.child("inner")
        for group in (self._cgroup, inner):
            group.make(delegate_controllers=True)
        agent.limit(_AGENT_LIMITS)
        inner.limit(limits)

    def _record(self) -> None:
        content = {"uid_base": self.uid_base, "nonce": self.nonce, "note": self.note}
        # Read by the next node process; an instance does not outlive its host, so nothing waits for the disk.
        write_atomically(self._directory / "instance.json", json.dumps(content).encode(), mode=0o600, durable=False)

    async def rejoin(self) -> None:
        """Find the anchor and the agent of an instance that another node process made."""
        anchor = await asyncio.to_thread(self._find_anchor)
        self._watch_anchor(anchor)
        try:
            await self._greet()
        except UnavailableError:
            await self.revive()

    def _find_anchor(self) -> int:
        """A pidfd of the cgroup's member that is pid 1 of its namespace. Membership is the kernel's word."""
        agent = self._cgroup.child("agent")
        for pid in agent.pids():
            try:
                if not is_anchor(Path(f"/proc/{pid}/status").read_bytes()):
                    continue
                pidfd = os.pidfd_open(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if pid in agent.pids():  # still the same process: its number was not used again meanwhile
                return pidfd
            os.close(pidfd)
        raise UnavailableError(f"instance {self.id} has no anchor")

    def _watch_anchor(self, pidfd: int) -> None:
        self._anchor = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._anchor_died)

    def _anchor_died(self) -> None:
        self._forget_anchor()
        self.phase = "dead"
        self._inner_ended.set()
        if self._control is not None:
            self._control.close()
        if self.on_death is not None:
            self.on_death()

    def _forget_anchor(self) -> None:
        if self._anchor >= 0:
            asyncio.get_running_loop().remove_reader(self._anchor)
            os.close(self._anchor)
            self._anchor = -1

    async def _greet(self) -> None:
        """Connect to the agent and learn who it is. Its answer is checked, not believed.

        Raises:
            UnavailableError: none answers.
            InternalError: whoever answers is another.
        """
        try:
            sock = peer.connect(self._directory / "control.sock")
        except OSError as error:
            raise UnavailableError(f"instance {self.id} cannot be reached: {error.strerror}") from error
        control = Peer(
            sock,
            serve=lambda message, _: self._asked(control, message),
            on_notice=self._noticed,
            on_close=self._agent_lost,
        )
        try:
            hello, fds = await control.call("hello", seconds=_FILL_SECONDS)
        except BaseException:
            control.close()
            raise
        known = {"nonce": self.nonce, "instance": self.id}
        known_by = isinstance(hello, dict) and {name: hello.get(name) for name in known} == known
        if len(fds) != 3 or not known_by or not isinstance(hello.get("phase"), str):
            for fd in fds:
                os.close(fd)
            control.close()
            raise InternalError(f"instance {self.id} is not what it was")
        self._close_descriptors()
        self._control = control
        self._log, self.netns, self.userns = fds
        self.phase = hello["phase"]
        self._active(hello)
        if self.phase == "dead":  # before there was somebody to tell
            self._inner_exited(hello)

    def _check_namespaces(self) -> None:
        """Refuse descriptors that are not this very container's namespaces: the node acts as host root through them.

        Raises:
            InternalError: they are something else.
        """
        try:
            if namespaces.ns_type(self.netns) != namespaces.CLONE_NEWNET:
                raise InternalError(f"instance {self.id} handed over no network namespace")
            owner = namespaces.ns_userns(self.netns)
            parent = namespaces.ns_parent(self.userns)
            outer = os.open(f"/proc/{self._anchor_pid()}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InternalError(f"instance {self.id} handed over a strange namespace: {error}") from error
        try:
            same = _inode(owner) == _inode(self.userns) and _inode(parent) == _inode(outer)
            if not same or namespaces.ns_owner_uid(self.userns) != self.uid_base:
                raise InternalError(f"instance {self.id} handed over another's namespace")
        finally:
            for fd in (owner, parent, outer):
                os.close(fd)

    def _anchor_pid(self) -> int:
        for line in Path(f"/proc/self/fdinfo/{self._anchor}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        raise InternalError("a pidfd without a pid")

    # ---- used ----

    async def claim(
        self,
        image: int,
        volume: int,
        binds: Sequence[Bind],
        *,
        sprite: str,
        environment: Mapping[str, str],
        profile: str,
        no_new_privileges: bool,
        resolv_conf: str,
        services: bool,
    ) -> None:
        """Turn this blank into `sprite`: make its root from image and volume, and let the inner container run.

        A failure leaves the instance fit only to be destroyed.

        Args:
            image, volume: detached mounts.
            binds: directories of the volume that appear beside the overlay.
            profile: of its privileges.
            no_new_privileges: set-user-ID programs have no effect in what is started in it.
            services: its volume may have services, which are started.
        """
        if self.phase != "parked":
            raise ConflictError(f"instance {self.id} is {self.phase}, not a blank")
        root = await asyncio.to_thread(
            rootfs.make, image, volume, binds, self.userns, self.uid_base + 1, self._surroundings.locker
        )
        try:
            await self._call(
                "claim",
                seconds=_CLAIM_SECONDS,
                fds=[root.root, *(fd for _, fd in root.binds)],
                sprite=sprite,
                environment=dict(environment),
                profile=profile,
                no_new_privileges=no_new_privileges,
                resolv_conf=resolv_conf,
                services=services,
                targets=[target for target, _ in root.binds],
            )
        finally:
            root.close()
        self.phase = "running"

    async def set_note(self, note: dict[str, Any]) -> None:
        """Write down what the node must know of this instance after its own restart, before it acts on it."""
        self.note = note
        await asyncio.to_thread(self._record)

    async def configure(self, settings: dict[str, Any]) -> None:
        """Change environment or privileges of processes started from now on."""
        await self._call("settings", seconds=_CLAIM_SECONDS, **settings)

    async def show(self, name: str, image: int, disk: int) -> None:
        """Let the sprite read a checkpoint below /.sprite/checkpoints; nothing where it can already.

        Args:
            image, disk: mounts of the standard image and of the checkpoint's disk.
        """
        userns, locker = self.userns, self._surroundings.locker
        mount = await asyncio.to_thread(rootfs.make_readable, image, disk, userns, self.uid_base + 1, locker)
        try:
            await self._call("show", seconds=_CLAIM_SECONDS, fds=[mount], name=name)
        finally:
            os.close(mount)

    async def hide(self, name: str) -> None:
        """End what `show` began; nothing where the sprite cannot read it."""
        await self._call("hide", seconds=_CLAIM_SECONDS, name=name)

    async def shown(self) -> set[str]:
        """Names of the checkpoints that the sprite can read."""
        names = self._object(await self._call("shown", seconds=_CLAIM_SECONDS)).get("names")
        return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()

    async def ping(self, seconds: float) -> dict[str, Any]:
        """Ask the agent whether it lives.

        Raises:
            UnavailableError: no answer within `seconds`.
        """
        try:
            return self._object(await self._call("ping", seconds=seconds))
        except UnavailableError:
            if self._control is not None and not self._control.closed:
                raise
            return self._object(await self._call("ping", seconds=seconds))  # it died; this asks its successor

    async def freeze(self) -> bool:
        """Stop all processes of the container, which keep their memory. Returns whether they have stopped.

        Its agent and anchor go on: they are in a group beside it.
        """
        return await asyncio.to_thread(self._inner.freeze_whole, _FREEZE_SECONDS)

    def thaw(self) -> None:
        """Let the processes of the container go on. Idempotent."""
        self._inner.freeze(False)

    @property
    def frozen(self) -> bool:
        """Whether the container was stopped by `freeze`, also by an earlier process of the node."""
        return self._inner.is_to_be_frozen()

    async def halt(self) -> None:
        """Ask all processes of the container to end, and wait until it has ended, or for as long as its init does.

        Raises:
            UnavailableError: it does not end.
        """
        if self.phase == "running":
            await self._call("halt", seconds=_CLAIM_SECONDS)
            try:
                async with asyncio.timeout(_HALT_SECONDS):
                    await self._inner_ended.wait()
            except TimeoutError as error:
                raise UnavailableError(f"instance {self.id} does not halt") from error

    @property
    def _inner(self) -> Cgroup:
        return self._cgroup.child("inner")

    def logs(self) -> bytes:
        """What agent and container said last, as lines; works with a dead agent, too."""
        return ringlog.read(self._log) if self._log >= 0 else b""

    def _last_words(self) -> str:
        lines = self.logs().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def limit(self, limits: Limits) -> None:
        """Change the limits of the inner container."""
        self._inner.limit(limits)

    async def revive(self) -> None:
        """Fork a new agent under the living anchor and connect to it. The container and its processes run on.

        Raises:
            UnavailableError: the anchor is dead, or no agent came up.
        """
        async with self._reviving:
            if self._control is not None and not self._control.closed:
                return
            if not self.alive:
                raise UnavailableError(f"instance {self.id} has ended")
            agent = self._cgroup.child("agent")
            await asyncio.to_thread(_end_agents, agent)
            with ExitStack() as stack:
                fds = [agent.open_directory(), *agent.open_v1_procs()]
                for fd in fds:
                    stack.callback(os.close, fd)
                zygote = await self._surroundings.zygote()
                _, received = await zygote.call("revive", seconds=_FILL_SECONDS, fds=[self._anchor, *fds])
            for fd in received:
                os.close(fd)
            await self._greet()

    def _agent_lost(self) -> None:
        """The agent died, or its anchor did: the anchor's own end tells the two apart, a moment later."""
        if self._control is not None and self.alive and not self._ending:
            self._surroundings.tasks.start(self._revive_or_log(), f"revive {self.id}")

    async def _revive_or_log(self) -> None:
        try:
            await self.revive()
        except (UnavailableError, InternalError, OSError) as error:
            if self.alive:
                log.warning("the agent of %s does not come back: %s", self.id, error)

    async def _call(self, op: str, *, seconds: float, fds: Sequence[int] = (), **arguments: Any) -> Any:
        if self._control is None or self._control.closed:
            await self.revive()
        assert self._control is not None
        result, received = await self._control.call(op, seconds=seconds, fds=fds, **arguments)
        for fd in received:
            os.close(fd)
        return result

    def _object(self, answer: Any) -> dict[str, Any]:
        """What the agent answered. InternalError where it is no object: one that was taken over says what it likes."""
        if not isinstance(answer, dict):
            raise InternalError(f"the agent of instance {self.id} does not make sense")
        return answer

    def _noticed(self, notice: dict[str, Any]) -> None:
        if notice.get("notice") == "inner-exited":
            self._inner_exited(notice)
        elif notice.get("notice") == "activity":
            self._active(notice)
        elif notice.get("notice") == "gone":
            number = notice.get("question")
            if isinstance(number, int) and number in self._questions:
                self._questions[number].gone.set()

    async def _asked(self, agent: Peer, message: dict[str, Any]) -> tuple[dict[str, Any], Sequence[int]]:
        if message["op"] != "ask":
            raise InvalidError("a node does nothing else for an agent")
        question = Question(agent, message)
        full = len(self._questions) >= QUESTIONS_MAX
        if self.on_question is None or question.number in self._questions or full:
            raise UnavailableError("the node does not take this question")
        self._questions[question.number] = question
        try:
            await self.on_question(question)
        finally:
            del self._questions[question.number]
        return {}, ()

    def _active(self, said: dict[str, Any]) -> None:
        busy = said.get("busy") is True  # agents of earlier versions say nothing
        if busy != self.busy:
            self.busy = busy
            if self.on_activity is not None:
                self.on_activity()

    def _inner_exited(self, said: dict[str, Any]) -> None:
        self.phase = "dead"
        self._inner_ended.set()
        if self.on_inner_exit is not None:
            self.on_inner_exit(words(said.get("how")) if said.get("how") else "unknown")

    # ---- ended ----

    async def destroy(self) -> None:
        """End all its processes and remove everything of it but what the network takes along. Idempotent.

        Raises:
            UnavailableError: a process does not die; call again.
        """
        self.on_death = None
        self._ending = True
        await asyncio.to_thread(self._cgroup.end, _KILL_SECONDS)
        self.release()
        await asyncio.to_thread(self._surroundings.journals.remove, self.id)
        await asyncio.to_thread(remove_tree, self._directory)

    def release(self) -> None:
        """Let go of this process's descriptors; the instance lives on. Idempotent."""
        self.on_death = None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        self._forget_anchor()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for fd in (self._log, self.netns, self.userns):
            if fd >= 0:
                os.close(fd)
        self._log = self.netns = self.userns = -1


def is_anchor(status: bytes) -> bool:
    """Whether a proc_pid_status(5) is of pid 1 of a pid namespace right below ours."""
    return namespaces.ns_pids(status)[1:] == [1]


def _end_agents(group: Cgroup) -> None:
    """Kill an agent that lives and does not answer: an instance has one."""
    for pid in group.pids():
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            name = Path(f"/proc/{pid}/comm").read_bytes()  # a process chooses it, and it may be no text
            if name == b"agent\n" and pid in group.pids():  # still the same process: its number was not used again
                prctl.pidfd_send_signal(pidfd, signal.SIGKILL)
        except FileNotFoundError:
            continue  # it has just ended
        finally:
            os.close(pidfd)


def _inode(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino
