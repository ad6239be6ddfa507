"""Status never lies: what does not answer is degraded, and a restart from outside mends it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from ballpoint.core import ids
from ballpoint.host import filesystem
from tests.crash.test_kill import inside, kill, kinds
from tests.support.host import children, only_child, process_state
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]


def assert_degraded_then_mended(node: TestNode, name: str, undo_at_end: bool) -> None:
    path = f"/v1/sprites/{name}"
    eventually(lambda: node.api("GET", path).json()["health"] == "degraded", seconds=60)
    assert node.api("GET", path).json()["status"] == "warm"
    listing = node.api("GET", "/v1/sprites").json()
    assert (listing["running"], listing["warm"]) == (0, 1)
    refused = node.api("POST", f"{path}/exec?cmd=true")
    assert (refused.status_code, refused.json()["error"]) == (503, "degraded")
    assert "Retry-After" in refused.headers
    if undo_at_end:
        return
    assert node.api("POST", f"{path}/restart").status_code == 200
    assert node.api("GET", path).json()["health"] == "ok"


def test_an_agent_that_does_not_answer(own_node: TestNode) -> None:
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo kept > file; sync")[0] == 0
    (agent,) = inside(own_node, "agent")
    os.kill(agent, signal.SIGSTOP)
    assert_degraded_then_mended(own_node, sprite.name, undo_at_end=False)
    assert shell(sprite, "cat file") == (0, "kept\n")
    assert "degraded" in kinds(own_node, sprite)


def test_calls_under_way_when_an_agent_stops_answering(own_node: TestNode) -> None:
    """Each ends: with what was asked for once the sprite runs again, or by saying that it cannot be had now."""
    own_node.start()
    name = f"t-{ids.new_instance_id()}"
    path = f"/v1/sprites/{name}"
    sprite = own_node.client().create_sprite(name)
    assert shell(sprite, "truncate -s 4G large; sync")[0] == 0
    host = httpx2.URL(own_node.api("GET", path).json()["url"]).host
    asked = [
        ("GET", f"{path}/fs/list?path=/home/sprite", {}), ("GET", f"{path}/services", {}),
        ("PUT", f"{path}/fs/write?path=/home/sprite/new", {}), ("POST", f"{path}/exec?cmd=true", {}),
        ("PUT", f"{path}/services/web", {}), ("GET", "/", {"Host": host}), ("POST", "/", {"Host": host}),
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {own_node.token}"}
    with (
        ThreadPoolExecutor(len(asked)) as threads,
        httpx2.stream(
            "GET", f"{own_node.url}{path}/fs/read?path=/home/sprite/large", headers=headers, timeout=60
        ) as body,
    ):
        pieces = body.iter_raw()
        next(pieces)
        (agent,) = inside(own_node, "agent")
        os.kill(agent, signal.SIGSTOP)
        waiting = [
            threads.submit(own_node.api, method, target, headers=more, json={"cmd": "true"}, timeout=120)
            for method, target, more in asked
        ]
        assert_degraded_then_mended(own_node, name, undo_at_end=False)
        answers = [each.result() for each in waiting]
        with pytest.raises(httpx2.TransportError):
            for _ in pieces:
                pass
    for (method, target, _), answer in zip(asked, answers, strict=True):
        assert answer.status_code in (200, 503), (method, target, answer.text)
        if answer.status_code == 503:
            assert "Retry-After" in answer.headers
            assert answer.json()["hint"]
    assert shell(sprite, "true")[0] == 0


def test_an_agent_that_nobody_can_reach(own_node: TestNode) -> None:
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo kept > file; sync")[0] == 0
    (agent,) = inside(own_node, "agent")
    (control,) = [
        record.with_name("control.sock")
        for record in Path(f"/run/ballpoint/{own_node.id}/instances").glob("*/instance.json")
        if '"sprite"' in record.read_text()
    ]
    control.unlink()
    kill(agent)  # the node asks for the next one, and does not find it
    assert_degraded_then_mended(own_node, sprite.name, undo_at_end=False)
    assert shell(sprite, "cat file") == (0, "kept\n")


def test_what_a_frozen_disk_holds_is_ended_at_the_next_start(own_node: TestNode) -> None:
    """As where node and freezer died together, which nothing thaws; and its processes cannot even be killed."""
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    other = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    script = "echo kept > file; sync; (while :; do date > late; done) </dev/null >/dev/null 2>&1 &"
    assert shell(sprite, script)[0] == 0
    writer = min(_running("date > late"))  # its child is called so, too, until it is `date`
    root = os.open(f"/proc/{writer}/root/var/lib/docker", os.O_RDONLY)
    try:
        filesystem.fifreeze(root)
        # A shell that opens the file, or a `date` that writes to it.
        eventually(lambda: "D" in [process_state(pid) for pid in children(writer)])
        own_node.kill()
        for anchor in inside(own_node, "anchor"):
            os.kill(anchor, signal.SIGKILL)
    except BaseException:
        filesystem.fithaw(root)
        raise
    finally:
        os.close(root)
    own_node.start()
    assert _running("date > late") == []
    client = own_node.client()  # at the port that it has now
    assert shell(client.sprite(sprite.name), "cat file") == (0, "kept\n")
    assert shell(client.sprite(other.name), "true")[0] == 0


def test_a_disk_that_takes_no_write(own_node: TestNode) -> None:
    own_node.start()
    sprite = own_node.client().create_sprite(f"t-{ids.new_instance_id()}")
    assert shell(sprite, "echo kept > file; sync")[0] == 0
    (anchor,) = inside(own_node, "anchor")
    inner = next(pid for pid in children(only_child(anchor)) if Path(f"/proc/{pid}/comm").read_text() == "init\n")
    docker = os.open(f"/proc/{inner}/root/var/lib/docker", os.O_RDONLY)
    try:
        filesystem.fifreeze(docker)
        eventually(lambda: _write_started(own_node, sprite.name))
        assert_degraded_then_mended(own_node, sprite.name, undo_at_end=True)
    finally:
        filesystem.fithaw(docker)
        os.close(docker)
    eventually(lambda: own_node.api("GET", f"/v1/sprites/{sprite.name}").json()["health"] == "ok", seconds=60)
    assert shell(sprite, "cat file") == (0, "kept\n")
    eventually(lambda: kinds(own_node, sprite)[-2:] == ["degraded", "healthy"])


def _write_started(node: TestNode, name: str) -> bool:
    """A disk is only asked whether it answers when it was used since the last time: a read is use enough."""
    return node.api("POST", f"/v1/sprites/{name}/exec?cmd=sha256sum&cmd=/usr/bin/git&cmd=file").status_code == 200


def _running(text: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if text.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
