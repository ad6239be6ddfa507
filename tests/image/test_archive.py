"""Images in the store: whole or not there, checked on their way back, and the same whoever puts or fetches them."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest
import zstandard
from blake3 import blake3

from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, NotFoundError, UnavailableError
from ballpoint.image import archive
from ballpoint.image.archive import Index, drop, fetch, keep, kept_images
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.progress import Progress
from ballpoint.store.directory import DirectoryStore
from ballpoint.store.faulty import Faults, FaultyStore
from ballpoint.store.store import Items, list_all

_PART = 4096


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PART_BYTES", _PART)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(objects: Path) -> DirectoryStore:
    return DirectoryStore(objects)


def made(cache: Path, content: bytes) -> Image:
    """An image of a host, as a build leaves it."""
    digest = blake3(content).hexdigest()
    catalogue = Catalogue(cache)
    with catalogue.receiving(digest) as file:
        assert file is not None
        file.write_bytes(content)
        return catalogue.admit(digest, recipe="slim", recipe_digest="r" * 64, built_at="2026-01-01T00:00:00Z")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Parts that compress, that do not, that are equal, and a last one that is shorter."""
    seeded = random.Random(7)
    content = bytes(2 * _PART) + seeded.randbytes(3 * _PART) + b"text " * _PART + b"end"
    assert len(content) % _PART
    return made(tmp_path / "here", content)


def away(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "there")


async def fetched(store: DirectoryStore | FaultyStore, catalogue: Catalogue, digest: str) -> Image:
    found = await fetch(store, catalogue, digest)
    assert found is not None
    return found


async def test_an_image_comes_back_as_it_was(store: DirectoryStore, image: Image, tmp_path: Path) -> None:
    assert await keep(store, image) > 0
    found = await fetched(store, away(tmp_path), image.digest)
    assert found.path.read_bytes() == image.path.read_bytes()
    assert msgspec.structs.replace(found, path=image.path) == image
    assert away(tmp_path).find(image.digest) == found
    assert {path.name for path in (tmp_path / "there/images").iterdir()} == {image.digest}


async def test_it_takes_less_room_than_it_has(store: DirectoryStore, image: Image) -> None:
    put = await keep(store, image)
    assert put < image.size
    assert await kept_images(store) == {image.digest: put}
    assert put == sum(item.size for item in await list_all(store, ""))


async def test_what_is_there_is_not_put_again(store: DirectoryStore, image: Image, tmp_path: Path) -> None:
    await keep(store, image)
    before = await list_all(store, "")
    again = made(tmp_path / "elsewhere", image.path.read_bytes())
    assert await keep(store, again) == 0
    assert await list_all(store, "") == before


async def test_progress_is_told_and_ends(store: DirectoryStore, image: Image, tmp_path: Path) -> None:
    told: list[Progress] = []
    await keep(store, image, told.append)
    assert told[-1].fraction == 1.0
    fractions = [each.fraction for each in told]
    assert fractions == sorted(fractions)
    told.clear()
    await fetch(store, away(tmp_path), image.digest, told.append)
    assert told[-1].fraction == 1.0
    fractions = [each.fraction for each in told]
    assert fractions == sorted(fractions)


class Dying(DirectoryStore):
    """Ends after some changes, as the process that makes them would."""

    def __init__(self, root: Path, changes: int) -> None:
        super().__init__(root)
        self.changes = changes

    async def put(self, key: str, data: bytes) -> None:
        self._count()
        await super().put(key, data)

    async def create(self, key: str, data: bytes) -> bool:
        self._count()
        return await super().create(key, data)

    async def delete(self, keys: Collection[str]) -> None:
        for key in sorted(keys):  # one by one, as a server may
            self._count()
            await super().delete([key])

    def _count(self) -> None:
        self.changes -= 1
        if self.changes < 0:
            raise UnavailableError("it ended")


async def test_a_put_that_was_cut_off_anywhere_is_no_image_and_goes_on(image: Image, tmp_path: Path) -> None:
    for changes in range(100):
        root = tmp_path / f"cut-{changes}"
        store = DirectoryStore(root)
        try:
            await keep(Dying(root, changes), image)
        except UnavailableError:
            pass
        else:
            assert changes > 3
            return
        with pytest.raises(NotFoundError):
            await fetch(store, away(tmp_path), image.digest)
        before = {item.key for item in await list_all(store, "")}
        put = await keep(store, image)
        added = {item.key: item.size for item in await list_all(store, "") if item.key not in before}
        assert put == sum(added.values()) > 0
        assert (await fetched(store, Catalogue(tmp_path / f"there-{changes}"), image.digest)).size == image.size
    raise AssertionError("it never came to an end")


