"""Control groups: one driver for v2, v1 and hybrid hosts.

Freezing, killing and membership always use the v2 hierarchy (its core files exist even where v1 has the controllers);
limits go to whichever hierarchy holds the controller. A group has one relative path in all of them.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import mount

CONTROLLERS = ("cpu", "memory", "pids")
_CPU_PERIOD_US = 100_000
_V1_WITH_SWAP = "memory.memsw.limit_in_bytes"
_TRIES = 16
_KILL_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What a group may use; None leaves a resource without a limit of its own.

    Attributes:
        cpus: processors' worth of time, such as 1.5.
        memory: bytes, swap included where the kernel counts it.
        pids: processes and threads.
    """

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None


@dataclass(frozen=True)
class Hierarchies:
    """Where cgroups are mounted on this host.

    Attributes:
        v2: mount point of the unified hierarchy.
        v1: controller -> mount point, for controllers that are not in the unified hierarchy.
        v2_controllers: controllers the unified hierarchy offers.
    """

    v2: Path
    v1: dict[str, Path] = field(default_factory=dict)
    v2_controllers: frozenset[str] = frozenset()

    @property
    def layout(self) -> str:
        """`v2`, `hybrid` (both, limits by v1) or `v1` (no unified hierarchy was mounted by the host)."""
        return "hybrid" if self.v1 else "v2"

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Hierarchies:
        """Read them from /proc/self/mountinfo.

        Raises:
            UnavailableError: no unified hierarchy is mounted, or a needed controller is nowhere.
        """
        v2: Path | None = None
        v1: dict[str, Path] = {}
        for each in mount.mounts(mountinfo):
            if each.kind == "cgroup2" and each.root == "/" and v2 is None:
                v2 = Path(each.point)
            elif each.kind == "cgroup" and each.root == "/":
                for name in each.options:
                    if name in CONTROLLERS:
                        v1.setdefault(name, Path(each.point))
        if v2 is None:
            raise UnavailableError(
                "no unified cgroup hierarchy is mounted",
                hint="mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2",
            )
        offered = v2 / "cgroup.controllers"
        return cls(v2, v1, frozenset(offered.read_text().split()) if offered.exists() else frozenset())

    def take_back(self, controllers: Iterable[str]) -> None:
        """Let the root hand down `controllers` no longer, unless a group below needs them by now."""
        for name in controllers:
            try:
                (self.v2 / "cgroup.subtree_control").write_text(f"-{name}")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise

    def missing_controllers(self) -> list[str]:
        """Controllers found in neither hierarchy: their limits cannot be kept."""
        return [name for name in CONTROLLERS if name not in self.v1 and name not in self.v2_controllers]


