"""An injection that has changed: what nobody inside has touched is renewed, and nothing else is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.image.renewal import (
    RECORD,
    Renewal,
    fingerprints,
    read_layer,
    read_record,
    renew,
    write_record,
)

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

OLD = {"etc/pip.conf": "old", "etc/only-old": "gone", "etc/apt/sources": "same", "etc/ssl/old.pem": "->../x"}
NEW = {"etc/pip.conf": "new", "etc/npmrc": "more", "etc/apt/sources": "same", "usr/ca/a.crt": "ca", "etc/ssl/n": "->y"}


def tree(root: Path, files: dict[str, str]) -> Path:
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("->"):
            target.symlink_to(content[2:])
        else:
            target.write_text(content)
            target.chmod(0o644)
    return root


def shown(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): f"->{path.readlink()}" if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


class World:
    """A volume's upper directory that has the old injection, and what the new one makes of a fresh one."""

    def __init__(self, place: Path) -> None:
        self.upper = tree(place / "upper", OLD)
        self.before = fingerprints(read_layer(self.upper))
        fresh = tree(place / "fresh", NEW)
        os.chown(fresh / "usr", 0, 7)
        (fresh / "usr/ca").chmod(0o2755)
        self.layer = read_layer(fresh)

    def renew(self) -> Renewal:
        fd = os.open(self.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            done = renew(fd, self.layer, self.before)
        finally:
            os.close(fd)
        self.before = done.files
        return done


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_nobody_touched_is_renewed(world: World) -> None:
    tree(world.upper, {"home/mine": "mine", "etc/mine": "too"})
    done = world.renew()
    assert shown(world.upper) == {**NEW, "home/mine": "mine", "etc/mine": "too"}
    assert (done.kept, set(done.changed)) == ([], {"etc/pip.conf", "etc/npmrc", "etc/only-old", "usr/ca/a.crt",
                                                  "etc/ssl/n", "etc/ssl/old.pem"})  # fmt: skip
    assert done.files == fingerprints(world.layer)
    assert (world.upper / "usr").stat().st_gid == 7
    assert stat.S_IMODE((world.upper / "usr/ca").stat().st_mode) == 0o2755
    assert stat.S_IMODE((world.upper / "etc/npmrc").stat().st_mode) == 0o644
    again = world.renew()
    assert (again.changed, again.kept, again.files) == ([], [], done.files)


def _edit(upper: Path) -> None:
    (upper / "etc/pip.conf").write_text("mine")


def _chmod(upper: Path) -> None:
    (upper / "etc/pip.conf").chmod(0o600)


def _remove(upper: Path) -> None:
    (upper / "etc/pip.conf").unlink()


def _white_out(upper: Path) -> None:
    _remove(upper)
    os.mknod(upper / "etc/pip.conf", stat.S_IFCHR, 0)


def _link(upper: Path) -> None:
    _remove(upper)
    (upper / "etc/pip.conf").symlink_to("/etc/hostname")


def _directory(upper: Path) -> None:
    _remove(upper)
    (upper / "etc/pip.conf").mkdir()


def _fifo(upper: Path) -> None:
    _remove(upper)
    os.mkfifo(upper / "etc/pip.conf")


def _seen(path: Path) -> tuple[int, ...] | None:
    """All that a change would show, or None where nothing is: not when it was read last, which the renewal does."""
    if not os.path.lexists(path):
        return None
    status = path.lstat()
    return (
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_rdev,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


@pytest.mark.parametrize("change", [_edit, _chmod, _remove, _white_out, _link, _directory, _fifo])
def test_what_somebody_changed_stays_as_he_left_it(world: World, change: Callable[[Path], None]) -> None:
    change(world.upper)
    changed = world.upper / "etc/pip.conf"
    was = _seen(changed)
    for _ in range(2):
        assert world.renew().kept == ["etc/pip.conf"]
        assert _seen(changed) == was
    assert (world.upper / "etc/npmrc").read_text() == "more"


def test_a_file_of_ones_own_is_not_replaced_by_one_that_is_injected_later(world: World) -> None:
    tree(world.upper, {"etc/npmrc": "mine"})
    assert world.renew().kept == ["etc/npmrc"]
    assert "etc/npmrc" not in world.before
    assert (world.upper / "etc/npmrc").read_text() == "mine"


@pytest.mark.parametrize("kind", ["whiteout", "link out of it", "file", "opaque"])
def test_a_directory_that_is_another_now_is_left_alone(world: World, tmp_path: Path, kind: str) -> None:
    """Least of all is anything written to where a link points."""
    outside = tmp_path / "outside"
    (outside / "ca").mkdir(parents=True)
    usr = world.upper / "usr"
    if kind == "whiteout":
        os.mknod(usr, stat.S_IFCHR, 0)
    elif kind == "link out of it":
        usr.symlink_to(outside)
    elif kind == "file":
        usr.write_text("mine")
    else:
        usr.mkdir()
        os.setxattr(usr, "trusted.overlay.opaque", b"y")
    assert world.renew().kept == ["usr/ca/a.crt"]
    assert list((outside / "ca").iterdir()) == []
    assert not (usr.is_dir() and not usr.is_symlink() and list(usr.iterdir()))
    assert (world.upper / "etc/pip.conf").read_text() == "new"


def test_what_was_cut_off_is_finished(world: World) -> None:
    """Half of it was written, and the record is still the old one."""
    before = world.before
    world.renew()
    (world.upper / "etc/npmrc").unlink()
    (world.upper / "etc/.npmrc.ballpoint-new").write_text("ha")
    world.before = before
    assert world.renew().kept == []
    assert shown(world.upper) == NEW


def test_the_record(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert read_record(fd) is None
        write_record(fd, "digest", {"etc/x": "644 1"})
        record = read_record(fd)
        assert record is not None
        assert (record.digest, record.files) == ("digest", {"etc/x": "644 1"})
        (tmp_path / RECORD).write_bytes(b"{")
        with pytest.raises(CorruptError):
            read_record(fd)
    finally:
        os.close(fd)
