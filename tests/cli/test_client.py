"""The client's commands, as a user types them: what they do, what they remember, and with which code they end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.cli.command import COLUMNS, COMMAND, DEADLINE, ROWS, Terminal, ballpoint
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

CTRL_BACKSLASH = b"\x1c"


@pytest.fixture(scope="module")
def sprite(home: Path) -> Iterator[str]:
    name = f"t-{ids.new_instance_id()}"
    done = ballpoint(home, "create", name, "--skip-console")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"created {name}\n", "")
    yield name
    assert ballpoint(home, "destroy", name, "--force").returncode == 0


@pytest.mark.parametrize("way", [[], ["--http-post"]])
@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("nosuch", 127), ("/etc/passwd", 126)],
)
def test_exec_ends_with_the_commands_code(home: Path, sprite: str, way: list[str], command: str, code: int) -> None:
    done = ballpoint(home, "-s", sprite, "exec", *way, "--", "sh", "-c", f"echo out; echo err >&2; {command}")
    assert (done.returncode, done.stdout) == (code, "out\n")
    assert done.stderr.startswith("err\n")


def test_exec_passes_input_directory_and_environment(home: Path, sprite: str) -> None:
    done = subprocess.run(
        [*COMMAND, "-s", sprite, "exec", "--dir", "/tmp", "--env", "A=1,B=2", "--no-port-forward",
         "sh", "-c", "pwd; echo $A$B; cat"],
        input="typed\n", capture_output=True, text=True, timeout=DEADLINE, cwd=home,
        env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "/tmp\n12\ntyped\n", "")


def test_exec_puts_files_there_first(home: Path, sprite: str, tmp_path: Path) -> None:
    program, data = tmp_path / "a program", tmp_path / "data"
    program.write_text('#!/bin/sh\nwc -c <"$1"\n')
    program.chmod(0o755)
    data.write_bytes(os.urandom(3 << 20))
    files = ["--file", f"{program}:bin/it's", "--file", f"{data}:/tmp/new/data"]
    done = ballpoint(home, "-s", sprite, "exec", *files, "--", "bin/it's", "/tmp/new/data")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(3 << 20), "")
    listed = ballpoint(home, "-s", sprite, "exec", "--dir", "/tmp/new", "--file", f"{data}:more", "--", "ls", "-A")
    assert listed.stdout.split() == ["data", "more"]
    for bad, says in (("nocolon", "is not SRC:DEST"), (f"{tmp_path}/none:x", "there is no file")):
        refused = ballpoint(home, "-s", sprite, "exec", "--file", bad, "--", "true")
        assert refused.returncode != 0
        assert says in refused.stderr
    unwritable = ballpoint(home, "-s", sprite, "exec", "--file", f"{data}:/proc/x", "--", "echo", "ran")
    assert unwritable.returncode != 0
    assert unwritable.stdout == ""
    assert "/proc/x was not written" in unwritable.stderr


def test_debug_tells_requests_and_no_secret(home: Path, sprite: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    ballpoint(home, f"--debug={log}", "-s", sprite, "exec", "--env", "SECRET=hush", "--", "true")
    told = ballpoint(home, "-s", sprite, "--debug", "info", sprite)
    assert told.returncode == 0
    assert "GET http" in told.stderr
    assert f"/v1/sprites/{sprite}/exec" in log.read_text()
    for text in (log.read_text(), told.stderr):
        assert "hush" not in text
        assert "Bearer" not in text


def test_an_unknown_flag_of_exec_is_not_taken_for_the_command(home: Path, sprite: str) -> None:
    done = ballpoint(home, "-s", sprite, "exec", "--nosuch", "true")
    assert done.returncode == 2 and "--nosuch" in done.stderr


@pytest.mark.parametrize("way", [[], ["--http-post"]])
def test_a_reader_of_exec_that_goes_away_ends_it_without_a_word(home: Path, sprite: str, way: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, "-s", sprite, "exec", *way, "--", "yes"], stdout=writer, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, timeout=DEADLINE, cwd=home, env={**os.environ, "HOME": str(home)},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_said(home: Path, sprite: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "-s", sprite, "exec", "--", "echo", "x"], stdout=full, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, text=True, timeout=DEADLINE, cwd=home, env={**os.environ, "HOME": str(home)},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["ballpoint: cannot write the command's output: No space left on device"]


def test_console_is_a_shell_on_this_terminal(home: Path, sprite: str) -> None:
    """With what was typed before it was there, and of the terminal's size, whatever its environment says."""
    terminal = Terminal(home, "console", sprite, LINES="24", COLUMNS="80")
    terminal.type(b"stty size; exit 5\r")
    assert terminal.end() == 5, terminal.said
    assert b"%d %d" % (ROWS, COLUMNS) in terminal.said


def test_leaving_a_console_leaves_it_running(home: Path, sprite: str) -> None:
    terminal = Terminal(home, "console", sprite)
    terminal.type(b"echo $((6 * 7))here; exec sleep 1000\r")
    terminal.expect(b"42here")
    terminal.type(CTRL_BACKSLASH)
    assert terminal.end() == 0
    assert ballpoint(home, "-s", sprite, "exec", "pkill", "-x", "sleep").returncode == 0


def test_a_console_without_a_terminal_is_refused(home: Path, sprite: str) -> None:
    done = ballpoint(home, "console", sprite)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a console needs a terminal" in done.stderr and "exec" in done.stderr


def test_destroy_asks_and_takes_no_for_an_answer(home: Path, sprite: str) -> None:
    terminal = Terminal(home, "destroy", sprite)
    terminal.expect(b"[y/N]")
    terminal.type(b"n\r")
    assert terminal.end() == 1
    assert f"{sprite} stays".encode() in terminal.said
    assert ballpoint(home, "info", sprite).returncode == 0


