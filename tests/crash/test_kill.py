"""Kill anything at any time: nothing is lost, nothing leaks."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sprites import SpriteError

from ballpoint.core import ids, wire
from ballpoint.core.peer import connect
from ballpoint.host import loop, nft, prctl
from ballpoint.host.cgroup import Cgroup, Hierarchies
from ballpoint.network import rules
from ballpoint.runtime.container.programs import ensure_programs
from tests.crash import armed
from tests.support.host import children, links, traces
from tests.support.nodes import CACHE, TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        prctl.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert prctl.wait_pidfd(pidfd, 60)
    finally:
        os.close(pidfd)


def inside(node: TestNode, name: str, where: str = "agent", *, claimed: bool = True) -> list[int]:
    """Pids of the processes called `name` in the groups `where` of all claimed instances, or of all blanks."""
    group = Cgroup(Hierarchies.detect(), f"ballpoint-{node.id}")
    pids = []
    for record in Path(f"/run/ballpoint/{node.id}/instances").glob("*/instance.json"):
        with suppress(FileNotFoundError):  # its sprite is stopped right now
            if ('"sprite"' in record.read_text()) == claimed:
                pids += group.child(f"{record.parent.name}/{where}").pids()
    found = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends right now
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def running_sprite(node: TestNode) -> tuple[Any, str]:
    """A sprite with a background process, and that process's pid."""
    sprite = node.client().create_sprite(f"t-{ids.new_instance_id()}")
    code, pid = shell(sprite, "echo kept > file; sync; sleep 1000 & echo $!")
    assert code == 0
    return sprite, pid.strip()


def assert_still_runs(sprite: Any, pid: str) -> None:
    assert shell(sprite, f"cat file; kill -0 {pid} && echo alive") == (0, "kept\nalive\n")


def kinds(node: TestNode, sprite: Any) -> list[str]:
    answer = node.api("GET", f"/v1/sprites/{sprite.name}/events")
    return [json.loads(line)["kind"] for line in answer.text.splitlines()]


def test_a_node_that_has_lost_one_of_its_watches_ends_and_the_next_takes_over(
    own_node: TestNode, tmp_path: Path
) -> None:
    """It would do half of its work and say nothing."""
    file = tmp_path / "armed"
    own_node.program = armed.as_command(file)
    own_node.start()
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    sprite, pid = running_sprite(own_node)
    (former,) = own_node.processes("node")
    before = nft.shape(rules.table(own_node.id), rules.LOOSE)
    armed.arm(file, armed.FAILING_WATCH)
    subprocess.run(["nft", "delete", "table", "inet", rules.table(own_node.id)], check=True, timeout=30)
    eventually(lambda: own_node.processes("node") not in ([], [former]), 60)
    file.unlink()
    eventually(lambda: own_node.api("GET", "/v1/sprites").status_code == 200, 60)
    assert armed.FAILING_WATCH in own_node.log.read_text()
    assert_still_runs(sprite, pid)
    assert nft.shape(rules.table(own_node.id), rules.LOOSE) == before
    assert shell(
        sprite, "getent hosts localhost && ip route get 192.0.2.1 >/dev/null && cat /sys/class/net/eth0/operstate"
    )[1].endswith("up\n")


@pytest.mark.parametrize("victim", ["node", "zygote", "edge"])
def test_a_killed_child_of_the_supervisor_comes_back(own_node: TestNode, victim: str) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    old = own_node.processes(victim)
    for each in old:
        kill(each)
    eventually(lambda: len(own_node.processes(victim)) == len(old))
    eventually(lambda: _quietly(assert_still_runs, sprite, pid))
    another = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(another, "echo new") == (0, "new\n")


def test_a_zygote_outlives_the_node_that_asked_it(own_node: TestNode) -> None:
    """Its connection may end with an answer unread, or before there is one."""
    own_node.start()
    (zygote,) = own_node.processes("zygote")
    place = Path(f"/run/ballpoint/{own_node.id}/zygote.sock")

    def ask() -> socket.socket:
        sock = connect(place)
        wire.send(sock, {"id": 1, "op": "nothing that is known"})
        return sock

    with closing(ask()) as unread:
        assert select.select([unread], [], [], 30)[0]
    os.kill(zygote, signal.SIGSTOP)
    try:
        ask().close()
    finally:
        os.kill(zygote, signal.SIGCONT)
    with closing(ask()) as asking:
        assert select.select([asking], [], [], 30)[0]
        assert "error" in wire.receive(asking)[0]
    assert own_node.processes("zygote") == [zygote]


