"""Snapshots of a volume's disk, the record beside them, and other images for a volume."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError
from ballpoint.volume import snapshots
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.record import Kept, Operation, Origin, Record, read_record, write_record
from tests.volume.world import path


def record() -> Record:
    return Record(volume=uuid4(), lineage=uuid4(), size=1 << 32, image="digest")


def test_a_snapshot_keeps_what_the_disk_was_and_nobody_writes_to_it(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    directory = pool.directory("v")
    volume = pool.attach("v")
    path(volume.mount, "upper/hello").write_text("first")
    os.sync()
    snapshots.clone(volume.image, directory, 1)
    snapshots.keep(directory, 1)
    before = snapshots.path_of(directory, 1).read_bytes()
    path(volume.mount, "upper/hello").write_text("second")
    volume.detach()
    assert snapshots.path_of(directory, 1).read_bytes() == before
    with pytest.raises(PermissionError):
        snapshots.path_of(directory, 1).open("r+b")
    with pytest.raises(PermissionError):
        snapshots.path_of(directory, 1).unlink()
    snapshots.clone(directory / "disk.img", directory, 2)
    assert snapshots.identity(directory, 1) != snapshots.identity(directory, 2)
    assert snapshots.remove_others(directory, {2}) == [1]
    assert snapshots.identity(directory, 1) is None
    snapshots.keep(directory, 2)
    pool.destroy("v")
    assert pool.volumes() == []


def test_a_snapshot_that_was_kept_is_there_after_the_power_went(tmp_path: Path) -> None:
    pool = VolumePool.open(tmp_path, pool_gb=2)
    pool.ensure_template("base", 1, lambda fd: None)
    pool.create("v", template="base", meta={})
    directory = pool.directory("v")
    snapshots.flush(directory / "disk.img")
    snapshots.clone(directory / "disk.img", directory, 1)
    snapshots.keep(directory, 1)
    expected = snapshots.path_of(directory, 1).read_bytes()
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(pool.root)], check=True)
    pool.close()
    again = VolumePool.open(tmp_path, pool_gb=2)
    assert snapshots.path_of(again.directory("v"), 1).read_bytes() == expected
    again.close()


def test_a_fork_begins_with_a_snapshot_of_its_own(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={"image": "digest"})
    directory = pool.directory("v")
    snapshots.clone(directory / "disk.img", directory, 3)
    snapshots.keep(directory, 3)
    made = record()
    made = msgspec.structs.replace(
        made, sequence=1, origin=Origin(volume=uuid4(), checkpoint="v0", sequence=1), current="v0"
    )
    pool.fork("f", of="v", sequence=3, record=made)
    assert read_record(pool.directory("f")) == made
    assert pool.meta("f") == {"image": "digest"}
    assert snapshots.remove_others(pool.directory("f"), made.snapshots) == []
    pool.destroy("v")
    volume = pool.attach("f")
    assert path(volume.mount, "upper/hello").read_text() == "hello"
    volume.detach()
    with pytest.raises(NotFoundError):
        pool.fork("g", of="v", sequence=3, record=made)


def test_another_image_becomes_the_disk_while_the_old_one_is_in_use(pool: VolumePool) -> None:
    pool.create("v", template="base", meta={})
    directory = pool.directory("v")
    snapshots.clone(directory / "disk.img", directory, 1)
    snapshots.keep(directory, 1)
    old = pool.attach("v")
    path(old.mount, "upper/hello").write_text("later")
    staged = pool.stage("v", 1)
    new = pool.attach_staged("v", staged)
    assert path(new.mount, "upper/hello").read_text() == "hello"
    new.moved(pool.replace_disk("v", staged))
    assert new.allocated() == (directory / "disk.img").stat().st_blocks * 512
    path(old.mount, "upper/hello").write_text("still in use")
    old.detach()
    path(new.mount, "upper/new").write_text("new")
    new.detach()
    again = pool.attach("v")
    assert path(again.mount, "upper/hello").read_text() == "hello"
    assert path(again.mount, "upper/new").read_text() == "new"
    again.detach()
    with pytest.raises(CorruptError):
        pool.stage("v", 2)


def test_a_record_is_read_as_it_was_written_and_a_later_versions_is_refused(tmp_path: Path) -> None:
    kept = Kept(id="v0", time=1, comment="é", auto=False, image="digest", sequence=4, durable=False, source="v9")
    full = msgspec.structs.replace(
        record(), checkpoints=(kept,), pending=(Operation(kind="checkpoint", id="v0", sequence=5),), bytes_written=7
    )
    write_record(tmp_path, full)
    assert read_record(tmp_path) == full
    assert full.is_coming("v0") and not full.is_coming("v1")
    assert not full.with_checkpoint(msgspec.structs.replace(kept, durable=True)).is_coming("v0")
    assert full.snapshots == {4, 5}
    file = tmp_path / "record.json"
    good = file.read_bytes()
    file.write_bytes(good.replace(b'"format":1', b'"format":2'))
    with pytest.raises(ConflictError):
        read_record(tmp_path)
    file.write_bytes(good[:-9])
    with pytest.raises(CorruptError):
        read_record(tmp_path)
    file.unlink()
    with pytest.raises(NotFoundError):
        read_record(tmp_path)
