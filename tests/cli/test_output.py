"""What commands print, for people and for programs, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.cli.command import COMMAND, DEADLINE, ballpoint
from tests.support.nodes import CACHE, TestNode


def table(home: Path, *arguments: str) -> list[dict[str, str]]:
    """A list as a program reads it that splits at two spaces, by the words of its heading."""
    done = ballpoint(home, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in done.stdout.splitlines()]
    return [dict(zip(heading, row, strict=True)) for row in rows]


@pytest.mark.node
def test_lists_have_a_heading_and_as_many_cells_in_each_row(node: TestNode, home: Path) -> None:
    name = f"t-{ids.new_instance_id()}"
    assert ballpoint(home, "create", name, "--skip-console").returncode == 0
    (row,) = [row for row in table(home, "list") if row["NAME"] == name]
    assert (row["STATUS"], row["LABELS"]) == ("running", "-")
    assert name in [sprite["name"] for sprite in json.loads(ballpoint(home, "list", "--json").stdout)]
    kinds = [line.split("  ")[1] for line in ballpoint(home, "events", name).stdout.splitlines()]
    told = [json.loads(line)["kind"] for line in ballpoint(home, "events", name, "--json").stdout.splitlines()]
    assert kinds == told != []
    assert ballpoint(home, "logs", name).returncode == 0
    # Without a terminal nobody can be asked.
    refused = ballpoint(home, "destroy", name)
    assert (refused.returncode, refused.stdout) == (1, "") and "--force" in refused.stderr
    assert ballpoint(home, "destroy", name, "--force").returncode == 0

    assert [row["ORGANIZATION"] for row in table(home, "token", "list", "--data", str(node.data))] == ["acme"]
    assert [row["STATE"] for row in table(home, "token", "list", "--data", str(node.data))] == ["valid"]


@pytest.mark.usefixtures("slim_image")
def test_images_are_listed_and_none_is_no_error(tmp_path: Path) -> None:
    rows = table(tmp_path, "image", "list", "--cache", str(CACHE))
    images = json.loads(ballpoint(tmp_path, "image", "list", "--cache", str(CACHE), "--json").stdout)
    assert [row["DIGEST"] for row in rows] == [image["digest"][:16] for image in images]
    assert "yes" in [row["NEW SPRITES"] for row in rows if row["RECIPE"] == "slim"]
    assert table(tmp_path, "image", "list", "--cache", str(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["info", "x"], ["events", "x"], ["logs", "x"], ["token", "list", "--data", "/nonexistent"],
     ["token", "revoke", "x", "--data", "/nonexistent"], ["login", "http://127.0.0.1:1"], ["serve", "--listen", "x"]],
)  # fmt: skip
def test_an_error_is_one_sentence_and_a_hint(tmp_path: Path, arguments: list[str]) -> None:
    done = ballpoint(tmp_path, *arguments)
    assert done.returncode != 0 and done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("ballpoint: ") and hint.startswith("  ") and hint.strip()


def test_what_only_root_may_do_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer is the kernel's."""
    place = tmp_path / "immutable"
    place.mkdir()
    script = (
        "import os, sys; from ballpoint.cli.main import main\n"
        f"def refuse(*_, **__): raise PermissionError(13, 'no', '{place}')\n"
        "os.mkdir = refuse; sys.argv[1:] = ['image', 'build', 'slim', '--cache', "
        + repr(str(place / "c"))
        + "]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"ballpoint: this user may not use {place}", "  run it as root, or with sudo"]


@pytest.mark.parametrize("arguments", [["--help"], ["image", "list", "--cache", str(CACHE)], ["doctor", "--json"]])
def test_a_reader_that_goes_away_is_nobodys_trouble(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=DEADLINE
        )
    finally:
        os.close(writer)
    assert done.returncode != 0
    assert done.stderr == ""
