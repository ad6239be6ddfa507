"""The log: its lines cannot be forged, its size is bounded, and a flooded console leaves the agent to others."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.agent import ringlog
from ballpoint.agent.ringlog import AGENT, CONTAINER, LINE, SIZE, Ring, RingHandler, lines
from ballpoint.agent.watch import Console, MemoryWatch
from tests.agent.world import eventually

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_999, UTC)
START = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ([\w.]+): ")


@pytest.fixture
def log() -> Iterator[int]:
    fd = ringlog.create()
    yield fd
    os.close(fd)


def sources(text: bytes) -> list[str]:
    """The source of each line; fails at a line without one."""
    assert not text or text.endswith(b"\n")
    found = [START.match(line) for line in text.split(b"\n")[:-1]]
    return [match[1].decode() for match in found if match] if all(found) else pytest.fail(repr(text[:2000]))


@given(st.text())
def test_a_line_is_of_whom_it_says(text: str) -> None:
    made = lines(MOMENT, "console", text)
    assert set(sources(made)) == {"console"}
    assert all(character.isprintable() or character in "\n\t" for character in made.decode())


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="\xa0"), max_size=LINE))
def test_what_can_be_printed_is_kept_as_it_is(text: str) -> None:
    if text.isprintable():
        assert lines(MOMENT, "console", text).decode() == f"2026-01-02T03:04:05.678Z console: {text}\n"


def test_a_long_line_goes_on_in_the_next() -> None:
    made = lines(MOMENT, "agent", "x" * (2 * LINE + 1)).decode().splitlines()
    assert [len(line.partition(": ")[2]) for line in made] == [LINE, LINE, 1]


@pytest.mark.parametrize("text", ["a\rb", "\x1b[2Kx", "\x9b1m", "\u2028", "\u202ex", "\0", "\udc80"])
def test_what_moves_a_terminals_cursor_is_escaped(text: str) -> None:
    assert lines(MOMENT, "console", text).count(b"\\") == 1


def test_a_flood_of_one_ring_leaves_the_other(log: int) -> None:
    handler = RingHandler(log)
    handler.emit(logging.makeLogRecord({"name": "agent", "msg": "an early word"}))
    console = Ring(log, CONTAINER)
    for _ in range(100):
        console.write(lines(MOMENT, "console", "flood\n" * 1000))
    read = ringlog.read(log)
    assert b"agent: an early word\n" in read
    assert SIZE - 1000 < len(read) < SIZE + 1000
    assert set(sources(read)) == {"agent", "console"}


def test_lines_are_in_order_of_time(log: int) -> None:
    rings = {number: Ring(log, number) for number in (AGENT, CONTAINER)}
    for number in range(10):
        rings[number % 2].write(lines(MOMENT + timedelta(seconds=number), "x", str(number)))
    assert re.findall(rb"x: (\d)", ringlog.read(log)) == [b"%d" % number for number in range(10)]


def test_a_record_of_many_lines_is_many_lines(log: int) -> None:
    record = logging.makeLogRecord({"name": "agent", "msg": "one\ntwo %s", "args": ("\r\x1b",)})
    RingHandler(log).emit(record)
    assert sources(ringlog.read(log)) == ["agent", "agent"]


def test_a_log_that_was_tampered_with_is_still_read(log: int) -> None:
    for data in (b"", os.urandom(2 * SIZE), ringlog.HEADER.pack(ringlog.MAGIC, 2**64 - 1) + os.urandom(SIZE)):
        os.pwrite(log, data, 0)
        assert len(ringlog.read(log)) <= 2 * SIZE


# ---- the console ----


class Fifo:
    """A console's two ends, as the inner init makes them."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        self.reading = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.path = path

    def write(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(data)


@pytest.fixture
def fifo(tmp_path: object) -> Iterator[Fifo]:
    made = Fifo(f"{tmp_path}/console")
    yield made
    os.close(made.reading)


async def test_the_console_is_logged_by_lines(fifo: Fifo, log: int) -> None:
    console = Console(fifo.reading, Ring(log, CONTAINER))
    fifo.write(b"one\ntw")
    await eventually(lambda: b"console: one\n" in ringlog.read(log))
    assert b"tw" not in ringlog.read(log)
    fifo.write("o\r\nünf\xff".encode("latin-1").replace(b"\xfc", "ü".encode()))
    await eventually(lambda: b"console: two\n" in ringlog.read(log))
    console.close()
    assert "console: ünf\\xff\n".encode() in ringlog.read(log)


async def test_what_was_written_before_the_agent_came_is_logged(fifo: Fifo, log: int) -> None:
    fifo.write(b"early\n")
    console = Console(fifo.reading, Ring(log, CONTAINER))
    await eventually(lambda: b"console: early\n" in ringlog.read(log))
    console.close()


async def test_a_console_without_newlines_is_logged(fifo: Fifo, log: int) -> None:
    console = Console(fifo.reading, Ring(log, CONTAINER))
    fifo.write(b"x" * (2 * LINE))
    await eventually(lambda: ringlog.read(log).count(b"x" * LINE) == 2)
    console.close()


async def test_the_end_of_a_console_is_logged_whole(fifo: Fifo, log: int) -> None:
    console = Console(fifo.reading, Ring(log, CONTAINER))
    fifo.write(b"".join(b"line %d\n" % number for number in range(5000)))
    console.close()
    assert re.findall(rb"line (\d+)", ringlog.read(log)) == [b"%d" % number for number in range(5000)]


async def test_a_flooded_console_leaves_the_loop_to_others(fifo: Fifo, log: int) -> None:
    """Between two reads everything else has its turn, and the writer waits: a pause holds off whatever is written."""
    console = Console(fifo.reading, Ring(log, CONTAINER))
    writer = asyncio.create_task(asyncio.to_thread(fifo.write, b"\n" * (200 * 1024)))
    turns = 0
    while not writer.done():
        await asyncio.sleep(0)
        turns += 1
    await writer
    await eventually(lambda: len(ringlog.read(log)) > SIZE - 100)
    console.close()
    assert turns > 100
    assert set(sources(ringlog.read(log))) == {"console"}


async def test_another_reader_of_the_console_does_not_stop_it(fifo: Fifo, log: int) -> None:
    console = Console(fifo.reading, Ring(log, CONTAINER))
    fifo.write(b"stolen\n")
    os.read(fifo.reading, 100)
    for number in range(3):
        fifo.write(b"word %d\n" % number)
        await eventually(lambda number=number: b"word %d\n" % number in ringlog.read(log))  # type: ignore[misc]
    console.close()


# ---- memory ----


async def test_ended_for_memory(log: int, tmp_path: object) -> None:
    """The counter is a file here and the notice an eventfd, as with v1."""
    counter, event = os.open(f"{tmp_path}/counter", os.O_RDWR | os.O_CREAT), os.eventfd(0, os.EFD_NONBLOCK)

    def count(number: int) -> None:
        os.pwrite(counter, b"oom_kill_disable 0\nunder_oom 0\noom_kill %d\n" % number, 0)
        os.eventfd_write(event, 1)

    count(2)
    watch = MemoryWatch(counter, event, Ring(log, CONTAINER))
    count(3)
    await eventually(lambda: b"memory: out of memory: the kernel ended 1 process" in ringlog.read(log))
    count(5)
    await eventually(lambda: b"ended 2 processes of the sprite (5 since it started)\n" in ringlog.read(log))
    watch.close()
    assert ringlog.read(log).count(b"Z memory: ") == 2
    os.close(counter)
    os.close(event)
