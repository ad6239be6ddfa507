"""`ballpoint file`: into a sprite, out of it, and in an editor."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ballpoint.core import ids
from tests.cli.command import COMMAND, DEADLINE, Terminal, ballpoint

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def sprite(home: Path) -> Iterator[str]:
    name = f"t-{ids.new_instance_id()}"
    assert ballpoint(home, "create", name, "--skip-console").returncode == 0
    yield name
    assert ballpoint(home, "destroy", name, "--force").returncode == 0


@pytest.fixture
def place() -> str:
    """A directory of the sprite's that is not there yet."""
    return f"/tmp/{ids.new_instance_id()}"


def said(home: Path, *arguments: str, **more: str) -> str:
    done = ballpoint(home, *arguments, inside=None, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(home: Path, *arguments: str, **more: str) -> str:
    """What it says about that."""
    done = ballpoint(home, *arguments, inside=None, **more)
    assert (done.returncode, done.stdout) == (1, "")
    sentence, *hint = done.stderr.splitlines()
    assert sentence.startswith("ballpoint: ") and all(line.startswith("  ") for line in hint)
    return done.stderr


def inside(home: Path, sprite: str, script: str) -> str:
    return said(home, "-s", sprite, "exec", "--", "sh", "-c", script)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_goes_in_and_comes_out_with_its_mode(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    (tmp_path / "a file").write_bytes(data)
    (tmp_path / "a file").chmod(0o751)
    assert said(home, "file", "push", str(tmp_path / "a file"), f"{sprite}:{place}/new/b") == ""
    assert inside(home, sprite, f"stat -c '%a %s' {place}/new/b; ls -A {place}/new") == f"751 {5 << 20}\nb\n"
    (tmp_path / "out").mkdir()
    assert said(home, "-s", sprite, "file", "pull", f"{place}/new/b", str(tmp_path / "out")) == ""
    assert (tmp_path / "out" / "b").read_bytes() == data
    assert mode(tmp_path / "out" / "b") == 0o751
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["b"]
    # Over a file that is there; into a directory that is there; by a path from the sprite's home.
    (tmp_path / "a file").write_bytes(b"short")
    (tmp_path / "a file").chmod(0o600)
    said(home, "-s", sprite, "file", "push", str(tmp_path / "a file"), f"{place}/new/b")
    said(home, "-s", sprite, "file", "push", str(tmp_path / "a file"), str(tmp_path / "out" / "b"), f"{place}/new")
    assert inside(home, sprite, f"cd {place}/new; cat b | wc -c; stat -c %a b 'a file'") == f"{5 << 20}\n751\n600\n"
    said(home, "-s", sprite, "file", "push", str(tmp_path / "a file"), "in-home")
    assert inside(home, sprite, "cat /home/sprite/in-home") == "short"
    (tmp_path / "out" / "link").symlink_to("b")
    said(home, "file", "pull", f"{sprite}:in-home", str(tmp_path / "out" / "link"))
    assert (tmp_path / "out" / "b").read_bytes() == b"short"


def test_standard_input_and_output(home: Path, sprite: str, place: str) -> None:
    data = os.urandom(100_000)
    environment = {**os.environ, "HOME": str(home)}
    put = [*COMMAND, "-s", sprite, "file", "push", "-", f"{place}/x"]
    subprocess.run(put, input=data, check=True, timeout=DEADLINE, cwd=home, env=environment)
    get = [*COMMAND, "-s", sprite, "file", "pull", f"{place}/x", "-"]
    done = subprocess.run(get, capture_output=True, check=True, timeout=DEADLINE, cwd=home, env=environment)
    assert (done.stdout, done.stderr) == (data, b"")
    assert "is a directory" in refused(home, "-s", sprite, "file", "push", "-", place)


def test_a_tree_goes_in_and_comes_out(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "private").mkdir(mode=0o700)
    (tree / "private" / "key").write_text("secret")
    (tree / "private" / "key").chmod(0o400)
    (tree / os.fsdecode(b"caf\xc3\xa9 #?&")).write_text("x")
    assert "-r copies it" in refused(home, "-s", sprite, "file", "push", str(tree), place)
    said(home, "-s", sprite, "file", "push", "-r", str(tree), place)
    found = "./caf\u00e9 #?& 644\n./empty 755\n./private 700\n./private/key 400\n"
    assert inside(home, sprite, f"cd {place}; find . -mindepth 1 -printf '%p %m\\n' | sort") == found
    # What is there already makes it go into it.
    said(home, "-s", sprite, "file", "push", "-r", f"{tree}/.", place)
    assert inside(home, sprite, f"cat {place}/tree/private/key") == "secret"

    back = tmp_path / "back"
    assert "-r copies it" in refused(home, "-s", sprite, "file", "pull", place, str(back))
    said(home, "-s", sprite, "file", "pull", "-r", f"{place}/tree", str(back))
    there = {str(each.relative_to(back)): mode(each) for each in back.rglob("*")}
    assert there == {str(each.relative_to(tree)): mode(each) for each in tree.rglob("*")}
    assert (back / "private" / "key").read_text() == "secret"
    said(home, "-s", sprite, "file", "pull", "-r", f"{place}/tree", str(back))
    assert (back / "tree" / "private" / "key").read_text() == "secret"


def test_what_cannot_be_carried_is_refused_before_anything_is_done(
    home: Path, sprite: str, place: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "pipe")
    told = refused(home, "-s", sprite, "file", "push", "-r", str(tree), place)
    assert f"{tree}/link is a symbolic link" in told and "and 1 more like it" in told and "--skip-others" in told
    assert inside(home, sprite, f"ls -d {place} 2>&1 || true").endswith("No such file or directory\n")
    said(home, "-s", sprite, "file", "push", "-r", "--skip-others", str(tree), place)
    assert inside(home, sprite, f"ls -A {place}") == "file\n"
    inside(home, sprite, f"cd {place}; ln -s /etc/passwd link; mkfifo pipe")
    told = refused(home, "-s", sprite, "file", "pull", "-r", place, str(tmp_path / "back"))
    assert f"{place}/link is a symbolic link" in told
    assert not (tmp_path / "back").exists()
    said(home, "-s", sprite, "file", "pull", "-r", "--skip-others", place, str(tmp_path / "back"))
    assert [each.name for each in (tmp_path / "back").iterdir()] == ["file"]
    inside(home, sprite, f"cd {place}; rm link pipe; touch \"$(printf 'b\\377d')\"")
    assert "cannot be used here" in refused(home, "-s", sprite, "file", "pull", "-r", place, str(tmp_path / "more"))


def test_what_is_wrong_is_said(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert f"there is no {tmp_path}/none" in refused(home, "-s", sprite, "file", "push", f"{tmp_path}/none", place)
    assert f"{place} is not in {sprite}" in refused(home, "-s", sprite, "file", "pull", place, str(tmp_path))
    assert "'no-such-sprite'" in refused(home, "file", "push", str(file), f"no-such-sprite:{place}")
    assert "/etc/x" in refused(home, "-s", sprite, "file", "push", str(file), "/etc/x")
    assert "no directory" in refused(home, "-s", sprite, "file", "pull", "/etc/passwd", f"{tmp_path}/none/")
    assert "cannot use" in refused(home, "-s", sprite, "file", "pull", "/etc/passwd", f"{file}/below")
    assert "/etc/passwd" in refused(home, "-s", sprite, "file", "push", str(file), str(file), "/etc/passwd")
    assert file.read_text() == "x"


def test_a_transfer_that_is_interrupted_leaves_what_was_there(
    home: Path, sprite: str, place: str, tmp_path: Path
) -> None:
    inside(home, sprite, f"mkdir {place}; echo former >{place}/x; mkfifo {place}/pipe")
    environment = {**os.environ, "HOME": str(home)}
    reader, writer = os.pipe()
    with subprocess.Popen(
        # A shell's background job ignores what Ctrl+C sends, and so does what it starts.
        ["env", "--default-signal=INT", *COMMAND, "-s", sprite, "file", "push", "-", f"{place}/x"],
        stdin=reader, stderr=subprocess.PIPE,
        cwd=home, env=environment, text=True,
    ) as pushing:  # fmt: skip
        os.close(reader)
        os.write(writer, b"new" * 10_000)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(bytes(4 << 20))  # more than any buffer on the way holds: it is being sent
            pipe.flush()
            pushing.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):  # what it says then says more
                pushing.wait(DEADLINE)
        assert pushing.stderr is not None
        assert (pushing.stderr.read().split(), pushing.returncode) == (["interrupted"], 130)
    assert inside(home, sprite, f"cat {place}/x; ls -A {place}") == "former\npipe\nx\n"


def test_files_are_listed(home: Path, sprite: str, place: str) -> None:
    inside(home, sprite, f"mkdir -p {place}/d; echo hello >{place}/d/a; ln -s a {place}/d/l; touch '{place}/d/b\x1bc'")
    heading, *rows = said(home, "file", "list", f"{sprite}:{place}/d").splitlines()
    assert heading.split() == ["MODE", "SIZE", "MODIFIED", "TYPE", "PATH"]
    assert [row.split()[-1] for row in rows] == [f"{place}/d/a", f"{place}/d/b\\x1bc", f"{place}/d/l"]
    found = json.loads(said(home, "-s", sprite, "file", "list", place, "-r", "--json"))
    assert [(each["name"], each["type"]) for each in found] == [
        ("d", "directory"), ("a", "file"), ("b\x1bc", "file"), ("l", "symlink")
    ]  # fmt: skip


def editor(tmp_path: Path, script: str) -> str:
    """A program that edits by `script`, whose $1 is the file."""
    program = tmp_path / "editor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_file_is_edited(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    inside(home, sprite, f"mkdir {place}; echo one >{place}/x.sh; chmod 750 {place}/x.sh")
    change = editor(tmp_path, 'case $1 in *.sh) ;; *) exit 1;; esac; echo two >>"$1"')
    assert said(home, "-s", sprite, "file", "edit", f"{place}/x.sh", VISUAL=change) == f"wrote {place}/x.sh\n"
    assert inside(home, sprite, f"cat {place}/x.sh; stat -c %a {place}/x.sh") == "one\ntwo\n750\n"
    before = inside(home, sprite, f"stat -c %Z-%i {place}/x.sh")
    nothing = editor(tmp_path, "true")
    assert "stays as it is" in said(home, "-s", sprite, "file", "edit", f"{place}/x.sh", EDITOR=nothing, VISUAL="")
    assert inside(home, sprite, f"stat -c %Z-%i {place}/x.sh") == before
    fails = editor(tmp_path, 'echo three >>"$1"; exit 1')
    failed = ballpoint(home, "-s", sprite, "file", "edit", f"{place}/x.sh", VISUAL=fails)
    assert failed.returncode == 1 and "Editing failed" in failed.stderr
    assert inside(home, sprite, f"cat {place}/x.sh") == "one\ntwo\n"
    new = editor(tmp_path, '[ ! -s "$1" ] && echo new >"$1"')
    said(home, "-s", sprite, "file", "edit", f"{place}/d/new", VISUAL=new)
    assert inside(home, sprite, f"cat {place}/d/new; stat -c %a {place}/d/new") == "new\n644\n"
    assert "is a directory" in refused(home, "-s", sprite, "file", "edit", place, VISUAL=nothing)


def test_an_edit_overwrites_nobody_elses(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    inside(home, sprite, f"mkdir {place}; echo one >{place}/x")
    other = " ".join([*COMMAND, "-s", sprite, "exec", "--", "sh", "-c", f"'echo other >{place}/x'"])
    both = editor(tmp_path, f'{other} </dev/null; echo mine >"$1"')
    told = refused(home, "-s", sprite, "file", "edit", f"{place}/x", VISUAL=both, TMPDIR=str(tmp_path))
    assert "was changed by somebody else meanwhile" in told
    kept = Path(told.rpartition(" ")[2].strip())
    assert kept.read_text() == "mine\n" and mode(kept) == 0o600
    assert inside(home, sprite, f"cat {place}/x") == "other\n"


def test_a_terminal_sees_how_far_it_is(home: Path, sprite: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    terminal = Terminal(home, "-s", sprite, "file", "push", str(tmp_path / "big"), place)
    assert terminal.end() == 0
    assert b"3.0/3.0 MiB" in terminal.said
