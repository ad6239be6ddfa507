"""Who uses an image, and which images go: with several nodes on one cache directory."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ballpoint.cli.main import cli
from ballpoint.core.config import load_config
from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from ballpoint.image import uses as module
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.uses import UNUSED_SECONDS, Uses

from .test_catalogue import Builder, build, builder

__all__ = ["builder"]


def made(cache: Path, builder: Builder, *contents: str, recipe: str = "slim") -> list[Image]:
    """Images of one recipe, the newest last; their dates are far apart."""
    images = []
    for year, content in enumerate(contents, 2001):
        builder.content = content.encode()
        image = build(cache, recipe)
        record = image.path.with_name("image.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), "built_at": f"{year}-01-01T00:00:00Z"}))
        os.utime(record, (1e9, 1e9))
        images.append(Catalogue(cache).find(image.digest))
    return images


def digests(cache: Path) -> set[str]:
    return {image.digest for image in Catalogue(cache).list()}


def test_what_nobody_uses_goes_when_a_newer_one_is_there(tmp_path: Path, builder: Builder) -> None:
    first, second, last = made(tmp_path, builder, "1", "2", "3")
    (other,) = made(tmp_path, builder, "other", recipe="standard")
    uses = Uses(tmp_path)
    assert uses.current("a", tmp_path / "a", "slim", [first.digest]) == last
    assert uses.prune() == [second]
    assert uses.prune() == []
    assert digests(tmp_path) == {first.digest, last.digest, other.digest}


def test_every_node_of_the_host_counts_running_or_not(tmp_path: Path, builder: Builder) -> None:
    first, second, last = made(tmp_path, builder, "1", "2", "3")
    for name, image in (("a", first), ("b", second)):
        Uses(tmp_path).record(name, tmp_path / name, [image.digest])
    for image in (first, second):
        os.utime(Catalogue(tmp_path).record(image.digest), (1e9, 1e9))
    assert Uses(tmp_path).prune() == []
    Uses(tmp_path).record("a", tmp_path / "a", [])
    os.utime(Catalogue(tmp_path).record(first.digest), (1e9, 1e9))
    assert set(Uses(tmp_path).read()) == {"b"}
    assert Uses(tmp_path).prune() == [first]
    assert digests(tmp_path) == {second.digest, last.digest}


def test_an_image_that_was_used_lately_stays_for_a_while(tmp_path: Path, builder: Builder) -> None:
    first, _ = made(tmp_path, builder, "1", "2")
    uses = Uses(tmp_path)
    uses.record("a", tmp_path / "a", [first.digest])
    uses.record("a", tmp_path / "a", [])
    record = Catalogue(tmp_path).record(first.digest)
    assert uses.prune() == []
    was = record.stat().st_mtime
    os.utime(record, (was - UNUSED_SECONDS + 3600,) * 2)
    assert uses.prune() == []
    os.utime(record, (was - UNUSED_SECONDS - 1,) * 2)
    assert uses.prune() == [first]


def test_what_this_program_would_not_build_is_not_for_it_to_judge(tmp_path: Path, builder: Builder) -> None:
    newer, older, current = made(tmp_path, builder, "1", "2", "3")
    for image, year, recipe in ((newer, 2030, "slim"), (older, 1999, "a recipe of long ago")):
        record = image.path.with_name("image.json")
        changed = {"built_at": f"{year}-01-01T00:00:00Z", "recipe_digest": "another text", "recipe": recipe}
        record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
    assert Uses(tmp_path).prune(unused_seconds=0) == []
    assert digests(tmp_path) == {newer.digest, older.digest, current.digest}


def test_nothing_goes_while_a_build_is_under_way(tmp_path: Path, builder: Builder) -> None:
    first, _ = made(tmp_path, builder, "1", "2")
    with (tmp_path / "images/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Uses(tmp_path).prune() == []
    assert Uses(tmp_path).prune() == [first]


@pytest.mark.parametrize(
    ("text", "kind"),
    [(b"", CorruptError), (b"{", CorruptError), (b'{"data":"/x"}', CorruptError), (b"\xff", CorruptError),
     (b'{"data":"/x","digests":[],"format":2}', ConflictError)],
)  # fmt: skip
def test_nothing_goes_while_a_record_cannot_be_read(
    tmp_path: Path, builder: Builder, text: bytes, kind: type[Exception]
) -> None:
    images = made(tmp_path, builder, "1", "2")
    record = tmp_path / "images/.uses/b.json"
    uses = Uses(tmp_path)
    uses.record("a", tmp_path / "a", [])
    record.write_bytes(text)
    with pytest.raises(kind) as caught:
        uses.prune()
    assert str(record) in str(caught.value)
    assert digests(tmp_path) == {image.digest for image in images}
    uses.current("b", tmp_path / "b", "slim", [])  # its node writes it anew
    assert uses.prune() == [images[0]]


def test_who_takes_an_image_and_who_removes_it_do_not_meet(tmp_path: Path, builder: Builder) -> None:
    """Whatever the order: an image that a node has recorded is there."""
    for _ in range(20):
        first, last = made(tmp_path, builder, "1", "2")
        uses = Uses(tmp_path)
        together = threading.Barrier(2)
        removed: list[Image] = []

        def remove(uses: Uses = uses, together: threading.Barrier = together, removed: list[Image] = removed) -> None:
            together.wait()
            removed += uses.prune()

        thread = threading.Thread(target=remove)
        thread.start()
        together.wait()
        assert Uses(tmp_path).current("a", tmp_path / "a", "slim", []) == last
        thread.join()
        assert removed == [first]
        assert Catalogue(tmp_path).find(last.digest) == last


def test_a_lock_that_nobody_gives_back(tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, builder, "1")
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    uses = Uses(tmp_path)
    uses.record("a", tmp_path / "a", [])
    with (tmp_path / "images/.uses/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError):
            uses.current("a", tmp_path / "a", "slim", [])
    assert uses.read() == {}


def test_a_missing_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Uses(tmp_path).current("a", tmp_path / "a", "slim", [])
    assert "ballpoint image build slim" in str(caught.value.hint)
    assert Uses(tmp_path).read() == {}


def test_an_image_of_a_later_version_is_passed_over(
    tmp_path: Path, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    later, first, last = made(tmp_path, builder, "0", "1", "2")
    record = later.path.with_name("image.json")
    text = record.read_text().replace('"format": 1', '"format": 2')
    record.write_text(text)
    catalogue = Catalogue(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert catalogue.list() == [first, last]
    assert later.digest[:16] in caplog.text
    assert catalogue.current("slim") == last
    with pytest.raises(ConflictError):
        catalogue.find(later.digest)
    builder.content = b"0"
    with pytest.raises(ConflictError):
        build(tmp_path)
    assert record.read_text() == text
    assert Uses(tmp_path).prune() == [first]
    assert later.path.exists()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["image", *arguments])


def test_the_command_line_says_who_uses_what_and_removes_the_rest(tmp_path: Path, builder: Builder) -> None:
    first, second, last = made(tmp_path, builder, "1", "2", "3")
    data = tmp_path / "gone"
    Uses(tmp_path).record(load_config(None, data=data).node_id, data, [first.digest])
    heading, *shown = command("list", "--cache", str(tmp_path)).output.splitlines()
    assert heading.endswith("USED BY")
    assert [(line.split()[0], line.split()[-1]) for line in shown] == [
        (first.digest[:16], str(data)), (second.digest[:16], "-"), (last.digest[:16], "-"),
    ]  # fmt: skip
    told = json.loads(command("list", "--json", "--cache", str(tmp_path)).output)
    assert [each["used_by"] for each in told] == [[str(data)], [], []]
    assert second.digest[:16] in command("prune", "--cache", str(tmp_path)).output
    assert digests(tmp_path) == {first.digest, last.digest}
    assert isinstance(command("prune", "--cache", str(tmp_path), "--forget", "/no/node").exception, NotFoundError)
    assert first.digest[:16] in command("prune", "--cache", str(tmp_path), "--forget", str(data)).output
    assert digests(tmp_path) == {last.digest}
    assert Uses(tmp_path).read() == {}
