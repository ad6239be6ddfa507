"""How a sprite is and shall be, raw requests, and that every listing speaks JSON."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from ballpoint.cli import columns
from ballpoint.cli.main import _COMMANDS, cli
from tests.api.double import START, NodeDouble
from tests.cli.answers import Answers, answering
from tests.cli.command import COMMAND, DEADLINE, Terminal
from tests.cli.test_checkpoints import Command, command, refused, said, serving

TOKEN = "acme/o1/t1/value"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[NodeDouble, str]]:
    node = NodeDouble()
    with serving(node) as url:
        yield node, url


@pytest.fixture
def node(served: tuple[NodeDouble, str]) -> NodeDouble:
    """A node with the sprite `web`."""
    served[0].reset()
    served[0].put("web")
    return served[0]


@pytest.fixture
def run(served: tuple[NodeDouble, str], node: NodeDouble, tmp_path: Path) -> Command:
    return command(tmp_path, served[1])


@pytest.fixture
def answers() -> Iterator[Answers]:
    with answering() as made:
        yield made


@pytest.fixture
def ask(answers: Answers, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "HOME": str(tmp_path), "SPRITES_API_URL": answers.url, "SPRITE_TOKEN": TOKEN}
        return subprocess.run(
            [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=DEADLINE, cwd=tmp_path, env=environment
        )

    return run


Ask = Callable[..., subprocess.CompletedProcess[bytes]]


def shown(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines()}


def test_why_a_sprite_is_awake(run: Command, node: NodeDouble) -> None:
    facts = shown(said(run("activity", "web")))
    assert facts["kept awake by"] == f"request: exec, since {columns.moment(START.isoformat())}"
    assert (facts["status"], facts["idle timeout"]) == ("running", "30 s")
    assert json.loads(said(run("-s", "web", "activity", "--json")))["idle_timeout"] == 30.0


def test_whether_a_sprite_is_well(run: Command, node: NodeDouble) -> None:
    facts = shown(said(run("check", "web")))
    assert (facts["sprite"], facts["status"]) == ("web", "healthy")
    assert json.loads(said(run("check", "web", "--json")))["sprite_name"] == "web"


@pytest.mark.parametrize(("status", "code"), [("hibernated", 0), ("unhealthy", 1), ("error", 1)])
def test_one_that_is_not_well_is_a_failure(ask: Ask, answers: Answers, status: str, code: int) -> None:
    found = {"sprite_name": "web", "sprite_id": "i", "status": status, "reason": "no answer", "elapsed": "2s"}
    answers.answer("GET", "/v1/sprites/web/check", 200, found)
    for flags in ([], ["--json"]):
        done = ask("check", "web", *flags)
        assert done.returncode == code and b"no answer" in done.stdout


def test_settings_are_changed(run: Command, node: NodeDouble) -> None:
    assert said(run("set", "web", "--idle-timeout", "5m", "--label", "a", "--label", "b")) == "changed web\n"
    sprite = node.sprites["o1", "web"]
    assert (sprite.idle_timeout, list(sprite.labels)) == (300.0, ["a", "b"])
    assert json.loads(said(run("-s", "web", "set", "--idle-timeout", "0", "--json")))["labels"] == ["a", "b"]
    assert node.sprites["o1", "web"].idle_timeout == 0
    said(run("set", "web", "--idle-timeout", "default", "--no-labels"))
    sprite = node.sprites["o1", "web"]
    assert (sprite.idle_timeout, list(sprite.labels)) == (None, [])
    for wrong in (["--idle-timeout", "soon"], ["--label", "a", "--no-labels"], []):
        assert refused(run("set", "web", *wrong))


def test_an_upgrade(ask: Ask, answers: Answers) -> None:
    answers.answer("POST", "/v1/sprites/web/upgrade", 204)
    assert ask("upgrade", "web").stdout == b"upgraded web\n"
    done = ask("upgrade", "none")
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_listing_that_is_watched(run: Command, node: NodeDouble) -> None:
    node.put("api")
    node.put("other", health="degraded")
    for _ in range(2):
        node.more.put_nowait(True)
    node.more.put_nowait(False)  # ends the stream, which a node never does
    done = run("list", "-w")
    assert done.returncode == 1
    assert [line.split()[2:] for line in done.stdout.splitlines()] == [
        ["running", "api"], ["degraded", "other"], ["running", "web"]
    ]  # fmt: skip
    node.more.put_nowait(True)
    node.more.put_nowait(False)
    lines = [json.loads(line) for line in run("list", "-w", "--json", "--prefix", "w").stdout.splitlines()]
    assert [(line["type"], line.get("name")) for line in lines] == [("sprite", "web"), ("heartbeat", None)]


def test_who_waits_at_a_terminal_sees_what_for(answers: Answers, tmp_path: Path) -> None:
    """And somebody else's standard error is left alone: all other tests compare it."""
    more = threading.Event()
    complete = {"type": "complete", "data": "web has the checkpoint v0"}
    answers.stream("POST", "/v1/sprites/web/checkpoint", {"type": "info", "data": "the disk is kept"}, more, complete)
    way = {"SPRITES_API_URL": answers.url, "SPRITE_TOKEN": TOKEN}
    terminal = Terminal(tmp_path, "-s", "web", "checkpoint", "create", inside=None, **way)
    terminal.expect_match(rb"[^\x00-\x7f]\S* the disk is kept")  # the sign that turns beside it
    more.set()
    assert terminal.end() == 0
    assert b"web has the checkpoint v0" in terminal.said


