"""The cgroup driver on the layouts a host can have, and who else writes where a node's group is.

What this kernel offers is real: limits by v1 beside a v2 tree, in mount namespaces that see more or less of them. v2
with controllers is a tree of files that behaves as cgroup-v2.rst says; it notes what is written where, in order.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import mount, namespaces
from ballpoint.host.cgroup import CONTROLLERS, Cgroup, Hierarchies, Limits
from ballpoint.host.namespaces import CLONE_NEWNS
from tests.support.host import alone
from tests.support.waiting import eventually

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

NAME = "ballpoint-test-top"
MEMORY = 64 << 20
LIMITS = Limits(cpus=1.5, memory=MEMORY, pids=50)
# As `kept` finds them: nothing beyond its memory may be swapped.
WANTED = {"cpu": LIMITS.cpus, "memory": {MEMORY}, "pids": LIMITS.pids}
# Of a group whose controllers were handed down, with what the kernel puts there.
FILES = {
    "cpu": {"cpu.max": "max 100000"},
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.events": "oom_kill 0"},
    "pids": {"pids.max": "max"},
}
# Of every group but the root.
CORE_FILES = ["cgroup.procs", "cgroup.threads", "cgroup.freeze", "cgroup.kill", "cgroup.events"]


class Tree(type(Path())):  # type: ignore[misc]
    """A directory of a v2 hierarchy, or a file in it."""

    written: list[tuple[str, str]]

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if exist_ok and self.is_dir():
            return
        super().mkdir(mode)
        controllers = (self.parent / "cgroup.subtree_control").read_text().split()
        self._offer(controllers)
        self._add_files(controllers)
        for name in CORE_FILES:
            (self / name).touch()

    def become_the_root(self) -> None:
        super().mkdir()
        self._offer(["cpuset", *CONTROLLERS])

    def _offer(self, controllers: list[str]) -> None:
        Path(self / "cgroup.controllers").write_text(" ".join(controllers))
        (self / "cgroup.subtree_control").touch()

    def _add_files(self, controllers: list[str]) -> None:
        for controller in controllers:
            for name, content in FILES.get(controller, {}).items():
                Path(self / name).write_text(content)

    def write_text(self, data: str, *arguments: object, **more: object) -> int:
        if not self.exists():
            raise PermissionError(errno.EACCES, "nobody makes files here", str(self))
        Tree.written.append((f"{self.parent.name}/{self.name}", data))
        if self.name == "cgroup.subtree_control":
            data = self._handed_down(data)
        return int(super().write_text(data))

    def _handed_down(self, data: str) -> str:
        group, handed_down = self.parent, self.read_text().split()
        for word in data.split():
            sign, name = word[0], word[1:]
            if name not in (group / "cgroup.controllers").read_text().split():
                raise FileNotFoundError(errno.ENOENT, "not offered here", name)
            below = [each for each in group.iterdir() if each.is_dir()]
            if sign == "+" and name not in handed_down:
                handed_down.append(name)
                for each in below:
                    offered = Path(each / "cgroup.controllers")
                    offered.write_text(f"{offered.read_text()} {name}")
                    each._add_files([name])
            elif sign == "-" and name in handed_down:
                if any(name in (each / "cgroup.subtree_control").read_text().split() for each in below):
                    raise OSError(errno.EBUSY, "a group below hands it down", name)
                handed_down.remove(name)
        return " ".join(handed_down)


@pytest.fixture
def mounts() -> Iterator[None]:
    """A mount namespace of the test's own."""
    former, place = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), Path.cwd()
    namespaces.unshare(CLONE_NEWNS)
    try:
        mount.mount("none", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        yield
    finally:
        namespaces.setns(former, CLONE_NEWNS)
        os.chdir(place)
        os.close(former)


def unmount(kind: str) -> None:
    for each in mount.mounts():
        if each.kind == kind:
            mount.umount2(each.point, mount.MNT_DETACH)


def as_it_is(folder: Path) -> Hierarchies:
    return Hierarchies.detect()


def v1_alone(folder: Path) -> Hierarchies:
    """What the refusal of such a host tells to do is done."""
    unmount("cgroup2")
    with pytest.raises(UnavailableError, match="no unified cgroup hierarchy") as refused:
        Hierarchies.detect()
    hint = refused.value.hint
    assert hint is not None
    with alone():  # any mount of it switches the host's favordynmods off
        subprocess.run(["sh", "-ec", hint.replace("/run/cgroup2", str(folder / "cgroup2"))], check=True)
    return Hierarchies.detect()


def v2_without_controllers(folder: Path) -> Hierarchies:
    unmount("cgroup")
    return Hierarchies.detect()


def v2(folder: Path) -> Hierarchies:
    Tree.written = []
    root = Tree(folder / "cgroup")
    root.become_the_root()
    line = f"30 23 0:26 / {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
    found = Hierarchies.detect(line)
    return Hierarchies(root, found.v1, found.v2_controllers)


REAL = [as_it_is, v1_alone, v2_without_controllers]


@pytest.fixture
def hierarchies(request: pytest.FixtureRequest, tmp_path: Path, mounts: None) -> Iterator[Hierarchies]:
    found: Hierarchies = request.param(tmp_path)
    yield found
    if not isinstance(found.v2, Tree):
        left = [place / NAME for place in (found.v2, *found.v1.values()) if (place / NAME).exists()]
        Cgroup(found, NAME).remove()
        assert left == []


@pytest.mark.parametrize("hierarchies", [*REAL, v2], indirect=True)
def test_a_group_has_its_limits_where_its_controllers_are(hierarchies: Hierarchies) -> None:
    top = Cgroup(hierarchies, NAME)
    handed_down = top.make_at_the_top()
    group = top.child("one")
    group.make()
    group.limit(LIMITS)
    assert set(CONTROLLERS) - set(kept(hierarchies, group)) == set(hierarchies.missing_controllers())
    assert kept(hierarchies, group) == {name: WANTED[name] for name in kept(hierarchies, group)}
    # A larger and then a smaller one: v1 takes its two values of memory in one order only, and which depends.
    for factor in (2, 1):
        group.limit(Limits(memory=factor * MEMORY))
        if "memory" not in hierarchies.missing_controllers():
            assert kept(hierarchies, group)["memory"] == {factor * MEMORY}
    if not isinstance(hierarchies.v2, Tree):
        assert top.remove()
        assert not top.remove()
    hierarchies.take_back(handed_down)


def kept(hierarchies: Hierarchies, group: Cgroup) -> dict[str, object]:
    """What the files of a group say: processors, bytes of memory with and without swap, and processes."""

    def read(controller: str, v1_name: str, v2_name: str) -> list[float]:
        if controller in hierarchies.v1:
            file = hierarchies.v1[controller] / group.path / v1_name
        else:
            file = hierarchies.v2 / group.path / v2_name
        return [float(word.replace("max", "inf")) for word in file.read_text().split()] if file.exists() else []

    found: dict[str, object] = {}
    if quota := read("cpu", "cpu.cfs_quota_us", "cpu.max"):
        (period,) = quota[1:] or read("cpu", "cpu.cfs_period_us", "")
        found["cpu"] = quota[0] / period
    if alone := read("memory", "memory.limit_in_bytes", "memory.max"):
        more = read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
        found["memory"] = {*alone, *(n if "memory" in hierarchies.v1 else n + alone[0] for n in more)}
    if pids := read("pids", "pids.max", "pids.max"):
        (found["pids"],) = pids
    return found


@pytest.mark.parametrize("hierarchies", REAL, indirect=True)
def test_its_processes_are_frozen_and_killed_by_v2(hierarchies: Hierarchies) -> None:
    top = Cgroup(hierarchies, NAME)
    top.make_at_the_top()
    group = top.child("one")
    group.make()
    with subprocess.Popen(["sleep", "1000"]) as process, ExitStack() as undo:
        undo.callback(process.kill)
        assert not top.populated()
        for fd in (group.open_procs(), *group.open_v1_procs()):
            os.write(fd, str(process.pid).encode())
            os.close(fd)
        assert (group.pids(), top.pids(), top.populated()) == ([process.pid], [], True)
        places = [hierarchies.v2, *hierarchies.v1.values()]
        assert all(str(process.pid) in (place / group.path / "cgroup.procs").read_text() for place in places)
        group.freeze(True)
        eventually(lambda: "frozen 1" in (group.v2 / "cgroup.events").read_text())
        top.kill(30.0)
        assert (group.pids(), top.populated()) == ([], False)
        assert process.wait(30) == -9
    assert top.remove()
    assert (group.pids(), top.populated()) == ([], False)


@pytest.mark.parametrize("hierarchies", REAL, indirect=True)
def test_who_is_born_into_a_group_that_is_being_ended_ends_with_it(
    hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = Cgroup(hierarchies, NAME)
    top.make_at_the_top()
    top.child("one").make()
    with ExitStack() as undo:
        late = [top.child("one").open_directory() for _ in range(2)]
        for directory in late:
            undo.callback(os.close, directory)
        born = []
        remove = Cgroup.remove

        def late_for(group: Cgroup) -> bool:
            if late:
                pid, pidfd = namespaces.clone3(0, cgroup=late.pop())
                if pid == 0:
                    signal.pause()
                undo.callback(os.close, pidfd)
                born.append(pid)
            return remove(group)

        monkeypatch.setattr(Cgroup, "remove", late_for)
        top.end(30.0)
        assert not top.exists()
        # Linux 6.18 ends at birth who is born into a group that was killed: it may be gone before it is in the way.
        assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in born} == {-signal.SIGKILL}


@pytest.mark.parametrize("hierarchies", [v2], indirect=True)
def test_controllers_are_handed_down_level_by_level(hierarchies: Hierarchies) -> None:
    everything = " ".join(f"+{name}" for name in sorted(CONTROLLERS))
    top = Cgroup(hierarchies, NAME)
    assert top.make_at_the_top() == set(CONTROLLERS)
    assert Tree.written == [
        ("cgroup/cgroup.subtree_control", everything),
        (f"{NAME}/cgroup.subtree_control", everything),
    ]
    group = top.child("one")
    group.make(delegate_controllers=True)
    assert Tree.written[2:] == [("one/cgroup.subtree_control", everything)]
    group.child("main").make()
    assert sorted(Path(group.v2 / "main" / "cgroup.controllers").read_text().split()) == sorted(CONTROLLERS)
    oom = group.watch_oom()
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in oom] == [str(group.v2 / "memory.events")]
    os.close(oom[0])


