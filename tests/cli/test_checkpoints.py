"""The commands of checkpoints, forks and the disk, as a user types them, against the API over a node of values only."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from ballpoint.cli import columns
from ballpoint.core.errors import UnavailableError
from ballpoint.node.views import CheckpointView
from tests.api.double import START, NodeDouble, app_of, behind_edge
from tests.cli.command import ballpoint

Command = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def serving(node: NodeDouble) -> Iterator[str]:
    """The API over `node` at a URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(behind_edge(app_of(node)), http="httptools", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=[server.serve(sockets=[listener])])
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def command(home: Path, url: str) -> Command:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return ballpoint(home, *arguments, SPRITES_API_URL=url, SPRITE_TOKEN="acme/o1/t1/value")

    return run


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[NodeDouble, str]]:
    node = NodeDouble()
    with serving(node) as url:
        yield node, url


@pytest.fixture
def node(served: tuple[NodeDouble, str]) -> NodeDouble:
    """A node with the sprite `web` and its checkpoints v0, auto-1 (of two lines) and v2."""
    node = served[0]
    node.reset()
    node.put("web")
    node.checkpoints_of["o1", "web"] = [
        CheckpointView(id="v0", create_time=START, comment="set up", is_auto=False, durable=True),
        CheckpointView(
            id="auto-1",
            create_time=START,
            comment="before\n the restore",
            is_auto=True,
            durable=False,
            history=("v0",),
        ),
        CheckpointView(
            id="v2", create_time=START, comment="", is_auto=False, durable=False, source_id="v0", history=("v0",)
        ),
    ]
    return node


