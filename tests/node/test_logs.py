"""`GET /logs`: what agent, console and kernel said, in this instance and those before, and why each ended."""

from __future__ import annotations

import base64
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sprites.exceptions import NetworkError

from ballpoint.agent.ringlog import SIZE
from ballpoint.core import ids
from ballpoint.node.logbook import KEPT
from tests.inside.conftest import agent_of, group_of, init_of, instance_of
from tests.support.nodes import TestNode, shell
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (agent|agent\.\w+|console|memory|node): ")


@pytest.fixture
def make(node: TestNode) -> Iterator[Callable[..., Any]]:
    made: list[str] = []

    def sprite(**config: int) -> Any:
        name = f"t-{ids.new_instance_id()}"
        answer = node.api("POST", "/v1/sprites", json={"name": name, "config": config})
        assert answer.status_code == 201, answer.text
        made.append(name)
        return node.client().get_sprite(name)

    yield sprite
    for name in made:
        node.api("DELETE", f"/v1/sprites/{name}")


def log_of(node: TestNode, sprite: Any) -> str:
    """The log; each of its lines is of one of the known sources."""
    answer = node.api("GET", f"/v1/sprites/{sprite.name}/logs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert len(answer.content) <= KEPT + 2 * SIZE
    for line in answer.text.split("\n")[:-1]:
        assert LINE.match(line), line
    return answer.text


def says(node: TestNode, sprite: Any, *words: str) -> str:
    """Wait until the log holds `words` in this order; the log."""
    pattern = re.compile(".*".join(map(re.escape, words)), re.DOTALL)
    said = [""]

    def heard() -> object:
        said[0] = log_of(node, sprite)
        return pattern.search(said[0])

    try:
        eventually(heard)
    except AssertionError as error:
        raise AssertionError(f"the log does not say {words}, but:\n{said[0]}") from error
    return said[0]


def test_the_console(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    assert shell(sprite, "echo of a user >/dev/console; echo of root | sudo tee /dev/console") == (0, "of root\n")
    says(node, sprite, "agent: claimed for sprite-", "console: of a user\n", "console: of root\n")


def test_nothing_inside_can_forge_a_line(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    forged = (
        b"2026-01-01T00:00:00.000Z agent: forged\n"
        b"x\r2026-01-01T00:00:00.000Z agent: forged\x1b[2K\x1b[A\n\xe2\x80\xa82026-01-01T00:00:00.000Z node: forged\n"
        b"\0\x85\x0b\x0c2026-01-01T00:00:00.000Z node: forged\nlast\n"
    )
    code, said = shell(sprite, f"echo {base64.b64encode(forged).decode()} | base64 -d >/dev/console")
    assert code == 0, said
    text = says(node, sprite, "console: last\n")
    assert text.count("forged") == 4
    assert all(LINE.match(line)[1] == "console" for line in text.splitlines() if "forged" in line)  # type: ignore[index]
    assert all(character.isprintable() or character in "\n\t" for character in text)


def test_a_flood_is_bounded_and_washes_out_no_other(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    assert shell(sprite, f"seq {SIZE // 4} >/dev/console; echo the last >/dev/console; echo done") == (0, "done\n")
    text = says(node, sprite, "agent: claimed for sprite-", "console: the last\n")
    assert "console: 1\n" not in text


def test_a_process_that_the_kernel_ended_for_memory(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make(ram_mb=128)
    hungry = "python3 -c 'x = bytearray(1 << 30)' 2>/dev/null; echo $?"
    assert shell(sprite, hungry)[1].startswith("137\n")
    says(node, sprite, "memory: out of memory: the kernel ended 1 process of the sprite (1 since it started)\n")
    assert shell(sprite, hungry)[1].startswith("137\n")
    says(
        node,
        sprite,
        "memory: ",
        "memory: out of memory: the kernel ended 1 process of the sprite (2 since it started)\n",
    )


def test_an_orphan_that_crashed(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    orphan = "setsid bash -c 'echo $$ >pid; read _ <go; kill -SEGV $$' >/dev/null 2>&1 &"
    assert shell(sprite, f"mkfifo go; {orphan} until [ -s pid ]; do :; done") == (0, "")
    pid = shell(sprite, "echo >go; cat pid")[1].strip()
    says(node, sprite, f"console: init: the orphan {pid} (bash) was ended by signal {signal.SIGSEGV.value}\n")


def test_a_reboot_from_inside(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    shell(sprite, "echo before >/dev/console")
    with suppress(NetworkError):  # the command itself is ended
        shell(sprite, "sudo reboot; read -t 60 <> <(:)")
    says(node, sprite, "node: stopped: rebooted from inside\n")
    shell(sprite, "echo after >/dev/console")
    says(
        node, sprite, "agent: claimed for ", "console: before\n", "console: init: restarting: ",
        "agent: the inner container ended: reboot\n", "node: stopped: rebooted from inside\n",
        "agent: claimed for ", "console: after\n",
    )  # fmt: skip


def test_what_ended_a_cold_sprite(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    shell(sprite, "echo before >/dev/console; sudo kill -TERM 1")
    said = ("console: before\n", "console: init: halting: ", "agent: the inner container ended: halt\n")
    text = says(node, sprite, *said, "node: stopped: halted from inside\n")
    # Reading it does not start the sprite.
    assert node.api("GET", f"/v1/sprites/{sprite.name}").json()["status"] == "cold"
    assert text.count("claimed for") == 1


@pytest.mark.parametrize("victim", ["init", "anchor"])
def test_what_was_killed(node: TestNode, make: Callable[..., Any], victim: str) -> None:
    sprite = make()
    shell(sprite, "echo before >/dev/console")
    says(node, sprite, "console: before\n")
    instance = instance_of(node, sprite)
    if victim == "init":
        os.kill(init_of(node, instance), signal.SIGKILL)
    else:
        members = group_of(node, instance).child("agent").pids()
        anchors = [pid for pid in members if Path(f"/proc/{pid}/comm").read_text() == "anchor\n"]
        os.kill(anchors[0], signal.SIGKILL)
    cause = "its container ended: signal 9" if victim == "init" else "its anchor died"
    says(node, sprite, "console: before\n", f"node: stopped: {cause}\n")


def test_an_agent_that_died(node: TestNode, make: Callable[..., Any]) -> None:
    """Its log goes on, and what is written to the console meanwhile is not lost."""
    sprite = make()
    agent = agent_of(node, instance_of(node, sprite))
    os.kill(agent, signal.SIGSTOP)
    console = Path(f"/proc/{init_of(node, instance_of(node, sprite))}/fd/3")
    with console.open("wb", buffering=0) as file:
        file.write(b"while nobody listens\n")
    os.kill(agent, signal.SIGKILL)
    says(node, sprite, "agent: claimed for ", "agent: taking an earlier agent's place")
    says(node, sprite, "console: while nobody listens\n")


def test_a_destroyed_sprite_leaves_no_log(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    kept = node.data / "logs" / f"{node.api('GET', f'/v1/sprites/{sprite.name}').json()['id']}.log"
    assert node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code == 200
    says(node, sprite, "claimed for", "node: stopped: restarted with token", "claimed for")
    assert kept.stat().st_mode & 0o77 == 0
    assert node.api("DELETE", f"/v1/sprites/{sprite.name}").status_code == 204
    assert not kept.exists()


def test_former_logs_are_bounded(node: TestNode, make: Callable[..., Any]) -> None:
    sprite = make()
    for _ in range(2):
        shell(sprite, f"seq {SIZE // 6} >/dev/console")
        assert node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code == 200
    text = log_of(node, sprite)
    assert KEPT - 100 < len(text) < KEPT + 1000
    assert text.count("node: stopped: restarted") == 1