class Cgroup:
    """A control group at one relative path in every hierarchy.

    `make` and `remove` are idempotent; a crash between the hierarchies leaves empty directories that either call mends.
    """

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        self.hierarchies = hierarchies
        self.path = path
        self.v2 = hierarchies.v2 / path
        self._v1 = {name: mount / path for name, mount in hierarchies.v1.items()}

    def child(self, name: str) -> Cgroup:
        """The group `name` below this one (not made)."""
        return Cgroup(self.hierarchies, f"{self.path}/{name}")

    def exists(self) -> bool:
        return self.v2.is_dir()

    def make(self, *, delegate_controllers: bool = False) -> None:
        """Make it everywhere. With `delegate_controllers`, its v2 children may use the controllers."""
        for directory in (self.v2, *self._v1.values()):
            directory.mkdir(exist_ok=True)
        if delegate_controllers:
            _enable_for_children(self.v2)

    def make_at_the_top(self) -> set[str]:
        """`make` of a group right below the hierarchy's root, which must hand its controllers down first.

        Returns:
            The controllers that the root did not hand down before; see `Hierarchies.take_back`.

        Raises:
            UnavailableError: something takes them away as fast as they are handed down.
        """
        root = self.hierarchies.v2
        before = _handed_down(root)
        for _ in range(_TRIES):
            # systemd takes back what no unit of its own needs, until this group has handed it down, too.
            with suppress(FileNotFoundError):
                _enable_for_children(root)
                self.make(delegate_controllers=True)
                if _offered(root) <= _handed_down(self.v2):
                    return _handed_down(root) - before
        raise UnavailableError(
            f"the controllers of {root} are taken away again and again", hint="look who writes there"
        )

    def limit(self, limits: Limits) -> None:
        """Set `limits`; a resource whose controller the host lacks is left alone (`doctor` says so)."""
        if limits.cpus is not None:
            quota = int(limits.cpus * _CPU_PERIOD_US)
            self._write("cpu", {"cpu.max": f"{quota} {_CPU_PERIOD_US}"}, {"cpu.cfs_quota_us": str(quota)})
        if limits.memory is not None:
            value = str(limits.memory)
            # v2 counts swap for itself, v1 together with memory.
            v1 = {"memory.limit_in_bytes": value, _V1_WITH_SWAP: value}
            if self._with_swap() < limits.memory:
                v1 = dict(reversed(v1.items()))  # the kernel refuses a limit without swap above the one with it
            self._write("memory", {"memory.max": value, "memory.swap.max": "0"}, v1)
        if limits.pids is not None:
            self._write("pids", {"pids.max": str(limits.pids)}, {"pids.max": str(limits.pids)})

    def _with_swap(self) -> int:
        """Bytes that v1 lets it use of memory and swap together; 0 where it does not count swap."""
        try:
            return int((self._v1["memory"] / _V1_WITH_SWAP).read_text())
        except (KeyError, FileNotFoundError):
            return 0

    def _write(self, controller: str, v2_files: dict[str, str], v1_files: dict[str, str]) -> None:
        """Write what is there of a controller's files: without swap in the kernel, those of swap are not."""
        v1 = self._v1.get(controller)
        directory, files = (self.v2, v2_files) if v1 is None else (v1, v1_files)
        for name, value in files.items():
            if (directory / name).exists():
                (directory / name).write_text(value)

    def open_directory(self) -> int:
        """Descriptor of the v2 directory, for CLONE_INTO_CGROUP. The caller owns it."""
        return os.open(self.v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_v1_procs(self) -> list[int]:
        """Writable cgroup.procs of its v1 groups; whoever holds one may move processes it can name into the group."""
        return [os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for directory in self._v1.values()]

    def open_procs(self) -> int:
        """Writable cgroup.procs of the v2 group."""
        return os.open(self.v2 / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def watch_oom(self) -> list[int]:
        """Descriptors that tell of processes in it which the kernel ended for want of memory. The caller owns them.

        Returns:
            A file with a line `oom_kill N`. With v2 it wakes poll itself, with POLLPRI; with v1 an eventfd follows,
            which is readable when memory has run out (cgroup-v1/memory.rst, section 10). None where nobody counts.
        """
        if (v1 := self._v1.get("memory")) is None:
            events = self.v2 / "memory.events"
            return [os.open(events, os.O_RDONLY | os.O_CLOEXEC)] if events.exists() else []
        counter = os.open(v1 / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            (v1 / "cgroup.event_control").write_text(f"{event} {counter}")
        except BaseException:
            os.close(counter)
            os.close(event)
            raise
        return [counter, event]

    def delegate(self, uid: int, files: Iterable[str], *, directory: bool) -> None:
        """Give `files` of the v2 group (and the directory, to make children) to `uid`; never a limit or freeze file."""
        if directory:
            os.chown(self.v2, uid, uid)
        for name in files:
            os.chown(self.v2 / name, uid, uid)

    def pids(self) -> list[int]:
        """Processes in the v2 group itself, not in its children. Empty where the group does not exist."""
        try:
            return [int(line) for line in (self.v2 / "cgroup.procs").read_text().split()]
        except (FileNotFoundError, OSError) as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENODEV:
                return []
            raise

    def populated(self) -> bool:
        """Whether any process lives in it or below."""
        try:
            return "populated 1" in (self.v2 / "cgroup.events").read_text()
        except (FileNotFoundError, OSError) as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENODEV:
                return False
            raise

    def cpu_microseconds(self) -> int:
        """CPU time that its processes and those below have used, ended ones too; 0 where it is gone.

        cpu.stat is there without the controller (cgroup-v2.rst), so also where v1 has that.
        """
        try:
            first, _, _ = (self.v2 / "cpu.stat").read_text().partition("\n")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return 0
            raise
        return int(first.removeprefix("usage_usec "))

    def freeze(self, frozen: bool) -> None:
        """Stop or go on with all processes in it and below. Returns before they have all stopped."""
        (self.v2 / "cgroup.freeze").write_text("1" if frozen else "0")

    def freeze_whole(self, timeout: float) -> bool:
        """`freeze`, and wait until all have stopped. Where some do not, they all go on.

        Args:
            timeout: seconds.

        Returns:
            Whether they have. One that waits for a disk, which may be frozen itself, does not stop before that answers.
        """
        deadline = SYSTEM_CLOCK.monotonic() + timeout
        events = os.open(self.v2 / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            self.freeze(True)
            while b"frozen 1" not in os.pread(events, 4096, 0):
                left = deadline - SYSTEM_CLOCK.monotonic()
                if left <= 0:
                    self.freeze(False)
                    return False
                poll.poll(1000 * left)
            return True
        except BaseException:
            self.freeze(False)
            raise
        finally:
            os.close(events)

    def is_to_be_frozen(self) -> bool:
        """Whether it was told to freeze, and not to go on since."""
        return (self.v2 / "cgroup.freeze").read_text().strip() == "1"

    def kill(self, timeout: float) -> None:
        """SIGKILL all processes in it and below, and wait until none is left.

        Args:
            timeout: seconds.

        Raises:
            UnavailableError: some process does not die (it waits for a frozen or broken disk).
        """
        deadline = SYSTEM_CLOCK.monotonic() + timeout
        try:
            events = os.open(self.v2 / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while True:
                # Again and again: it does not reach who is born into the group later (CLONE_INTO_CGROUP).
                (self.v2 / "cgroup.kill").write_text("1")
                if b"populated 0" in os.pread(events, 4096, 0):
                    return
                left = deadline - SYSTEM_CLOCK.monotonic()
                if left <= 0:
                    raise UnavailableError(f"processes of {self.path} do not end within {timeout:g} s")
                # cgroup-v2.rst: a change of cgroup.events wakes poll with POLLPRI.
                poll.poll(1000 * min(left, _KILL_AGAIN_SECONDS))
        finally:
            os.close(events)

    def end(self, timeout: float) -> None:
        """`kill` and `remove` it; also where somebody is born into it meanwhile, as by a fork that was under way.

        Args:
            timeout: seconds.

        Raises:
            UnavailableError: as `kill`.
        """
        deadline = SYSTEM_CLOCK.monotonic() + timeout
        while True:
            self.kill(max(0.0, deadline - SYSTEM_CLOCK.monotonic()))
            try:
                self.remove()
            except OSError as error:
                if error.errno != errno.EBUSY or not self.exists():
                    raise
            else:
                return

    def remove(self) -> bool:
        """Remove it and the empty groups below, everywhere. Returns whether anything was there."""
        found = False
        for directory in (self.v2, *self._v1.values()):
            found |= _remove_groups(directory)
        return found


def _offered(directory: Path) -> set[str]:
    return set(CONTROLLERS) & set((directory / "cgroup.controllers").read_text().split())


def _handed_down(directory: Path) -> set[str]:
    return set(CONTROLLERS) & set((directory / "cgroup.subtree_control").read_text().split())


def _enable_for_children(directory: Path) -> None:
    if wanted := _offered(directory):
        (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(wanted)))


def _remove_groups(directory: Path) -> bool:
    try:
        children = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return False
    for child in children:
        _remove_groups(Path(child))
    try:
        directory.rmdir()
    except FileNotFoundError:
        return False
    return True