def test_a_killed_supervisor_leaves_sprites_running(own_node: TestNode) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    children = [os.pidfd_open(each) for name in ("node", "zygote", "edge") for each in own_node.processes(name)]
    assert len(children) >= 3
    own_node.kill()
    for each in children:
        assert prctl.wait_pidfd(each, 60)
        os.close(each)
    own_node.start()
    assert_still_runs(own_node.client().sprite(sprite.name), pid)


def test_a_node_that_starts_waits_for_who_listens_still(own_node: TestNode) -> None:
    """As the edges of a supervisor that was killed do until the kernel has come to end them."""
    own_node.start()
    address = own_node.url.removeprefix("http://")
    own_node.options += ["--listen", address]
    own_node.kill()
    host, _, port = address.rpartition(":")
    listening: list[socket.socket] = []

    def listens() -> bool:
        with suppress(OSError):  # its own edges do
            listening.append(socket.create_server((host, int(port))))
        return listening != []

    eventually(listens)
    (former,) = listening
    leaving = threading.Timer(1.0, former.close)
    leaving.start()
    own_node.start()
    leaving.join()
    assert own_node.api("GET", "/v1/sprites").status_code == 200


def test_sigterm_leaves_sprites_running(own_node: TestNode) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    assert own_node.terminate() == 0
    own_node.start()
    assert_still_runs(own_node.client().sprite(sprite.name), pid)


@pytest.mark.parametrize("blanks", ["standing by", "being made"])
def test_sigterm_leaves_only_what_a_sprite_needs(own_node: TestNode, blanks: str) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    if blanks == "being made":
        own_node.terminate()
        own_node.options += ["--pool", "64"]
        own_node.start()  # it serves once the first stands by
    else:
        eventually(lambda: len(instances(own_node)) == 4)
    (daemon,) = own_node.processes("node")
    pool = Path(f"/proc/{daemon}/root{own_node.data}/pool").stat().st_dev
    assert own_node.terminate() == 0

    (instance,) = instances(own_node)
    found = traces(own_node.id, own_node.data)
    assert found["slots"] == [f"{own_node.id}/{instance}", f"{own_node.id}/node"]
    assert found["links"] == [f"bp{instance}"]
    assert {link for link, *_ in nft.elements(rules.table(own_node.id), rules.SOURCES)} == {f"bp{instance}"}
    # A group with a process in it, and so a blank's, cannot have gone before its processes.
    groups = [[path.name for path in Path(place).iterdir() if path.is_dir()] for place in found["cgroups"]]
    assert groups == [[instance]] * len(groups) != []
    assert len([device for device, _ in loop.backed() if device == pool]) == 1
    assert (found["processes"], found["mounts"]) == ([], [])

    own_node.start()
    assert_still_runs(own_node.client().sprite(sprite.name), pid)


def instances(node: TestNode) -> list[str]:
    """Ids of all instances, blanks too."""
    return [path.name for path in Path(f"/run/ballpoint/{node.id}/instances").glob("*")]


