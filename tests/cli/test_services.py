"""`ballpoint services`, against a server that speaks the contract (2.5)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.answers import Answers, answering
from tests.cli.command import COMMAND, DEADLINE, ballpoint

BELOW = "/v1/sprites/web/services"
WEB = {
    "name": "app",
    "cmd": "python3",
    "args": ["-m", "http.server"],
    "needs": ["db"],
    "http_port": 8000,
    "env": {"A": "1"},
    "dir": "/srv",
    "state": {
        "name": "app", "status": "running", "pid": 271, "started_at": "2026-01-02T03:04:05Z", "restart_count": 2
    },
}  # fmt: skip
BARE = {"name": "db", "cmd": "db", "args": None, "needs": None, "http_port": None}
STARTED = {"type": "started", "timestamp": 1}
COMPLETE = {"type": "complete", "timestamp": 9, "log_files": {"combined": "/.sprite/logs/services/app.log"}}

Command = Callable[..., subprocess.CompletedProcess[str]]


def event(kind: str, data: str = "", moment: int = 2, **more: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": moment, **({"data": data} if data else {}), **more}


@pytest.fixture
def node() -> Iterator[Answers]:
    with answering() as made:
        yield made


@pytest.fixture
def run(node: Answers, tmp_path: Path) -> Command:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return ballpoint(
            tmp_path, "-s", "web", "services", *arguments, SPRITES_API_URL=node.url, SPRITE_TOKEN="acme/o/t/v"
        )

    return run


def told(done: subprocess.CompletedProcess[str]) -> tuple[int, str, list[str]]:
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_services_are_listed_and_shown(run: Command, node: Answers) -> None:
    node.answer("GET", BELOW, 200, [WEB, BARE])
    node.answer("GET", f"{BELOW}/app", 200, WEB)
    heading, first, second = [
        [cell.strip() for cell in line.split("  ") if cell] for line in run("list").stdout.splitlines()
    ]
    assert heading == ["NAME", "STATUS", "PID", "HTTP PORT", "NEEDS", "COMMAND"]
    assert first == ["app", "running", "271", "8000", "db", "python3 -m http.server"]
    assert second == ["db", "-", "-", "-", "-", "db"]
    assert json.loads(run("list", "--json").stdout) == [WEB, BARE]
    assert json.loads(run("get", "app", "--json").stdout) == WEB
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in run("get", "app").stdout.splitlines()}
    assert (shown["status"], shown["pid"], shown["restarts"], shown["env A"]) == ("running", "271", "2", "1")
    assert shown["command"] == '["python3", "-m", "http.server"]'
    missing = run("get", "none")
    assert told(missing)[:2] == (1, "") and "there is no such thing" in missing.stderr


def test_a_service_is_made_and_what_it_writes_is_shown(run: Command, node: Answers) -> None:
    node.stream("PUT", f"{BELOW}/app", STARTED, event("stdout", "out"), event("stderr", "err\n"), COMPLETE)
    done = run(
        "create", "app", "--cmd", "python3", "--args", "-m,http.server", "--args", "8000", "--env", "A=1,B=2",
        "--dir", "/srv", "--needs", "db,cache", "--http-port", "8000", "--duration", "3s",
    )  # fmt: skip
    assert told(done) == (0, "out\n", ["started", "err"])
    (asked,) = node.asked
    assert asked.query == {"duration": "3s"}
    assert asked.json == {
        "cmd": "python3", "args": ["-m", "http.server", "8000"], "env": {"A": "1", "B": "2"}, "needs": ["db", "cache"],
        "dir": "/srv", "http_port": 8000,
    }  # fmt: skip
    assert asked.headers["Authorization"] == "Bearer acme/o/t/v"


def test_what_is_left_out_is_the_nodes_to_say(run: Command, node: Answers) -> None:
    node.stream("PUT", f"{BELOW}/app", STARTED, event("stdout", "out"), COMPLETE)
    assert told(run("create", "app", "--cmd", "x", "--no-stream")) == (0, "", ["started"])
    done = run("create", "app", "--cmd", "x", "--json")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["started", "stdout", "complete"]
    assert done.stderr == ""
    assert [(asked.query, asked.json) for asked in node.asked] == [
        ({"duration": "0s"}, {"cmd": "x"}),
        ({}, {"cmd": "x"}),
    ]
    assert run("create", "app").returncode == 2
    assert run("create", "app", "--cmd", "x", "--no-stream", "--duration", "1s").returncode == 1
    assert run("create", "app", "--cmd", "x", "--env", "nothing").returncode == 1
    assert len(node.asked) == 2


@pytest.mark.parametrize(("verb", "flag"), [("start", "duration"), ("restart", "duration"), ("stop", "timeout")])
def test_services_are_started_and_stopped(run: Command, node: Answers, verb: str, flag: str) -> None:
    node.stream("POST", f"{BELOW}/app/{verb}", event("stopping"), event("stopped", exit_code=143), COMPLETE)
    assert told(run(verb, "app", f"--{flag}", "2s")) == (0, "", ["stopping", "stopped with 143"])
    assert node.asked[0].query == {flag: "2s"}


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([STARTED, event("exit", exit_code=7), COMPLETE], "ballpoint: the service ended with 7"),
        ([STARTED, event("error", "no such program"), COMPLETE], "ballpoint: no such program"),
        ([event("error", "db does not start")], "ballpoint: db does not start"),
        ([STARTED], "ballpoint: the connection ended before the node said how it went"),
        ([], "ballpoint: the connection ended before the node said how it went"),
    ],
)
def test_a_start_that_fails_is_the_commands_failure(
    run: Command, node: Answers, events: list[dict[str, Any]], sentence: str
) -> None:
    node.stream("POST", f"{BELOW}/app/start", *events)
    code, out, err = told(run("start", "app"))
    assert (code, out, err[-2]) == (1, "", sentence)


def test_one_that_ended_well_is_no_failure(run: Command, node: Answers) -> None:
    node.stream("POST", f"{BELOW}/app/start", STARTED, event("exit", exit_code=0), COMPLETE)
    node.stream("POST", f"{BELOW}/app/restart", STARTED, event("exit", exit_code=1), STARTED, COMPLETE)
    assert told(run("start", "app")) == (0, "", ["started", "exit with 0"])
    assert run("restart", "app").returncode == 0


def test_signals_and_deletes(run: Command, node: Answers) -> None:
    node.answer("POST", f"{BELOW}/signal", 204)
    node.answer("DELETE", f"{BELOW}/a%2Fb", 204)
    node.answer("DELETE", f"{BELOW}/db", 409, {"error": "conflict", "message": "app needs it", "hint": "delete app"})
    assert told(run("signal", "app", "HUP")) == (0, "sent HUP to app\n", [])
    assert node.asked[0].json == {"name": "app", "signal": "HUP"}
    assert told(run("delete", "a/b")) == (0, "deleted a/b\n", [])
    assert told(run("delete", "db")) == (1, "", ["ballpoint: app needs it", "  delete app"])


def test_logs_are_shown_on_the_streams_they_came_from(run: Command, node: Answers) -> None:
    node.stream("GET", f"{BELOW}/app/logs", event("stdout", "one"), event("stderr", "two"), event("exit", exit_code=1),
                event("stdout", "three"), COMPLETE)  # fmt: skip
    assert told(run("logs", "app", "--lines", "5")) == (0, "one\nthree\n", ["two", "exit with 1"])
    assert told(run("logs", "app", "--duration", "2s"))[0] == 0
    assert [asked.query for asked in node.asked] == [{"lines": "5"}, {"duration": "2s"}]
    assert run("logs", "app", "--duration", "2s", "-f").returncode == 1


def test_a_log_that_is_followed_goes_on_where_an_answer_ends(run: Command, node: Answers, tmp_path: Path) -> None:
    """The next answer begins with what was shown, of which nothing is shown twice and nothing new is left out."""
    path = f"{BELOW}/app/logs"
    node.stream("GET", path, event("stdout", "a", 1), event("stdout", "b", 2), event("stdout", "b", 2), COMPLETE)
    same = [event("stdout", "b", 2)] * 3
    node.stream("GET", path, event("stdout", "a", 1), *same, event("stdout", "c", 3), COMPLETE)
    node.stream("GET", path, *same, event("stdout", "c", 3), event("stdout", "c", 4), COMPLETE)
    node.to["GET", path].append((503, "application/json", [b'{"message": "the sprite stops"}']))
    assert told(run("logs", "app", "-f"))[:2] == (1, "a\nb\nb\nb\nc\nc\n")
    assert "lines" not in node.asked[0].query
    assert all(asked.query["lines"] == node.asked[1].query["lines"] != "0" for asked in node.asked[1:])


def test_events_come_as_they_are_said(node: Answers, tmp_path: Path) -> None:
    """And not once the answer is there: a reader that goes ends it."""
    many = [event("stdout", f"line {n}", n) for n in range(5000)]
    node.stream("GET", f"{BELOW}/app/logs", *many, COMPLETE)
    environment = {**os.environ, "HOME": str(tmp_path), "SPRITES_API_URL": node.url, "SPRITE_TOKEN": "acme/o/t/v"}
    with subprocess.Popen(
        [*COMMAND, "-s", "web", "services", "logs", "app", "-f"], stdout=subprocess.PIPE, text=True, env=environment,
        cwd=tmp_path,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for number in range(5000):
            assert process.stdout.readline() == f"line {number}\n"
        process.terminate()
        assert process.wait(DEADLINE) != 0