async def test_a_removal_that_was_cut_off_anywhere_leaves_a_whole_image_or_none(image: Image, tmp_path: Path) -> None:
    for changes in range(100):
        root = tmp_path / f"cut-{changes}"
        store = DirectoryStore(root)
        await keep(store, image)
        try:
            await drop(Dying(root, changes), [image.digest])
        except UnavailableError:
            pass
        else:
            assert await list_all(store, "") == []
            return
        if changes:
            with pytest.raises(NotFoundError):
                await fetch(store, away(tmp_path), image.digest)
        await keep(store, image)
        assert (await fetched(store, Catalogue(tmp_path / f"there-{changes}"), image.digest)).size == image.size
        await drop(store, [image.digest])
        assert await list_all(store, "") == []
    raise AssertionError("it never came to an end")


async def test_a_fetch_that_was_cut_off_goes_on(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path
) -> None:
    await keep(store, image)
    index = msgspec.json.decode((objects / "images" / image.digest / "index").read_bytes(), type=Index)
    lost = objects / "images" / image.digest / index.parts[-1]
    lost.rename(tmp_path / "lost")
    catalogue = away(tmp_path)
    with pytest.raises(CorruptError, match=lost.name):
        await fetch(store, catalogue, image.digest)
    assert not catalogue.has(image.digest)
    (tmp_path / "lost").rename(lost)
    asked = Counting(objects)
    await fetched(asked, catalogue, image.digest)
    assert lost.name in asked.got
    assert len(asked.got) < len(index.parts)


class Counting(DirectoryStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.got: list[str] = []

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if not key.endswith("/index"):
            self.got.append(key.rpartition("/")[2])
        return await super().get(key, start, length)


@pytest.mark.parametrize("what", ["part", "index"])
async def test_damage_is_found_wherever_it_is_and_named(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path, what: str
) -> None:
    await keep(store, image)
    names = sorted(path.name for path in (objects / "images" / image.digest).iterdir())
    file = objects / "images" / image.digest / (names[-1] if what == "index" else names[0])
    good = file.read_bytes()
    seeded = random.Random(3)
    for place in {0, len(good) - 1, *(seeded.randrange(len(good)) for _ in range(30))}:
        damaged = bytearray(good)
        damaged[place] ^= 1 << seeded.randrange(8)
        file.write_bytes(damaged)
        catalogue = Catalogue(tmp_path / f"there-{place}")
        try:
            found = await fetched(store, catalogue, image.digest)
        except BallpointError as error:
            assert isinstance(error, CorruptError | ConflictError), error
            assert file.name in str(error) or (what == "index" and image.digest[:16] in str(error))
            assert not catalogue.has(image.digest)
        else:  # a bit of what is only for people
            assert found.path.read_bytes() == image.path.read_bytes()
    for shorter in (b"", good[:-1]):
        file.write_bytes(shorter)
        with pytest.raises(CorruptError, match=file.name):
            await fetch(store, away(tmp_path), image.digest)
    file.write_bytes(good)
    assert (await fetched(store, away(tmp_path), image.digest)).size == image.size


@pytest.mark.parametrize("end", ["damage", "cancelled"])
async def test_nobody_writes_after_a_fetch_has_ended(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A thread that went on would write into whatever file has the number of this one's descriptor next."""
    await keep(store, image)
    index = msgspec.json.decode((objects / "images" / image.digest / "index").read_bytes(), type=Index)
    damaged = objects / "images" / image.digest / index.parts[-1]
    if end == "damage":
        damaged.write_bytes(b"")
    writing, go_on = threading.Event(), threading.Event()
    write, written = archive._write_part, []

    def slowly(fd: int, start: int, size: int, stored: bytes, key: str, name: str) -> None:
        if name != index.parts[-1]:
            writing.set()
            assert go_on.wait(60)
            written.append(os.readlink(f"/proc/self/fd/{fd}"))
        write(fd, start, size, stored, key, name)

    monkeypatch.setattr(archive, "_write_part", slowly)
    fetching = asyncio.ensure_future(fetch(store, away(tmp_path), image.digest))
    assert await asyncio.to_thread(writing.wait, 60)
    if end == "cancelled":
        fetching.cancel()
    done, _ = await asyncio.wait([fetching], timeout=0.3)
    assert not done
    go_on.set()
    with pytest.raises(CorruptError if end == "damage" else asyncio.CancelledError):
        await fetching
    assert {Path(each).name for each in written} == {"image.erofs"}


async def test_no_more_is_unpacked_than_there_may_be(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path
) -> None:
    await keep(store, image)
    for file in (objects / "images" / image.digest).iterdir():
        if file.name != "index":
            # RFC 8878 section 3.1.1: one segment, of a content that is said to have 2^50 bytes.
            file.write_bytes(zstandard.MAGIC_NUMBER.to_bytes(4, "little") + b"\xe0" + (1 << 50).to_bytes(8, "little"))
    with pytest.raises(CorruptError, match="not what was put"):
        await fetch(store, away(tmp_path), image.digest)


async def test_an_image_that_is_not_what_its_name_says_is_not_taken(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path
) -> None:
    await keep(store, image)
    (objects / "images" / image.digest).rename(objects / "images" / ("0" * 64))
    with pytest.raises(CorruptError, match="0000"):
        await fetch(store, away(tmp_path), "0" * 64)
    assert list((tmp_path / "there/images").iterdir()) == []


async def test_an_index_that_does_not_add_up_is_refused(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path
) -> None:
    await keep(store, image)
    file = objects / "images" / image.digest / "index"
    index = msgspec.json.decode(file.read_bytes(), type=Index)
    for wrong in (
        {"parts": index.parts[:-1]},
        {"parts": ()},
        {"size": index.size + _PART},
        {"size": -1},
        {"part_bytes": 0},
        {"part_bytes": 1 << 40, "parts": index.parts[:1]},
    ):
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(index, **wrong)))
        with pytest.raises(CorruptError, match="contradicts itself"):
            await fetch(store, away(tmp_path), image.digest)