def test_sleep_and_wake(home: Path, sprite: str) -> None:
    def status() -> str:
        return str(json.loads(ballpoint(home, "info", sprite, "--json").stdout)["status"])

    assert ballpoint(home, "sleep", sprite).stdout == f"put {sprite} to sleep\n"
    assert status() == "cold"
    assert ballpoint(home, "-s", sprite, "wake").stdout == f"woke {sprite}\n"
    assert status() == "running"


def test_use_selects_for_a_directory_and_those_below(home: Path, sprite: str, tmp_path: Path) -> None:
    assert ballpoint(home, "use", "nosuch").returncode == 1
    assert ballpoint(home, "info").returncode == 1
    assert ballpoint(home, "use", sprite).returncode == 0
    try:
        assert ballpoint(home, "use").stdout == f"{sprite}\n"
        assert ballpoint(home, "exec", "true").returncode == 0
    finally:
        assert ballpoint(home, "use", "--unset").returncode == 0
    assert ballpoint(home, "exec", "true").returncode == 1


def test_scripts_log_in_as_they_do_elsewhere(node: TestNode, tmp_path: Path) -> None:
    said = f"logged in to {node.url} as {node.org}\n"
    assert ballpoint(tmp_path, "auth", "setup", "--token", node.token, SPRITES_API_URL=node.url).stdout == said
    assert ballpoint(tmp_path, "organizations", "auth", node.url, SPRITE_TOKEN=node.token).stdout == said
    assert ballpoint(tmp_path, "list").returncode == 0
    assert ballpoint(tmp_path, "auth", "setup", "--token", "wrong", SPRITES_API_URL=node.url).returncode == 1
    assert ballpoint(tmp_path, "auth", "setup", SPRITES_API_URL=node.url).returncode == 2


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / ".sprites").iterdir()}


@pytest.mark.parametrize(
    ("url", "token"),
    [("127.0.0.1:7070", None), ("ftp://127.0.0.1:7070", None), ("http://", None), ("http://127.0.0.1:x", None),
     ("http://127.0.0.1:1", None), (None, ""), (None, "nonsense"), (None, "acme/b/c/d")],
)  # fmt: skip
def test_a_log_in_that_does_not_work_is_not_remembered(
    node: TestNode, home: Path, url: str | None, token: str | None
) -> None:
    before = files(home)
    file = home / "given"
    file.write_text(node.token if token is None else token)
    done = ballpoint(home, "login", url or node.url, "--token-file", str(file))
    assert done.returncode == 1
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("ballpoint: ") and hint.startswith("  ")
    assert files(home) == before


def test_a_log_in_gives_a_node_an_alias(node: TestNode, tmp_path: Path) -> None:
    file = tmp_path / "given"
    file.write_text(node.token)

    def login(choice: str, api: str) -> str:
        done = ballpoint(tmp_path, "-o", choice, "login", api, "--token-file", str(file))
        assert done.returncode == (1 if done.stderr else 0)
        return done.stdout + done.stderr

    assert "is no alias" in login(f"a/b:{node.org}", node.url)
    assert f"the token is one of {node.org}, not of corp" in login("prod:corp", node.url)
    assert not (tmp_path / ".sprites").exists()
    assert login(f"prod:{node.org}", node.url) == f"logged in to {node.url} as {node.org}\n"
    assert login(node.org, "prod") == f"logged in to {node.url} as {node.org}\n"
    for chosen in ("prod", node.url):
        listed = ballpoint(tmp_path, "-o", f"{chosen}:{node.org}", "list", SPRITES_API_URL="http://127.0.0.1:1")
        assert listed.returncode == 0, listed.stderr
    assert "no node has the alias 'nosuch'" in ballpoint(tmp_path, "-o", f"nosuch:{node.org}", "list").stderr


@pytest.mark.parametrize("command", [["list"], ["exec", "true"], ["exec", "--http-post", "true"]])
@pytest.mark.parametrize("url", ["127.0.0.1:7070", "http://127.0.0.1:1"])
def test_a_node_that_is_not_there_is_told_in_a_sentence(home: Path, sprite: str, command: list[str], url: str) -> None:
    done = ballpoint(home, "-s", sprite, *command, SPRITES_API_URL=url, SPRITE_TOKEN="a/b/c/d")
    assert done.returncode == 1 and url in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_url_shows_and_changes_who_may_open_it(home: Path, sprite: str, node: TestNode) -> None:
    shown = node.api("GET", f"/v1/sprites/{sprite}").json()["url"]
    done = ballpoint(home, "url", sprite)
    assert (done.returncode, done.stdout.split()) == (0, ["url", shown, "auth", "sprite"])
    done = ballpoint(home, "url", "update", sprite, "--auth", "public", "--json")
    settings = {"auth": "public", "private_access": None}
    assert json.loads(done.stdout) == {"name": sprite, "url": shown, "url_settings": settings}
    for command in (["url"], ["url", "--json"], ["url", "show", sprite], ["url", sprite, "--json"]):
        assert "public" in ballpoint(home, "-s", sprite, *command).stdout
    assert ballpoint(home, "-s", sprite, "url", "update", "-a", "sprite").returncode == 0
    assert node.api("GET", f"/v1/sprites/{sprite}").json()["url_settings"]["auth"] == "sprite"
    assert ballpoint(home, "url", "update", sprite, "--auth", "nobody").returncode == 2
    missing = ballpoint(home, "url", "no-such-sprite")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no-such-sprite" in missing.stderr
