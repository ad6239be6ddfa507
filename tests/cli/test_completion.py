"""What a shell completes, asked as shells ask."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.answers import Answers, answering
from tests.cli.command import DEADLINE, ballpoint

# What bash does when somebody types a line and then Tab, and what it would offer.
_TAB = r"""
set -eu
eval "$(ballpoint completion bash)"
COMP_LINE=$1
COMP_POINT=${#COMP_LINE}
read -ra COMP_WORDS <<<"$COMP_LINE"
[ "${COMP_LINE: -1}" != " " ] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p ballpoint | sed 's/.* -F \([^ ]*\) .*/\1/')
COMPREPLY=()
"$function" ballpoint
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def node() -> Iterator[Answers]:
    with answering() as made:
        sprites = [{"name": name, "status": "running"} for name in ("web", "worker", "db")]
        made.answer("GET", "/v1/sprites", 200, {"sprites": sprites})
        for sprite in ("web", "db"):
            below = f"/v1/sprites/{sprite}"
            checkpoints = [{"id": f"{sprite}-v{n}", "comment": "line\nline"} for n in range(2)]
            made.answer("GET", f"{below}/checkpoints", 200, checkpoints)
            made.answer("GET", f"{below}/exec", 200, {"sessions": [{"id": "271", "command": "bash -l"}]})
            made.answer("GET", f"{below}/services", 200, [{"name": "app", "cmd": "x"}])
        yield made


def tab(line: str, home: Path, url: str, seconds: float = 60) -> list[str]:
    """What bash offers after `line`."""
    bin_ = home / "bin"
    bin_.mkdir(exist_ok=True)
    program = bin_ / "ballpoint"
    # Its time is a person's patience with Tab; a machine with much to do has a longer one.
    patient = (
        f"from ballpoint.cli.client import complete; complete._SECONDS = {seconds}; "
        "from ballpoint.cli.main import main; main()"
    )
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", patient])} "$@"\n')
    program.chmod(0o755)

    environment = {
        **os.environ, "HOME": str(home), "SPRITES_API_URL": url, "SPRITE_TOKEN": "acme/o/t/v",
        "PATH": f"{bin_}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", _TAB, "bash", line], capture_output=True, text=True, timeout=DEADLINE, cwd=home, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ballpoint chec", ["check", "checkpoint"]),
        ("ballpoint sessions ", ["attach", "kill", "list"]),
        ("ballpoint info w", ["web", "worker"]),
        ("ballpoint -s d", ["db"]),
        ("ballpoint destroy ", ["web", "worker", "db"]),
        ("ballpoint -s web restore ", ["web-v0", "web-v1"]),
        ("ballpoint -s db checkpoint info db-v1", ["db-v1"]),
        ("ballpoint -s web attach ", ["271"]),
        ("ballpoint checkpoint -s w", ["web", "worker"]),
        ("ballpoint restore -s db db-v1", ["db-v1"]),
        ("ballpoint -s web services stop a", ["app"]),
        ("ballpoint -s web services stop b", []),
        ("ballpoint list --js", ["--json"]),
    ],
)
def test_bash_completes(node: Answers, tmp_path: Path, line: str, offered: list[str]) -> None:
    assert tab(line, tmp_path, node.url) == offered


def test_the_sprite_that_is_selected_is_asked(node: Answers, tmp_path: Path) -> None:
    (tmp_path / ".sprite").write_text('{"organization": "acme", "sprite": "web"}')
    assert tab("ballpoint restore web-v0", tmp_path, node.url) == ["web-v0"]


def test_trouble_is_silence(tmp_path: Path) -> None:
    """A node that does not answer, one that is not there, and one that answers something else."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert tab("ballpoint info ", tmp_path, url, seconds=1) == []
    assert tab("ballpoint info ", tmp_path, url) == []
    assert tab("ballpoint info ", tmp_path, "nonsense") == []
    with answering() as empty:
        assert tab("ballpoint info ", tmp_path, empty.url) == []
        empty.answer("GET", "/v1/sprites", 200, ["nonsense"])
        assert tab("ballpoint info ", tmp_path, empty.url) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(tmp_path: Path, shell: str) -> None:
    done = ballpoint(tmp_path, "completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_BALLPOINT_COMPLETE={shell}_complete" in done.stdout
    assert ballpoint(tmp_path, "completion", "csh").returncode == 2
