"""Sessions by the command line: listed, joined, ended, and held on to over connections that break."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.cli.command import COMMAND, DEADLINE, Terminal, ballpoint
from tests.cli.relay import Relay
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

CTRL_BACKSLASH = b"\x1c"
Started = Callable[..., subprocess.Popen[bytes]]
# Says what it is told line by line, until it is told the end; then it ends with 3.
GATED = 'n=0; until [ -e "$0" ]; do echo $n; echo err$n >&2; n=$((n+1)); sleep 0.05; done; echo last; exit 3'


@pytest.fixture(scope="module")
def sprite(home: Path) -> Iterator[str]:
    name = f"t-{ids.new_instance_id()}"
    assert ballpoint(home, "create", name, "--skip-console").returncode == 0
    yield name
    assert ballpoint(home, "destroy", name, "--force").returncode == 0


@pytest.fixture
def relay(node: TestNode) -> Iterator[Relay]:
    made = Relay(node.url)
    yield made
    made.close()


@pytest.fixture
def start(home: Path, node: TestNode, sprite: str) -> Iterator[Started]:
    """Starts a command that goes on; killed if it does so after the test."""
    made: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str, relay: Relay | None = None, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        way = {"SPRITES_API_URL": relay.url, "SPRITE_TOKEN": node.token} if relay is not None else {}
        made.append(
            subprocess.Popen(
                [*COMMAND, "-s", sprite, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=home,
                env={**os.environ, "HOME": str(home), **way},
                bufsize=0,
            )  # fmt: skip
        )
        return made[-1]

    yield begin
    for each in made:
        with each:
            each.kill()


def running(home: Path, sprite: str) -> dict[str, str]:
    """Ids of the sessions that run, by their commands."""
    done = ballpoint(home, "-s", sprite, "sessions", "list", "--json")
    assert done.returncode == 0, done.stderr
    return {each["command"].rpartition(" ")[2]: each["id"] for each in json.loads(done.stdout)}


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    assert process.stdout is not None  # without a buffer of its own, which `communicate` would pass by
    said = b""
    while wanted not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def open_gate(home: Path, sprite: str, gate: str) -> None:
    assert ballpoint(home, "-s", sprite, "exec", "touch", gate).returncode == 0


def whole(said: bytes, before: str = "") -> list[str]:
    """Its lines, of which none may lack and none be there twice."""
    *numbers, last = said.decode().splitlines()
    assert numbers == [f"{before}{n}" for n in range(len(numbers))]
    return [*numbers[-1:], last]


def test_sessions_are_listed_joined_and_ended(home: Path, sprite: str, start: Started) -> None:
    gate = f"/tmp/{ids.new_instance_id()}"
    first = start("exec", "--", "sh", "-c", GATED, gate)
    read_until(first, b"3\n")
    id_ = running(home, sprite)[gate]
    heading, *rows = ballpoint(home, "-s", sprite, "sessions", "list").stdout.splitlines()
    assert heading.split() == ["ID", "TERMINAL", "WATCHED", "CREATED", "COMMAND"]
    (row,) = [row.split("  ") for row in rows if row.startswith(f"{id_} ")]
    assert [cell.strip() for cell in row if cell][1:3] == ["no", "yes"]

    joined, later = start("attach", id_), start("sessions", "attach", id_, "--since", "end")
    assert read_until(joined, b"0\n") == b"0\n"
    read_until(later, b"\n")
    open_gate(home, sprite, gate)
    for process in (first, joined, later):
        out, _ = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out.splitlines()[-1]) == (3, b"last")
    # One that has ended can be joined still, from any byte, the two streams apart.
    again = ballpoint(home, "-s", sprite, "attach", id_)
    assert again.returncode == 3
    assert whole(again.stdout.encode())[-1] == "last"
    assert again.stderr.splitlines() == [f"err{n}" for n in range(len(again.stderr.splitlines()))]
    part = ballpoint(home, "-s", sprite, "attach", id_, "--since", f"4,{len(again.stderr) - 2}")
    assert (part.stdout, part.stderr) == (again.stdout[4:], again.stderr[-2:])


def test_a_session_is_ended(home: Path, sprite: str, start: Started) -> None:
    marks = [f"/nosuch-{ids.new_instance_id()}" for _ in range(3)]
    commands = [start("exec", "--", "sh", "-c", GATED, mark) for mark in marks]
    for each in commands:
        read_until(each, b"0\n")
    found = running(home, sprite)
    done = ballpoint(home, "-s", sprite, "sessions", "kill", found[marks[0]])
    assert (done.returncode, commands[0].wait(DEADLINE)) == (0, 143)
    told = done.stdout.splitlines()
    assert "TERM" in told[0] and told[-1].endswith("ended with 143")
    done = ballpoint(home, "-s", sprite, "sessions", "kill", found[marks[1]], "--signal", "KILL", "--json")
    assert (done.returncode, commands[1].wait(DEADLINE)) == (0, 137)
    assert json.loads(done.stdout.splitlines()[-1]) == {"type": "complete", "exit_code": 137}
    # A signal alone, which the shell ignores.
    done = ballpoint(home, "-s", sprite, "sessions", "kill", found[marks[2]], "--signal", "WINCH", "--timeout", "0")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert found[marks[2]] in running(home, sprite).values()
    for arguments in (["kill", "nosuch"], ["kill", found[marks[2]], "--signal", "NOSUCH"], ["attach", "nosuch"]):
        refused = ballpoint(home, "-s", sprite, "sessions", *arguments)
        assert refused.returncode == 1 and refused.stdout == ""
        assert refused.stderr.startswith("ballpoint: ")
    assert ballpoint(home, "-s", sprite, "attach", found[marks[2]], "--since", "x").returncode == 1
    assert ballpoint(home, "-s", sprite, "attach", found[marks[2]], "--since", "999999999").returncode == 1
    assert ballpoint(home, "-s", sprite, "sessions", "kill", found[marks[2]]).returncode == 0


@pytest.mark.parametrize("way", ["exec", "attach"])
def test_a_connection_that_breaks_leaves_no_gap(
    home: Path, sprite: str, start: Started, relay: Relay, way: str
) -> None:
    gate = f"/tmp/{ids.new_instance_id()}"
    watched = start("exec", "--max-run-after-disconnect", "60", "--", "sh", "-c", GATED, gate, relay=relay)
    said = read_until(watched, b"2\n")
    if way == "attach":
        id_ = running(home, sprite)[gate]
        watched = start("attach", id_, relay=relay)
        said = read_until(watched, b"2\n")
    for _ in range(3):
        for break_ in (relay.cut, relay.break_down):
            before = relay.accepted
            break_()
            relay.mend()
            eventually(lambda before=before: relay.accepted > before)  # type: ignore[misc]
            said += read_until(watched, b"\n")
    open_gate(home, sprite, gate)
    out, err = watched.communicate(timeout=DEADLINE)
    assert watched.returncode == 3
    assert whole(said + out)[-1] == "last"
    numbers = err.decode().splitlines()
    assert numbers == [f"err{n}" for n in range(len(numbers))]
    assert relay.accepted >= 7


def test_a_command_that_has_no_input_learns_that_after_a_break_too(
    home: Path, sprite: str, start: Started, relay: Relay
) -> None:
    gate = f"/tmp/{ids.new_instance_id()}"
    watched = start(
        "exec", "sh", "-c", 'echo ready; until [ -e "$0" ]; do sleep 0.1; done; cat; echo end', gate, relay=relay
    )
    read_until(watched, b"ready\n")
    relay.cut()
    open_gate(home, sprite, gate)
    out, err = watched.communicate(timeout=DEADLINE)
    assert (watched.returncode, out, err) == (0, b"end\n", b"")


def test_input_that_may_be_lost_is_not_guessed_at(home: Path, sprite: str, start: Started, relay: Relay) -> None:
    mark = f"/nosuch-{ids.new_instance_id()}"
    watched = start("exec", "--", "sh", "-c", 'head -n1; cat "$0"; cat', mark, relay=relay, stdin=subprocess.PIPE)
    assert watched.stdin is not None
    watched.stdin.write(b"some\n")
    watched.stdin.flush()
    read_until(watched, b"some\n")
    id_ = running(home, sprite)[mark]
    relay.cut()
    _, err = watched.communicate(timeout=DEADLINE)
    assert watched.returncode == 1
    *_, sentence, hint = err.decode().splitlines()
    assert sentence == "ballpoint: the connection was lost, and how much of the input has arrived nobody knows"
    assert f"ballpoint -s {sprite} attach {id_}" in hint


def test_a_session_that_went_with_its_sprite_is_told(home: Path, sprite: str, start: Started, relay: Relay) -> None:
    watched = start("exec", "--", "sh", "-c", GATED, "/nosuch", relay=relay)
    read_until(watched, b"2\n")
    relay.break_down()
    assert ballpoint(home, "restart", sprite).returncode == 0
    relay.mend()
    _, err = watched.communicate(timeout=DEADLINE)
    assert watched.returncode == 1
    assert "is gone: its sprite stopped meanwhile" in err.decode().splitlines()[-2]


def test_a_terminal_is_joined_and_left(home: Path, sprite: str, node: TestNode) -> None:
    mark = f"mark{ids.new_instance_id()}"
    console = Terminal(home, "-s", sprite, "exec", "--tty", "--", "bash", "-c", "cat; exec bash --norc", mark)
    console.type(b"first\r")
    console.expect(b"first\r\nfirst\r\n")
    console.type(CTRL_BACKSLASH)
    found = console.expect_match(rb"session (\S+) goes on: ballpoint -s \S+ attach \S+")
    assert console.end() == 0
    id_ = running(home, sprite)[mark]
    assert found[1].decode() == id_
    joined = Terminal(home, "-s", sprite, "attach", id_)
    joined.expect(b"first\r\nfirst\r\n")
    joined.type(b"\x04")
    joined.resize(44, 111)
    joined.type(b"until [ \"$(stty size)\" = '44 111' ]; do sleep 0.1; done; exit 6\r")
    assert joined.end() == 6


def test_a_terminal_comes_back_by_itself(home: Path, sprite: str, node: TestNode, relay: Relay) -> None:
    way = {"SPRITES_API_URL": relay.url, "SPRITE_TOKEN": node.token}
    console = Terminal(home, "console", sprite, inside=None, **way)
    console.type(b"echo $((6 * 7))here\r")
    console.expect(b"42here")
    relay.break_down()
    console.expect(b"trying again")
    console.type(b"echo typed $((6 * 8)) meanwhile; stty size\r")
    relay.mend()
    console.expect(b"typed 48 meanwhile")
    assert console.said.count(b"42here") == 1
    relay.break_down()
    console.expect_match(rb"trying again[\s\S]*trying again")
    console.type(CTRL_BACKSLASH)
    assert console.end() == 0
    relay.mend()


def test_a_restart_of_the_node_is_no_end(own_node: TestNode, tmp_path: Path) -> None:
    own_node.start()
    home, name = tmp_path / "home", f"t-{ids.new_instance_id()}"
    home.mkdir()
    own_node.options = ["--listen", own_node.url.removeprefix("http://")]
    way = {"SPRITES_API_URL": own_node.url, "SPRITE_TOKEN": own_node.token}
    assert ballpoint(home, "create", name, "--skip-console", inside=None, **way).returncode == 0
    command = [*COMMAND, "-s", name, "exec", "--max-run-after-disconnect", "0", "--", "sh", "-c", GATED, "/tmp/gate"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home,
        env={**os.environ, "HOME": str(home), **way}, bufsize=0,
    ) as watched:  # fmt: skip
        try:
            said = read_until(watched, b"2\n")
            own_node.terminate()
            own_node.start()
            said += read_until(watched, b"\n")
            own_node.kill()
            own_node.start()
            said += read_until(watched, b"\n")
            assert ballpoint(home, "-s", name, "exec", "touch", "/tmp/gate", inside=None, **way).returncode == 0
            out, _ = watched.communicate(timeout=DEADLINE)
            assert (watched.returncode, whole(said + out)[-1]) == (3, "last")
        finally:
            watched.kill()