def test_the_last_sprite_and_the_node_leave_the_host_as_it_was(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = running_sprite(own_node)
    assert links(own_node.id) != []
    own_node.client().delete_sprite(sprite.name)
    assert own_node.terminate() == 0
    assert traces(own_node.id, own_node.data) == dict.fromkeys(traces(own_node.id, own_node.data), [])


def test_down_finds_what_is_left_when_the_run_directory_is_not(own_node: TestNode) -> None:
    """As after a start of an earlier version that failed: only what nodes share tells of it, and its slot may be 0."""
    own_node.options = ["--pool", "0"]
    own_node.start()
    own_node.kill()
    shutil.rmtree(own_node.config.run)
    assert traces(own_node.id, own_node.data)["tables"] != []
    own_node.down()
    assert traces(own_node.id, own_node.data) == dict.fromkeys(traces(own_node.id, own_node.data), [])


def cache_of_broken_helpers(cache: Path) -> Path:
    """A cache with the images of the tests, and with a program that starts no container."""
    cache.mkdir()
    (cache / "images").symlink_to(CACHE / "images")
    for program in ensure_programs(cache).glob("inner"):
        shutil.copy("/bin/false", program)
    return cache


@pytest.mark.parametrize("trouble", ["port", "token", pytest.param("blanks", marks=pytest.mark.slow)])
def test_a_start_that_fails_leaves_the_host_as_it_was(own_node: TestNode, tmp_path: Path, trouble: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if trouble == "port":
            own_node.options += ["--listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        elif trouble == "token":
            (tmp_path / "token").write_text("no token")
            own_node.options += ["--token-file", str(tmp_path / "token")]
        else:
            own_node.cache = cache_of_broken_helpers(tmp_path / "cache")
        with pytest.raises(AssertionError, match="the node did not start"):
            own_node.start()
    assert own_node.wait() != 0
    assert traces(own_node.id, own_node.data) == dict.fromkeys(traces(own_node.id, own_node.data), [])


def test_down_of_a_dead_node_leaves_nothing_but_data(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = running_sprite(own_node)
    own_node.kill()
    own_node.down()  # the fixture looks for traces
    own_node.start()
    again = own_node.client().sprite(sprite.name)
    assert shell(again, "cat file") == (0, "kept\n")


def test_an_agent_comes_back_under_its_anchor(own_node: TestNode) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    for each in inside(own_node, "agent"):
        kill(each)
    eventually(lambda: _quietly(assert_still_runs, sprite, pid))
    assert "stopped" not in kinds(own_node, sprite)


def test_a_blank_whose_agent_was_killed_is_as_good_as_any(own_node: TestNode) -> None:
    own_node.options = ["--pool", "1", "--pool-max", "1"]
    own_node.start()
    (blank,) = inside(own_node, "anchor", claimed=False)
    kill(*inside(own_node, "agent", claimed=False))
    sprite, _ = running_sprite(own_node)
    assert inside(own_node, "anchor") == [blank]
    assert shell(sprite, "cat file") == (0, "kept\n")


def test_a_container_that_ends_while_its_agent_is_dead_is_noticed(own_node: TestNode) -> None:
    own_node.start()
    sprite, _ = running_sprite(own_node)
    (agent,) = inside(own_node, "agent")
    init = next(pid for pid in children(agent) if Path(f"/proc/{pid}/comm").read_text() == "init\n")
    (zygote,) = own_node.processes("zygote")
    os.kill(zygote, signal.SIGSTOP)  # so that no other agent comes before the container has ended
    try:
        kill(agent)
        kill(init)
    finally:
        os.kill(zygote, signal.SIGCONT)
    eventually(lambda: own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"] == "cold")
    eventually(lambda: "stopped" in kinds(own_node, sprite))
    assert shell(sprite, "cat file") == (0, "kept\n")


def test_an_agent_that_lives_unheard_is_replaced_and_not_doubled(own_node: TestNode) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    (agent,) = inside(own_node, "agent")
    os.kill(agent, signal.SIGSTOP)
    (node,) = own_node.processes("node")
    kill(node)
    eventually(lambda: _quietly(assert_still_runs, sprite, pid), seconds=120)
    (successor,) = inside(own_node, "agent")
    assert successor != agent


def test_an_anchor_takes_its_instance_along(own_node: TestNode) -> None:
    own_node.start()
    sprite, pid = running_sprite(own_node)
    (anchor,) = inside(own_node, "anchor")
    kill(anchor)
    eventually(lambda: "stopped" in kinds(own_node, sprite))
    assert shell(sprite, f"cat file; kill -0 {pid} 2>/dev/null || echo gone") == (0, "kept\ngone\n")
    assert kinds(own_node, sprite) == ["created", "stopped", "running"]


def test_two_nodes_on_one_host(own_node: TestNode, node: TestNode) -> None:
    own_node.start()
    mine, theirs = running_sprite(own_node), running_sprite(node)
    own_node.down()
    assert_still_runs(*theirs)
    own_node.start()
    assert shell(own_node.client().sprite(mine[0].name), "cat file") == (0, "kept\n")
    node.client().delete_sprite(theirs[0].name)


def _quietly(check: Any, *arguments: Any) -> bool:
    """Whether `check` passes now; what stands in the way while something is started again does not count."""
    try:
        check(*arguments)
    except (SpriteError, AssertionError):
        return False
    return True