def test_a_raw_request(run: Command, node: NodeDouble) -> None:
    assert json.loads(said(run("api", "/v1/sprites/web")))["name"] == "web"
    assert json.loads(said(run("-s", "web", "api", "check")))["sprite_name"] == "web"
    done = run("api", "/v1/sprites/none")
    assert (done.returncode, done.stderr) == (4, "")
    assert json.loads(done.stdout)["error"] == "not_found"
    done = run("api", "/v1/sprites/web", "-X", "DELETE", "-i")
    assert done.returncode == 0 and done.stdout.startswith("HTTP/1.1 204 No Content\n")
    node.failure = RuntimeError("a defect")
    assert run("api", "/v1/sprites/web").returncode == 5
    assert run("api", "/v1/sprites", "--nosuch").returncode == 2
    assert refused(run("api", "check"))[0] == "ballpoint: no sprite is named"


@pytest.mark.parametrize(
    ("words", "stdin", "method", "body"),
    [
        (["-d", '{"a": 1}'], b"", "POST", b'{"a": 1}'),
        (["--", "-X", "PUT", "--data", "@file"], b"", "PUT", b"of a file"),
        (["-X", "patch", "-d", "@-"], b"typed", "PATCH", b"typed"),
        (["-d", "-"], b"typed", "POST", b"typed"),
        (["-T", "file"], b"", "PUT", b"of a file"),
        (["-s"], b"ignored", "GET", b""),
    ],
)
def test_a_raw_request_with_a_body(
    ask: Ask, answers: Answers, tmp_path: Path, words: list[str], stdin: bytes, method: str, body: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"of a file")
    answers.answer(method, "/v1/thing", 200, {"done": True})
    done = ask("api", "/v1/thing?x=1", *words, "-H", "X-Mine: yes", stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"done": true}', b"")
    (asked,) = answers.asked
    assert (asked.method, asked.query, asked.body) == (method, {"x": "1"}, body)
    assert (asked.headers["X-Mine"], asked.headers["Authorization"]) == ("yes", f"Bearer {TOKEN}")


def test_a_raw_answer_into_a_file(ask: Ask, answers: Answers, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    answers.to["GET", "/v1/bytes"] = [(200, "application/octet-stream", [data[: 1 << 20], data[1 << 20 :]])]
    assert ask("api", "/v1/bytes").stdout == data
    assert ask("api", "/v1/bytes", "-o", "out").stdout == b""
    assert (tmp_path / "out").read_bytes() == data
    for wrong in (["-o", "none/out"], ["-d", "@none"], ["-H", "nothing"], ["-d", "x", "-T", "file"]):
        done = ask("api", "/v1/bytes", *wrong)
        assert done.returncode == 1 and len(done.stderr.splitlines()) in (1, 2)


@pytest.mark.parametrize(
    "words",
    [["-s", "web", "checkpoint", "list"], ["checkpoint", "-s", "web", "list"], ["checkpoint", "list", "--sprite=web"],
     ["-s", "none", "checkpoint", "list", "-s", "web"], ["api", "checkpoints", "--sprite", "web"]],
)  # fmt: skip
def test_a_sprite_is_chosen_before_a_command_or_behind_it(run: Command, node: NodeDouble, words: list[str]) -> None:
    assert said(run(*words))
    assert node.asked == [("checkpoints", {"include_auto": False})]


def test_every_command_of_a_sprite_takes_it_behind() -> None:
    lacking = [
        name
        for name, command in commands()
        if "client" in (command.callback.__module__ if command.callback else "")
        and not any("--sprite" in each.opts for each in command.params)
    ]
    assert lacking == [
        "auth setup", "completion", "create", "list", "login", "logout", "org auth", "org list", "org logout", "use",
    ]  # fmt: skip


def test_who_is_logged_in_where_and_logs_out(run: Command, served: tuple[NodeDouble, str], tmp_path: Path) -> None:
    url = served[1]
    assert json.loads(said(run("org", "list", "--json"))) == []
    assert refused(run("logout"))[0] == f"ballpoint: no token of acme at {url} is remembered"
    said(run("-o", "prod:acme", "login", url))
    found = said(run("org", "list", "--json"))
    assert json.loads(found) == [{"name": "acme", "url": url, "alias": "prod", "selected": True}]
    assert said(run("o", "list")).splitlines()[1].split() == ["acme", url, "prod", "yes"]
    assert said(run("org", "logout")) == f"logged out of acme at {url}\n"
    assert not (tmp_path / ".sprites").exists()


def commands() -> list[tuple[str, click.Command]]:
    """Every command with all its words."""
    context = click.Context(cli, info_name="ballpoint")
    found = []
    for name in _COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {each}", inner) for each, inner in command.commands.items()]
        else:
            found.append((name, command))
    return found


# What they show is text in the API, too.
TEXT = {"logs"}


def test_every_listing_speaks_json() -> None:
    listings = {
        name: command
        for name, command in commands()
        if (command.help or "").startswith(("List", "Show")) or name.split()[-1] in ("list", "info", "get", "show")
    }
    assert {
        "list",
        "sessions list",
        "checkpoint list",
        "services list",
        "file list",
        "token list",
        "image list",
    } <= set(listings)
    lacking = [
        name
        for name, command in listings.items()
        if name not in TEXT and "--json" not in [option for each in command.params for option in each.opts]
    ]
    assert lacking == []