@pytest.mark.parametrize("hierarchies", [v2], indirect=True)
def test_what_another_group_hands_down_is_not_taken_back(hierarchies: Hierarchies) -> None:
    handed_down = Cgroup(hierarchies, NAME).make_at_the_top()
    assert Cgroup(hierarchies, "another").make_at_the_top() == set()
    Path(hierarchies.v2 / NAME / "cgroup.subtree_control").write_text("")
    Path(hierarchies.v2 / "another" / "cgroup.subtree_control").write_text("memory")
    hierarchies.take_back(handed_down)
    assert (hierarchies.v2 / "cgroup.subtree_control").read_text() == "memory"


@pytest.mark.parametrize("hierarchies", REAL, indirect=True)
def test_a_group_at_the_top_is_made_everywhere_and_leaves_nothing(hierarchies: Hierarchies) -> None:
    group = Cgroup(hierarchies, NAME)
    before = (hierarchies.v2 / "cgroup.subtree_control").read_text()
    try:
        handed_down = group.make_at_the_top()
        assert not handed_down & set(before.split())
        assert group.make_at_the_top() == set()
        places = [hierarchies.v2, *hierarchies.v1.values()]
        assert all((place / group.path).is_dir() for place in places)
    finally:
        assert group.remove()
    hierarchies.take_back(handed_down)
    assert (hierarchies.v2 / "cgroup.subtree_control").read_text() == before


def test_somebody_who_takes_controllers_away_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    with pytest.raises(UnavailableError, match="taken away"):
        Cgroup(Hierarchies(tmp_path), "group").make_at_the_top()
