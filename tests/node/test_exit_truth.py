"""Exit codes are always true: one terminal frame, with all output before it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest

from ballpoint.core import ids
from tests.support.nodes import TestNode
from tests.support.quick import Quick
from tests.support.raw import Heard, exec_http, exec_websocket
from tests.support.seeds import fresh_seed

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def name(node: TestNode) -> Iterator[str]:
    made = f"t-{ids.new_instance_id()}"
    node.client().create_sprite(made)
    yield made
    node.client().delete_sprite(made)


async def quick_commands(node: TestNode, name: str, count: int) -> None:
    """Run `count` commands that end at once over each of the three ways, several at a time."""
    chance = random.Random(fresh_seed())
    quick = Quick(node, name)
    numbers = iter(range(3 * count))

    async def run(way: Callable[..., Awaitable[Heard]], number: int) -> None:
        text = f"line {number}"
        kind = chance.choice(["echo", "exit", "kill", "more"])
        more, errors = chance.randrange(200_000), b""
        if kind == "echo":
            heard, code, out = await way("echo", text), 0, f"{text}\n"
        elif kind == "exit":
            heard, code, out = await way("sh", "-c", f"echo {text}; exit 3"), 3, f"{text}\n"
        elif kind == "more":
            script = f"echo {text} >&2; head -c {more} /dev/zero; echo {text} >&2; exit 4"
            heard, code, out = await way("sh", "-c", script), 4, "\0" * more
            errors = f"{text}\n{text}\n".encode()
        else:
            heard, code, out = await way("sh", "-c", f"echo {text}; kill -9 $$"), 128 + 9, f"{text}\n"
        assert (heard.terminal, heard.stdout, heard.stderr, heard.after) == ([code], out.encode(), errors, b"")

    async def worker() -> None:
        control = await quick.control()
        for number in numbers:
            await run((quick.websocket, quick.http, control.run)[number % 3], number)
        control.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(worker())


async def test_quick_commands(node: TestNode, name: str) -> None:
    await quick_commands(node, name, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_ten_thousand_quick_commands(node: TestNode, name: str) -> None:
    await quick_commands(node, name, 10_000)


def test_streams_are_apart_and_whole(node: TestNode, name: str) -> None:
    script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; exit 5"
    for heard in (exec_websocket(node, name, "sh", "-c", script), exec_http(node, name, "sh", "-c", script)):
        assert (len(heard.stdout), len(heard.stderr), heard.terminal) == (3000000, 2000000, [5])


def test_input_ends_a_reader(node: TestNode, name: str) -> None:
    data = bytes(range(256)) * 4000
    messages = tuple(b"\0" + data[at : at + 50000] for at in range(0, len(data), 50000))
    assert exec_websocket(node, name, "cat", send=messages, stdin="true").stdout == data
    assert exec_http(node, name, "cat", body=data).stdout == data


def test_no_signal_is_ignored_or_blocked(node: TestNode, name: str) -> None:
    for tty in ("false", "true"):
        told = exec_websocket(node, name, "grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status", tty=tty).stdout
        assert told.split() == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]


def test_terminal(node: TestNode, name: str) -> None:
    heard = exec_websocket(node, name, "sh", "-c", "stty size; tty; exit 5", tty="true", rows="30", cols="99")
    assert heard.stdout.split() == [b"30", b"99", b"/dev/pts/0"]
    assert (heard.terminal, heard.close_code) == ([5], 4005)
    good: Heard = exec_websocket(node, name, "true", tty="true")
    assert (good.terminal, good.close_code, good.info["tty"]) == ([0], 1000, True)


def test_background_children_do_not_hold_the_exit_back(node: TestNode, name: str) -> None:
    heard = exec_websocket(node, name, "sh", "-c", "sleep 600 & echo started")
    assert (heard.stdout, heard.terminal) == (b"started\n", [0])
