"""The guard over a pool's space: what it freezes and thaws, and that nothing stays frozen whoever dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from ballpoint.core import wire
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import filesystem, loop, mount, rcu
from ballpoint.volume import trimmer
from ballpoint.volume.freezer import Freezer, stuck
from ballpoint.volume.guard import PoolGuard
from ballpoint.volume.pool import AttachedVolume, PoolUsage, VolumePool
from tests.support.host import children, process_state
from tests.support.waiting import eventually
from tests.volume.world import MIB, grow, is_frozen, path

pytestmark = pytest.mark.host

TRIM_SECONDS = 60.0
SOFT, HARD = 1000 * MIB, 500 * MIB


class ManualClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now()

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class World:
    """A real pool with real volumes, whose free space is what the test says."""

    def __init__(self, pool: VolumePool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = pool
        self.clock = ManualClock()
        self.free = SOFT
        monkeypatch.setattr(
            pool, "usage", lambda attached=0: PoolUsage(total=4 * SOFT, free=self.free, soft=SOFT, hard=HARD)
        )
        self.volumes: list[AttachedVolume] = []
        self.guard = PoolGuard(pool, self.clock)
        is_up(self.guard._freezer)

    def attach(self, *names: str, template: str = "base") -> list[AttachedVolume]:
        made = []
        for name in names:
            self.pool.create(name, template=template, meta={})
            made.append(self.pool.attach(name))
        self.volumes += made
        return made

    def tick(self) -> list[tuple[str, str]]:
        return [(notice.volume_id, notice.kind) for notice in self.guard.tick(self.volumes)]

    def fill_to(self, free: int) -> None:
        """Come down to `free` as a pool does, with a look at the sizes on the way."""
        self.free = HARD + 1
        assert self.tick() == []
        self.free = free


@pytest.fixture
def world(pool: VolumePool, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(pool, monkeypatch)
    yield made
    made.guard.close()
    for volume in made.volumes:
        volume.detach()


def freezer_pid() -> int:
    """The freezer that this process has started, and that has answered: it has its command line a while after exec."""
    (found,) = (
        pid for pid in children(os.getpid()) if b"ballpoint.volume.freezer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


def is_up(freezer: Freezer) -> Freezer:
    """A freezer whose process has started and answers: Python needs some time for that."""
    assert freezer.thaw(["nobody"], seconds=60).done == {"nobody"}
    return freezer


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process_state(pid) == "Z")


def writer(volume: AttachedVolume) -> threading.Thread:
    """A thread that ends when it could write."""
    thread = threading.Thread(target=path(volume.mount, "upper/late").write_text, args=("x",), daemon=True)
    thread.start()
    return thread


def test_nothing_is_done_while_there_is_room(world: World) -> None:
    (volume,) = world.attach("v")
    for free in (SOFT, SOFT * 2, HARD):
        world.free = free
        world.tick()
        grow(volume, 4 * MIB)
        assert world.tick() == []
        assert not is_frozen(volume)


def test_below_the_hard_mark_growing_volumes_are_frozen_the_fastest_first(world: World) -> None:
    slow, fast, quiet = world.attach("slow", "fast", "quiet")
    world.fill_to(HARD - 1)
    grow(slow, 2 * MIB)
    grow(fast, 8 * MIB)
    assert world.tick() == [("fast", "frozen"), ("slow", "frozen")]
    assert set(world.guard.frozen) == {"fast", "slow"}
    assert [is_frozen(each) for each in (slow, fast, quiet)] == [True, True, False]
    thread = writer(fast)
    assert world.tick() == []
    assert thread.is_alive()
    world.free = SOFT
    assert sorted(world.tick()) == [("fast", "thawed"), ("slow", "thawed")]
    thread.join(30)
    assert path(fast.mount, "upper/late").read_text() == "x"


def test_a_volume_whose_directory_is_lost_waits_and_keeps_no_other_from_it(world: World) -> None:
    lost, growing, quiet = world.attach("lost", "growing", "quiet")
    world.fill_to(HARD - 1)
    grow(growing, 2 * MIB)
    directory = world.pool.directory("lost")
    directory.rename(world.pool.root / "staging/lost")
    try:
        assert world.tick() == [("lost", "frozen"), ("growing", "frozen")]
        assert [is_frozen(each) for each in (lost, growing, quiet)] == [True, True, False]
        world.free = SOFT
        assert sorted(world.tick()) == [("growing", "thawed"), ("lost", "thawed")]
    finally:
        (world.pool.root / "staging/lost").rename(directory)


def test_growth_adds_up_however_slow_it_is(world: World) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    for _ in range(3):
        grow(volume, MIB // 4)
        assert world.tick() == []
    grow(volume, MIB // 2)
    assert world.tick() == [("v", "frozen")]


def test_frozen_volumes_wait_until_there_is_clearly_more_room_than_the_hard_mark(world: World) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    assert world.tick() == [("v", "frozen")]
    world.free = (HARD + SOFT) // 2 - 1
    assert world.tick() == []
    assert is_frozen(volume)
    world.free = (HARD + SOFT) // 2
    assert world.tick() == [("v", "thawed")]
    assert not is_frozen(volume)
    grow(volume, 2 * MIB)
    assert world.tick() == []
    assert not is_frozen(volume)


def test_a_disk_that_is_held_twice_waits_until_both_let_go(world: World) -> None:
    (volume,) = world.attach("v")
    world.guard.hold(volume)
    world.guard.hold(volume)
    world.guard.let_go(volume)
    assert is_frozen(volume)
    world.guard.let_go(volume)
    assert not is_frozen(volume)
    world.guard.hold(volume)
    world.guard.hold(volume)
    world.guard.release("v")
    assert not is_frozen(volume)
    world.guard.let_go(volume)  # by those who do not know that it was released
    world.guard.hold(volume)
    assert is_frozen(volume)
    world.guard.let_go(volume)
    assert not is_frozen(volume)


def test_copying_shared_blocks_is_seen_though_no_file_grows(world: World) -> None:
    def populate(fd: int) -> None:
        path(fd, "upper/data").write_bytes(os.urandom(16 * MIB))

    world.pool.ensure_template("full", 4, populate)
    (volume,) = world.attach("v", template="full")
    world.fill_to(HARD // 2 - 1)
    before = volume.allocated()
    with path(volume.mount, "upper/data").open("r+b") as file:
        file.write(os.urandom(16 * MIB))
        file.flush()
        os.fsync(file.fileno())
    assert volume.allocated() - before < MIB
    assert world.tick() == [("v", "frozen")]


def test_a_released_volume_is_thawed_and_not_frozen_at_once(world: World) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    world.tick()
    for _ in range(2):
        world.guard.release("v")
        assert not is_frozen(volume)
        assert world.guard.frozen == {}
        assert world.tick() == []
    world.guard.release("unknown")


def test_one_volume_that_cannot_be_frozen_does_not_save_the_others_from_it(world: World) -> None:
    broken, sound = world.attach("broken", "sound")
    world.fill_to(HARD - 1)
    grow(broken, 8 * MIB)
    grow(sound, 2 * MIB)
    broken.release()
    assert world.tick() == [("sound", "frozen")]
    with pytest.raises(UnavailableError):
        world.tick()
    assert is_frozen(sound)


def test_deleted_blocks_go_back_below_the_soft_mark(world: World) -> None:
    volumes = world.attach("a", "b")
    for volume in volumes:
        grow(volume, 32 * MIB)
        path(volume.mount, "upper/data").unlink()
        os.sync()
    full = [volume.allocated() for volume in volumes]
    # Half of what was deleted: the file system writes its own blocks whenever it likes.
    much = 16 * MIB

    def given_back() -> int:
        assert world.guard.trimmer.wait(TRIM_SECONDS)
        return sum(before - volume.allocated() > much for before, volume in zip(full, volumes, strict=True))

    world.tick()
    assert given_back() == 0
    world.free = SOFT - 1
    world.tick()
    assert given_back() == 1  # one at a time
    world.tick()
    assert given_back() == 2
    grow(volumes[0], 32 * MIB)
    path(volumes[0].mount, "upper/data").unlink()
    os.sync()
    full[0] = volumes[0].allocated()
    world.tick()
    assert world.guard.trimmer.wait(TRIM_SECONDS)
    assert abs(full[0] - volumes[0].allocated()) < much  # not again so soon
    world.clock.seconds += 3600
    for _ in volumes:
        world.tick()
        assert world.guard.trimmer.wait(TRIM_SECONDS)
    assert given_back() == 2


def test_room_is_given_back_below_the_pool_where_that_is_what_is_short(world: World, tmp_path: Path) -> None:
    (volume,) = world.attach("v")
    grow(volume, 64 * MIB)
    world.volumes.clear()
    volume.detach()
    world.pool.destroy("v")
    os.sync()
    image = tmp_path / "pool.img"
    before = image.stat().st_blocks
    world.free = SOFT - 1
    assert filesystem.free_bytes(world.pool.root) > world.free

    def given_back() -> bool:
        world.clock.seconds += 3600
        world.tick()
        assert world.guard.trimmer.wait(TRIM_SECONDS)
        return (before - image.stat().st_blocks) * 512 > 32 * MIB

    eventually(given_back)  # XFS frees and discards in the background


def test_a_killed_freezer_leaves_the_host_as_it_was() -> None:
    found = rcu.setting()
    assert found is not None, "the kernel has no rcu_expedited"
    freezer = is_up(Freezer())
    rcu.EXPEDITED.write_text("1")  # as while it freezes something
    kill(freezer_pid())
    freezer.close()
    eventually(lambda: rcu.setting() == found)  # another node of the host may be freezing something


@pytest.mark.parametrize("end", ["release", "thaw", "close"])
def test_a_killed_freezer_leaves_nothing_frozen_for_ever(world: World, end: str) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    assert world.tick() == [("v", "frozen")]
    kill(freezer_pid())
    assert is_frozen(volume)
    if end == "thaw":
        assert world.tick() == []  # by a new freezer
        assert is_frozen(volume)
        world.free = SOFT
    ends: dict[str, Callable[[], object]] = {
        "release": lambda: world.guard.release("v"),
        "thaw": world.tick,
        "close": world.guard.close,
    }
    ends[end]()
    assert not is_frozen(volume)
    assert world.guard.frozen == {}


def test_what_the_freezer_thawed_by_itself_is_frozen_again(world: World) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    assert world.tick() == [("v", "frozen")]
    with volume.opened() as root:
        assert filesystem.fithaw(root)
    kill(freezer_pid())  # so that a new one, which knows nothing, is asked
    assert world.tick() == []
    assert is_frozen(volume)


@contextmanager
def held(pool: VolumePool, volumes: list[AttachedVolume]) -> Iterator[Callable[[], object]]:
    """Volumes that the kernel holds while they are frozen: the pool below takes no write. Gives what lets them go."""
    for volume in volumes:
        path(volume.mount, "upper/dirty").write_bytes(os.urandom(MIB))
    below = os.open(pool.root, os.O_RDONLY | os.O_DIRECTORY)
    filesystem.fifreeze(below)
    try:
        yield lambda: filesystem.fithaw(below)
    finally:
        filesystem.fithaw(below)
        os.close(below)


def test_a_volume_that_the_kernel_holds_keeps_no_other_from_being_frozen(pool: VolumePool, tmp_path: Path) -> None:
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    freezer = is_up(Freezer())
    with ExitStack() as stack:
        stack.callback(volume.detach)
        stack.callback(freezer.close)
        let_go = stack.enter_context(held(pool, [volume]))
        sound = stack.enter_context(_other_file_system(tmp_path / "sound.img"))
        with volume.opened() as root:
            assert freezer.freeze({"v": root}, seconds=0.2).late == {"v"}
            assert freezer.freeze({"sound": sound}, seconds=60).done == {"sound"}
            assert freezer.freeze({"v": root}, seconds=0.01).late == {"v"}  # does not wait for itself
        assert not filesystem.fifreeze(sound)
        assert freezer.thaw(["sound"]).done == {"sound"}
        let_go()
        eventually(lambda: is_frozen(volume))
        assert freezer.thaw(["v"]).done == {"v"}
        assert not is_frozen(volume)


def waits_for_a_disk(pid: int) -> bool:
    """Whether a thread of a process sleeps where no signal reaches it."""
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return "D" in states


def test_a_trim_that_the_kernel_holds_keeps_the_guard_from_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimmer, "_STOP_SECONDS", 0.2)
    held_one, sound = world.attach("held", "sound")
    grow(held_one, 32 * MIB)
    path(held_one.mount, "upper/data").unlink()
    os.sync()
    with held(world.pool, [held_one]) as let_go:
        world.free = SOFT - 1
        assert world.tick() == []
        eventually(lambda: waits_for_a_disk(os.getpid()))
        world.fill_to(HARD - 1)
        with pytest.raises(UnavailableError, match="held"):
            world.guard.release("held")
        world.guard.release("sound")
        let_go()
        assert world.guard.trimmer.wait(TRIM_SECONDS)
    world.guard.release("held")
    world.volumes = [sound]
    world.tick()
    held_one.detach()


def test_a_volume_that_was_frozen_late_is_thawed_with_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    freeze = Freezer.freeze
    monkeypatch.setattr(Freezer, "freeze", lambda self, roots: freeze(self, roots, seconds=0.2))
    with held(world.pool, [volume]) as let_go:
        assert world.tick() == [("v", "frozen")]
        assert world.tick() == []
        eventually(lambda: waits_for_a_disk(freezer_pid()))  # or it meets the look below, which freezes and thaws
        let_go()
        eventually(lambda: is_frozen(volume))
    world.free = SOFT
    assert world.tick() == [("v", "thawed")]
    assert not is_frozen(volume)


def test_a_freezer_that_the_kernel_holds_is_given_up_and_thaws_when_it_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume,) = world.attach("v")
    world.fill_to(HARD - 1)
    grow(volume, 2 * MIB)
    freeze = Freezer.freeze
    monkeypatch.setattr(Freezer, "freeze", lambda self, roots: freeze(self, roots, seconds=0.2))
    monkeypatch.setattr("ballpoint.volume.freezer._CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("ballpoint.volume.freezer._KILL_SECONDS", 0.2)
    monkeypatch.setattr("ballpoint.volume.guard._THAW_SECONDS", 0.2)
    with held(world.pool, [volume]):
        assert world.tick() == [("v", "frozen")]
        world.guard.close()  # comes back although the kernel lets neither of them go
    stuck.pop().wait(30)
    eventually(lambda: not is_frozen(volume))
    grow(volume, MIB)


def test_a_killed_node_leaves_nothing_frozen(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    code = (
        "import sys, threading; from ballpoint.volume.freezer import Freezer;"
        "freezer = Freezer(); freezer.freeze({'v': int(sys.argv[1])});"
        "print('frozen', flush=True); threading.Event().wait()"
    )
    with ExitStack() as stack:
        root = stack.enter_context(volume.opened())
        node = subprocess.Popen(
            [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, pass_fds=[root], text=True
        )
        stack.enter_context(node)
        stack.callback(node.kill)
        assert node.stdout is not None
        assert node.stdout.readline() == "frozen\n"
        assert is_frozen(volume)
        thread = writer(volume)
        node.kill()
        thread.join(30)
        assert not thread.is_alive()
    volume.detach()


def test_a_freezer_thaws_at_its_deadline_though_nobody_asks(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    code = (
        "import sys; from ballpoint.volume import freezer;"
        "freezer.DEADLINE_SECONDS = 0.2; freezer.main(int(sys.argv[1]))"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, volume.opened() as root:
        child = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        wire.send(ours, {"id": 1, "op": "freeze", "volume": "v"}, [root])
        assert wire.receive(ours) == ({"id": 1, "ok": None}, [])
        thread = writer(volume)
        thread.join(30)
        assert not thread.is_alive()
        ours.close()
        assert child.wait(30) == 0
    volume.detach()


def test_a_freezer_holds_each_volume_once_and_nothing_that_it_could_not_freeze(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    volume = pool.attach("v")
    freezer = Freezer()
    with ExitStack() as stack:
        stack.callback(volume.detach)
        stack.callback(freezer.close)
        with volume.opened() as root:
            for _ in range(2):
                assert freezer.freeze({"v": root}).done == {"v"}
        child = Path(f"/proc/{freezer_pid()}/fd")
        held = len(list(child.iterdir()))
        unfreezable = stack.enter_context(_opened(Path("/proc")))
        outcome = freezer.freeze({"proc": unfreezable})
        assert (outcome.done, outcome.late, set(outcome.failed)) == (set(), set(), {"proc"})
        assert len(list(child.iterdir())) == held
        assert freezer.thaw(["v", "unknown"]).done == {"v", "unknown"}
        assert len(list(child.iterdir())) == held - 1
        assert not is_frozen(volume)


@contextmanager
def _other_file_system(image: Path) -> Iterator[int]:
    """The open root directory of an ext4 that lies on no pool."""
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    device, fd = loop.attach(image)
    with ExitStack() as stack:
        stack.callback(loop.wait_released, image, 10)
        mounted = mount.fsmount("ext4", {"source": device})
        stack.callback(os.close, mounted)
        os.close(fd)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mounted)
        stack.callback(os.close, root)
        yield root


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