@pytest.fixture
def run(served: tuple[NodeDouble, str], node: NodeDouble, tmp_path: Path) -> Command:
    """A command for that node; `web` is selected by `use`."""
    typed = command(tmp_path, served[1])
    assert typed("use", "web").returncode == 0
    node.asked.clear()
    return typed


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The sentence and the hint with which it failed."""
    assert (done.returncode, done.stdout) == (1, "")
    sentence, hint = done.stderr.splitlines()[-2:]
    return sentence, hint


@pytest.mark.parametrize(
    ("flags", "comment", "waits"),
    [([], "", False), (["--comment", "before it"], "before it", False), (["--wait"], "", True)],
)
def test_a_checkpoint_is_made(run: Command, node: NodeDouble, flags: list[str], comment: str, waits: bool) -> None:
    done = run("checkpoint", "create", *flags)
    assert (said(done), done.stderr) == ("web has the checkpoint v3\n", "the disk is kept\n")
    assert node.asked == [("checkpoint", {"comment": comment, "wait_durable": waits})]


def test_the_sprite_is_chosen_by_s(run: Command, node: NodeDouble) -> None:
    node.put("other")
    assert said(run("-s", "other", "checkpoint", "create")) == "other has the checkpoint v0\n"


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ([], ["v0", "v2"]),
        (["--include-auto"], ["v0", "auto-1", "v2"]),
        (["--history", "auto-1", "--include-auto"], ["auto-1"]),
        (["--history", "v7"], []),
    ],
)
def test_checkpoints_are_listed(run: Command, flags: list[str], ids: list[str]) -> None:
    heading, *rows = said(run("checkpoint", "list", *flags)).splitlines()
    assert heading.split() == ["ID", "CREATED", "DURABLE", "COMMENT"]
    assert [row.split()[0] for row in rows] == ids
    assert [each["id"] for each in json.loads(said(run("checkpoint", "list", *flags, "--json")))] == ids


def test_a_row_says_when_whether_it_is_durable_and_what_for(run: Command) -> None:
    _, first, automatic, last = (
        [cell.strip() for cell in row.split("  ") if cell]
        for row in said(run("checkpoint", "list", "--include-auto")).splitlines()
    )
    moment = columns.moment(START.isoformat())
    assert first == ["v0", moment, "yes", "set up"]
    assert automatic == ["auto-1", moment, "no", "before the restore"]
    assert last == ["v2", moment, "no", "-"]


def test_a_checkpoint_is_shown(run: Command) -> None:
    shown = dict(line.split("  ", 1) for line in said(run("checkpoint", "info", "v2")).splitlines())
    shown = {word.strip(): value.strip() for word, value in shown.items()}
    assert (shown["id"], shown["came from"], shown["history"]) == ("v2", "v0", "v0")
    assert (shown["comment"], shown["automatic"], shown["durable"]) == ("-", "no", "no")
    assert json.loads(said(run("checkpoint", "info", "v2", "--json")))["source_id"] == "v0"


def test_a_checkpoint_is_deleted_unless_it_is_in_use(run: Command, node: NodeDouble) -> None:
    assert said(run("checkpoint", "delete", "v0")) == "deleted v0\n"
    assert [each.id for each in node.checkpoints_of["o1", "web"]] == ["auto-1", "v2"]
    assert refused(run("checkpoint", "delete", "v2")) == ("ballpoint: v2 is in use", "  make another first")


@pytest.mark.parametrize("words", [["restore"], ["checkpoint", "restore"]])
def test_a_checkpoint_is_restored(run: Command, node: NodeDouble, words: list[str]) -> None:
    done = run(*words, "v0")
    assert (said(done), done.stderr) == ("web runs from v0\n", "the disk is there\n")
    assert node.asked == [("restore", {"checkpoint_id": "v0"})]


@pytest.mark.parametrize("words", [["checkpoint", "info"], ["checkpoint", "delete"], ["restore"]])
@pytest.mark.parametrize("checkpoint", ["v7", "v0?x", "v 0"])
def test_an_unknown_checkpoint_is_told(run: Command, words: list[str], checkpoint: str) -> None:
    sentence, hint = refused(run(*words, checkpoint))
    assert sentence == f"ballpoint: there is no checkpoint {checkpoint!r}"
    assert "checkpoint list" in hint


def test_a_failure_on_the_way_is_the_commands(run: Command, node: NodeDouble) -> None:
    node.late_failure = UnavailableError("the store is away", hint="ask again")
    done = run("restore", "v0")
    assert refused(done) == ("ballpoint: the store is away", "  ask again")
    assert done.stderr.splitlines()[0] == "the disk is there"


def test_a_stream_that_ends_before_its_end_is_no_success(run: Command, node: NodeDouble) -> None:
    node.slow = True
    node.more.put_nowait(False)
    sentence, hint = refused(run("checkpoint", "create"))
    assert "before the node said how it went" in sentence and "ballpoint events" in hint


def test_a_node_that_breaks_off_is_no_success(run: Command, node: NodeDouble) -> None:
    node.late_failure = RuntimeError("a defect")
    sentence, _ = refused(run("checkpoint", "create"))
    assert "does not answer" in sentence


@pytest.mark.parametrize(
    ("source", "checkpoint"), [("web", None), ("web@v0", "v0"), ("web@auto-1", "auto-1"), ("@v2", "v2")]
)
def test_a_sprite_is_forked(run: Command, node: NodeDouble, source: str, checkpoint: str | None) -> None:
    assert said(run("fork", source, "copy")) == f"forked copy from {source}\n"
    (verb, asked), *_ = node.asked
    assert (verb, asked["request"].name, asked["request"].checkpoint) == ("fork", "copy", checkpoint)


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [("web@", "copy", "names no checkpoint"), ("web", "web", "the name is taken"), ("web@v7", "copy", "'v7'"),
     ("nosuch", "copy", "'nosuch'"), ("web", "Copy", "name: ")],
)  # fmt: skip
def test_a_fork_that_cannot_be_is_refused(run: Command, node: NodeDouble, source: str, name: str, says: str) -> None:
    sentence, hint = refused(run("fork", source, name))
    assert says in sentence and hint.strip()
    assert list(node.sprites) == [("o1", "web")]


@pytest.mark.parametrize(
    ("verb", "says"), [("sync", "synced web"), ("sleep", "put web to sleep"), ("wake", "woke web")]
)
@pytest.mark.parametrize("chosen", [[], ["web"]])
def test_sync_sleep_and_wake(run: Command, node: NodeDouble, verb: str, says: str, chosen: list[str]) -> None:
    assert said(run(verb, *chosen)) == f"{says}\n"
    assert node.asked == [(verb, {})]


def test_info_shows_the_disk(run: Command, node: NodeDouble) -> None:
    shown = said(run("info"))
    disk = json.loads(said(run("info", "--json")))["disk"]
    assert disk["place"] == "partly"
    rows = {
        "disk": disk["place"],
        "written": f"{columns.size(disk['bytes_written'])} of {columns.size(disk['size'])}",
        "stored": columns.size(disk["bytes_stored"]),
        "checkpoints": str(len(node.checkpoints_of["o1", "web"])),
        "durability lag": f"{disk['lag_seconds']:.1f} s",
        "durable state of": columns.moment(START.isoformat()),
    }
    words = {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in shown.splitlines()}
    assert rows.items() <= words.items()
    node.lag = None
    assert ["durability lag", "none"] in [
        [cell.strip() for cell in line.split("  ", 1)] for line in said(run("info")).splitlines()
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 10, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert columns.size(count) == text