async def test_one_of_a_later_version_is_left_alone(
    store: DirectoryStore, objects: Path, image: Image, tmp_path: Path
) -> None:
    await keep(store, image)
    file = objects / "images" / image.digest / "index"
    index = msgspec.json.decode(file.read_bytes(), type=Index)
    later = msgspec.json.encode(msgspec.structs.replace(index, format=index.format + 1))
    file.write_bytes(later)
    with pytest.raises(ConflictError, match="later version"):
        await fetch(store, away(tmp_path), image.digest)
    with pytest.raises(ConflictError, match="later version"):
        await keep(store, image)
    assert file.read_bytes() == later


@pytest.mark.parametrize("digest", ["f" * 64, "nothing", "", "../../etc"])
async def test_what_nobody_has_is_not_found(store: DirectoryStore, tmp_path: Path, digest: str) -> None:
    with pytest.raises(BallpointError) as caught:
        await fetch(store, away(tmp_path), digest)
    assert caught.value.status in (400, 404)


async def test_of_two_that_fetch_at_once_one_does(store: DirectoryStore, image: Image, tmp_path: Path) -> None:
    await keep(store, image)
    catalogue = away(tmp_path)
    with catalogue.receiving(image.digest) as file:
        assert file is not None
        assert await fetch(store, catalogue, image.digest) is None
    outcomes = await asyncio.gather(*(fetch(store, catalogue, image.digest) for _ in range(8)))
    assert any(outcomes)
    assert catalogue.find(image.digest).path.read_bytes() == image.path.read_bytes()
    assert await fetch(store, catalogue, image.digest) == catalogue.find(image.digest)
    with catalogue.receiving(image.digest) as file:
        assert file is None
    assert {path.name for path in (tmp_path / "there/images").iterdir()} == {image.digest}


async def test_what_others_left_half_fetched_goes(store: DirectoryStore, image: Image, tmp_path: Path) -> None:
    await keep(store, image)
    catalogue = away(tmp_path)
    for digest in ("a" * 64, "b" * 64):
        with catalogue.receiving(digest) as file:
            assert file is not None
            file.write_bytes(b"half")
    with catalogue.receiving("c" * 64) as file:  # this one is being fetched right now
        assert file is not None
        await fetched(store, catalogue, image.digest)
        left = {path.name for path in (tmp_path / "there/images").iterdir()}
        assert left == {image.digest, f".fetch-{'c' * 64}"}


async def test_over_a_bad_store_it_comes_through_or_says_so(image: Image, objects: Path, tmp_path: Path) -> None:
    for seed in range(20):
        root = objects / str(seed)
        bad = FaultyStore(DirectoryStore(root), Faults(refused=0.1, lost=0.1, again=0.1), seed=seed)
        for _ in range(200):
            try:
                await keep(bad, image)
                break
            except UnavailableError:
                continue
        for _ in range(200):
            try:
                found = await fetched(bad, Catalogue(tmp_path / f"there-{seed}"), image.digest)
                break
            except UnavailableError:
                continue
        assert found.path.read_bytes() == image.path.read_bytes()
        await bad.close()


class Removing(DirectoryStore):
    """Another node removes the image just as it is whole."""

    async def create(self, key: str, data: bytes) -> bool:
        done = await super().create(key, data)
        if done:
            items: Items = await list_all(self, "images/")
            await self.delete([items[0].key])
        return done


async def test_a_part_that_is_removed_meanwhile_is_put_again(image: Image, objects: Path, tmp_path: Path) -> None:
    await keep(Removing(objects), image)
    assert (await fetched(DirectoryStore(objects), away(tmp_path), image.digest)).size == image.size


async def test_a_host_without_room_says_so(
    store: DirectoryStore, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, image)

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UnavailableError, match="No space left"):
        await fetch(store, away(tmp_path), image.digest)
