"""The catalogue: what is built appears at once and whole, whatever goes wrong. Builds are stand-ins here."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from ballpoint.core.errors import CorruptError, NotFoundError, UnavailableError
from ballpoint.image import catalogue as module
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.progress import Progress
from ballpoint.image.recipe import Recipe
from tests.support.waiting import eventually


class Builder:
    """Stands in for the real build: writes `content`, or fails with `error` half-way."""

    def __init__(self) -> None:
        self.content = b"image"
        self.error: BaseException | None = None
        self.calls: list[str | None] = []

    def __call__(
        self, recipe: Recipe, target: Path, work: Path, *, mirror: str | None, progress: Callable[[Progress], None]
    ) -> None:
        self.calls.append(mirror)
        (work / "root").mkdir()
        (work / "root/file").write_bytes(self.content)
        if self.error is not None:
            raise self.error
        target.write_bytes(self.content)
        progress(Progress("writing the image", 0.5))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(module, "build_filesystem", made)
    return made


def build(cache: Path, recipe: str = "slim", mirror: str | None = None) -> Image:
    return Catalogue(cache).build(recipe, mirror=mirror, progress=lambda _: None)


def ensure(cache: Path, recipe: str = "slim") -> Image:
    return Catalogue(cache).ensure(recipe, mirror=None, progress=lambda _: None)


def names(cache: Path) -> set[str]:
    return {path.name for path in (cache / "images").glob("*")} - {".lock"}


def test_a_build_is_found_by_its_digest(tmp_path: Path, builder: Builder) -> None:
    image = build(tmp_path, mirror="http://m.example/debian")
    catalogue = Catalogue(tmp_path)
    assert image.digest == blake3(builder.content).hexdigest()
    assert image.path.read_bytes() == builder.content
    assert image.size == len(builder.content)
    assert builder.calls == ["http://m.example/debian"]
    assert catalogue.find(image.digest) == image
    assert catalogue.list() == [image]
    assert catalogue.current("slim") == image
    assert catalogue.current("standard") is None
    assert names(tmp_path) == {image.digest}


def test_a_cache_may_be_moved(tmp_path: Path, builder: Builder) -> None:
    digest = build(tmp_path / "a").digest
    (tmp_path / "a").rename(tmp_path / "b")
    assert Catalogue(tmp_path / "b").find(digest).path == tmp_path / "b/images" / digest / "image.erofs"


def test_the_same_bytes_are_one_image_and_the_newest(tmp_path: Path, builder: Builder) -> None:
    first = build(tmp_path)
    builder.content = b"other packages"
    second = build(tmp_path)
    builder.content = b"image"
    third = build(tmp_path)
    assert third.digest == first.digest
    assert Catalogue(tmp_path).current("slim") == third
    assert {image.digest for image in Catalogue(tmp_path).list()} == {first.digest, second.digest}


def test_ensure_builds_once(tmp_path: Path, builder: Builder) -> None:
    assert ensure(tmp_path) == ensure(tmp_path)
    assert len(builder.calls) == 1


def test_ensure_builds_anew_for_another_text(tmp_path: Path, builder: Builder) -> None:
    image = ensure(tmp_path)
    record = image.path.with_name("image.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "recipe_digest": "an older text"}))
    assert Catalogue(tmp_path).current("slim") is None
    ensure(tmp_path)
    assert len(builder.calls) == 2


@pytest.mark.parametrize("error", [UnavailableError("no mirror"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(tmp_path: Path, builder: Builder, error: BaseException) -> None:
    kept = build(tmp_path)
    builder.error = error
    with pytest.raises(type(error)):
        build(tmp_path)
    assert Catalogue(tmp_path).list() == [kept]
    assert names(tmp_path) == {kept.digest}


def test_what_a_killed_process_left_is_unseen_and_swept(tmp_path: Path, builder: Builder) -> None:
    root = tmp_path / "images"
    for leftover in (".build-1", ".build-1-done", ".removed-" + "a" * 64):
        (root / leftover / "root/etc").mkdir(parents=True)
        (root / leftover / "image.erofs").write_bytes(b"half")
    assert Catalogue(tmp_path).list() == []
    image = ensure(tmp_path)
    assert names(tmp_path) == {image.digest}


def test_a_second_process_waits_for_the_first(tmp_path: Path, builder: Builder) -> None:
    catalogue = Catalogue(tmp_path)
    said: list[str] = []
    (tmp_path / "images").mkdir()
    with (tmp_path / "images/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(
            target=lambda: catalogue.ensure("slim", mirror=None, progress=lambda each: said.append(each.step))
        )
        waiting.start()
        eventually(lambda: said)
        assert builder.calls == []
    waiting.join()
    assert said[0] == "waiting for a build that is under way"
    assert said[-1] == "done"
    assert len(builder.calls) == 1


def test_many_that_want_an_image_build_it_once(tmp_path: Path, builder: Builder) -> None:
    threads = [threading.Thread(target=ensure, args=(tmp_path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builder.calls) == 1


def test_remove(tmp_path: Path, builder: Builder) -> None:
    image = build(tmp_path)
    fd = os.open(image.path, os.O_RDONLY)
    assert Catalogue(tmp_path).remove(image.digest)
    assert not Catalogue(tmp_path).remove(image.digest)
    assert os.read(fd, 100) == builder.content  # who uses it keeps it
    os.close(fd)
    assert names(tmp_path) == set()
    with pytest.raises(NotFoundError):
        Catalogue(tmp_path).find(image.digest)
    assert build(tmp_path).digest == image.digest


@pytest.mark.parametrize("digest", ["", ".", "..", "../images", "a" * 63, "A" * 64, "a" * 64])
def test_unknown_digests(tmp_path: Path, digest: str) -> None:
    with pytest.raises(NotFoundError):
        Catalogue(tmp_path).find(digest)
    assert not Catalogue(tmp_path).remove(digest)


def test_an_unknown_recipe_changes_nothing(tmp_path: Path, builder: Builder) -> None:
    for verb in (build, ensure):
        with pytest.raises(NotFoundError):
            verb(tmp_path, "alpine")
    assert builder.calls == []
    assert names(tmp_path) == set()


def _truncate(image: Image) -> None:
    os.truncate(image.path, 1)


def _empty_record(image: Image) -> None:
    image.path.with_name("image.json").write_bytes(b"")


def _half_record(image: Image) -> None:
    image.path.with_name("image.json").write_bytes(b'{"recipe":"slim"}')


def _lose_file(image: Image) -> None:
    image.path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _empty_record, _half_record, _lose_file])
def test_damage_is_said_with_what_to_do(tmp_path: Path, builder: Builder, damage: Callable[[Image], None]) -> None:
    image = build(tmp_path)
    damage(image)
    for look in (Catalogue(tmp_path).list, lambda: Catalogue(tmp_path).find(image.digest), lambda: ensure(tmp_path)):
        with pytest.raises(CorruptError) as caught:
            look()
        assert str(image.path.parent) in str(caught.value.hint)
