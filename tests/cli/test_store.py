"""store check, gc and stats: what they print, what they remove, how they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from blake3 import blake3

from ballpoint.cli.main import cli
from ballpoint.core.errors import InvalidError, NotFoundError
from ballpoint.image.archive import keep
from ballpoint.image.catalogue import Catalogue
from ballpoint.store.deployment import claim, new_deployment
from ballpoint.store.directory import DirectoryStore
from ballpoint.volume.log import collect
from ballpoint.volume.log.fork import found
from ballpoint.volume.log.log import Writer
from tests.volume.log.disks import Disk, noise

ONE, TWO, LINEAGE, OTHER = (UUID(int=number) for number in range(1, 5))
USED, UNUSED = b"an image that a disk is on", b"an image that no disk is on"
OLD = b"an image that a checkpoint is on, and no disk"


def digest(content: bytes) -> str:
    return blake3(content).hexdigest()


async def put_image(store: DirectoryStore, cache: Path, content: bytes) -> None:
    with Catalogue(cache).receiving(digest(content)) as file:
        assert file is not None
        file.write_bytes(content)
        image = Catalogue(cache).admit(digest(content), recipe="slim", recipe_digest="r", built_at="2026")
    await keep(store, image)


async def volume(store: DirectoryStore, name: UUID, lineage: UUID) -> Writer:
    writer = await found(store, name, lineage, image=digest(USED), size=1 << 30, settings={}, writer="w")
    assert writer is not None
    disk = Disk(store, writer)
    await disk.write({number: noise(number) for number in range(4)})
    made = await disk.checkpoint("v0")
    await disk.complete("checkpoint", checkpoints=(msgspec.structs.replace(made, image=digest(OLD)),))
    await disk.write({0: noise(9)})
    await disk.complete()
    return writer


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A store with a disk, another one in the trash, and three images."""

    async def fill() -> None:
        store = DirectoryStore(tmp_path / "objects")
        await claim(store, new_deployment())
        await volume(store, ONE, LINEAGE)
        await (await volume(store, TWO, OTHER)).commit("trash")
        for content in (USED, UNUSED, OLD):
            await put_image(store, tmp_path / "cache", content)
        await store.close()

    asyncio.run(fill())
    return tmp_path / "objects"


def run(objects: Path, *arguments: str) -> int:
    status: int | None = cli.main(["store", *arguments, "--store", objects.as_uri()], standalone_mode=False)
    return status or 0


def blocks(objects: Path) -> Path:
    """The pack with the most of a disk's blocks."""
    return max((objects / "volumes" / str(ONE) / "packs").iterdir(), key=lambda path: path.stat().st_size)


def test_a_whole_store_is_called_so(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for how in ([], ["--whole"], ["--sample", "0.5"]):
        assert run(objects, "check", *how) == 0
        assert "as it was written" in capsys.readouterr().out
    assert run(objects, "check", "--whole", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["damages"], told["checked"]["volumes"]) == ([], 2)
    assert told["checked"]["whole"] == told["checked"]["packs"] > 0


def test_damage_is_told_and_fails(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = blocks(objects)
    lost.unlink()
    assert run(objects, "check") == 1
    assert lost.name in capsys.readouterr().out
    assert run(objects, "check", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert {damage["volume"] for damage in told["damages"]} == {str(ONE)}
    assert all(lost.name in damage["key"] for damage in told["damages"])


def test_a_turned_bit_is_found_by_whom_reads_everything(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = blocks(objects)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert run(objects, "check", "--whole") == 1
    assert pack.name in capsys.readouterr().out


def test_garbage_goes_and_what_is_needed_stays(
    objects: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_CANDIDATES_MAX", 1)
    assert run(objects, "gc", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["deleted"], told["troubles"]) == ([digest(UNUSED)], 0, [])
    for needed in (USED, OLD):
        assert (objects / "images" / digest(needed) / "index").exists()
    assert not (objects / "images" / digest(UNUSED) / "index").exists()
    assert run(objects, "check", "--whole") == 0

    assert run(objects, "gc", "--retention", "0") == 0
    assert "1 disks left the trash" in capsys.readouterr().out
    assert run(objects, "gc") == 0
    assert run(objects, "check", "--whole") == 0
    assert list((objects / "volumes" / str(TWO) / "packs").iterdir()) == []
    assert blocks(objects).exists()


def test_damage_keeps_gc_from_removing_and_is_told(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for commit in (objects / "volumes" / str(ONE) / "commits").iterdir():
        commit.write_bytes(b"damaged")
    before = {path for path in objects.rglob("*") if "images" in path.parts or str(ONE) in path.parts}
    assert run(objects, "gc") == 1
    assert "kept: " in capsys.readouterr().out
    assert {path for path in objects.rglob("*") if "images" in path.parts or str(ONE) in path.parts} == before


def test_what_there_is_is_counted(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(objects, "stats", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["volumes"], told["trashed"], told["lineages"]) == (2, 1, 2)
    assert set(told["images"]) == {digest(USED), digest(UNUSED), digest(OLD)}
    assert told["pack_bytes"] == told["reachable"] + told["garbage"]
    assert run(objects, "stats") == 0
    assert "2 (1 in the trash)" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["check", "gc", "stats"])
def test_what_is_no_store_is_refused_and_not_made(tmp_path: Path, verb: str) -> None:
    with pytest.raises(NotFoundError, match="no store of Ballpoint"):
        run(tmp_path / "nothing", verb)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(NotFoundError, match="no store of Ballpoint"):
        run(tmp_path / "other", verb)
    with pytest.raises(InvalidError):
        cli.main(["store", verb, "--store", "s3://user:word@bucket"], standalone_mode=False)


def test_the_store_is_that_of_the_node_where_none_is_named(
    objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/node.toml").write_text(f'store = "{objects.as_uri()}"\n')
    cli.main(["store", "stats", "--json", "--data", str(tmp_path / "data")], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["volumes"] == 2
    (tmp_path / "data/node.toml").unlink()
    objects.rename(tmp_path / "data/store")
    cli.main(["store", "stats", "--json", "--data", str(tmp_path / "data")], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["volumes"] == 2
