"""An upgrade loses nothing: from every released version, interrupted at any step, or begun by a program too old.

`released/` holds a database as each version left it. A new migration adds the one of its own version, made by it.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from ballpoint.core.errors import ConflictError, UnauthorizedError, UnavailableError
from ballpoint.host.files import fsync_directory
from ballpoint.registry import database
from ballpoint.registry.database import url_of
from ballpoint.registry.registry import Registry
from ballpoint.registry.schema import metadata

from .world import add

_RELEASED = sorted(Path(__file__).with_name("released").glob("*.sql"))
_FUTURE = '''"""A later version, as far as these tests are concerned."""

import os
import signal
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{before}"


def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("sprites", sa.Column("later", sa.String))
    op.execute("UPDATE sprites SET name = 'renamed-' || name, later = 'x'")
    {then}
'''
_OPEN = """
import asyncio, pathlib, sys
from ballpoint.registry import database
from ballpoint.registry.registry import Registry
database._MIGRATIONS = pathlib.Path(sys.argv[2])
asyncio.run(Registry.open(sys.argv[1]))
"""


def _revisions() -> dict[str, str | None]:
    """Every version this program knows, newest first, and what it follows."""
    config = Config()
    config.set_main_option("script_location", str(database._MIGRATIONS))
    found = ScriptDirectory.from_config(config).walk_revisions()
    return {revision.revision: revision.down_revision for revision in found}  # type: ignore[misc]


def _load(file: Path, dump: Path) -> str:
    """Make the database of `dump`. Returns its version."""
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(dump.read_text())
    return dump.stem


def _content(file: Path, but: Iterable[str] = ()) -> list[str]:
    """A database as SQL, which is equal where its content is."""
    with closing(sqlite3.connect(file)) as connection:
        return [line for line in connection.iterdump() if not any(word in line for word in but)]


def _version(file: Path) -> str:
    with closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def _backups(file: Path) -> list[Path]:
    return sorted(path for path in file.parent.iterdir() if "before" in path.name)


def _future(directory: Path, then: str = "") -> Path:
    """The migrations of a later version of this program; `then` is what its last one does at its end."""
    made = directory / "migrations"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(database._MIGRATIONS, made)
    (made / "versions" / "r9999_later.py").write_text(_FUTURE.format(before=next(iter(_revisions())), then=then))
    return made


@pytest.fixture(params=_RELEASED, ids=lambda dump: dump.stem)
def released(request: pytest.FixtureRequest, file: Path) -> str:
    """The version of a database that an earlier program left in `file`."""
    dump: Path = request.param
    return _load(file, dump)


def test_there_is_a_database_of_every_version() -> None:
    assert {dump.stem for dump in _RELEASED} == set(_revisions())


async def test_the_tables_are_what_the_code_takes_them_for(registry: Registry, file: Path) -> None:
    engine = create_engine(url_of(file))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_an_upgrade_keeps_everything(released: str, file: Path) -> None:
    registry = await Registry.open(url_of(file))
    for good in ("acme/o1/t1/value-of-t1", "rival/o2/t3/value-of-t3"):
        await registry.authenticate(good)
    with pytest.raises(UnauthorizedError):
        await registry.authenticate("acme/o1/t2/value-of-t2")
    assert [token.id for token in await registry.tokens() if token.revoked_at] == ["t2"]

    sprites = await registry.all_sprites()
    assert [(each.org, each.name, each.state, each.volume_id) for each in sprites] == [
        ("acme", "running", "running", "volume-1"),
        ("acme", "warm", "warm", "volume-2"),
        ("acme", "cold", "cold", "volume-3"),
        ("rival", "creating", "creating", "volume-4"),
        ("rival", "deleting", "deleting", "volume-5"),
    ]
    first = sprites[0]
    assert (first.environment, first.labels, first.config) == ({"A": "ünïcode\n"}, ["a", "b"], {"ram_mb": 512})
    assert first.url_settings == {"auth": "sprite", "private_access": None}
    assert first.privileges == {"profile": "minimal"}
    assert first.last_running_at is not None
    assert first.created_at < first.last_running_at < first.updated_at
    events = await registry.events(first.id)
    assert [(event.kind, event.detail) for event in events] == [("created", {}), ("degraded", {"seconds": 5})]
    assert [event.kind for event in await registry.events("sprite-6")] == ["deleted"]
    await add(registry, first.org_id, "new")
    await registry.close()


async def test_an_upgraded_database_is_one_made_anew(released: str, file: Path, tmp_path: Path) -> None:
    await (await Registry.open(url_of(file))).close()
    await (await Registry.open(url_of(tmp_path / "new.db"))).close()
    assert _content(file, but=["INSERT"]) == _content(tmp_path / "new.db", but=["INSERT"])
    assert _version(file) == next(iter(_revisions()))


async def test_the_backup_is_the_database_before(
    released: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _content(file)
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    await (await Registry.open(url_of(file))).close()
    assert _version(file) == "9999"
    [backup] = _backups(file)
    assert backup.name == f"{file.name}.before-{released}-upgrade"
    assert backup.stat().st_mode & 0o777 == 0o600
    assert _content(backup) == before

    made = backup.stat().st_mtime_ns
    await (await Registry.open(url_of(file))).close()
    assert [path.stat().st_mtime_ns for path in _backups(file)] == [made]


async def test_the_backup_has_what_is_in_no_checkpoint_yet(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = await Registry.open(url_of(file))
    info, _ = await registry.create_token("acme", "")
    await add(registry, info.org_id, "web")
    assert file.with_name(f"{file.name}-wal").stat().st_size
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    await (await Registry.open(url_of(file))).close()
    [backup] = _backups(file)
    assert any("'web'" in line for line in _content(backup))
    await registry.close()


async def test_a_backup_brings_the_old_program_back(
    released: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(database, "_MIGRATIONS", _future(tmp_path))
        await (await Registry.open(url_of(file))).close()
    with pytest.raises(ConflictError):
        await Registry.open(url_of(file))
    _backups(file)[0].rename(file)
    registry = await Registry.open(url_of(file))
    assert [sprite.name for sprite in await registry.all_sprites()][0] == "running"
    await registry.close()


async def test_a_newer_database_is_refused_and_left_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(database, "_MIGRATIONS", _future(tmp_path))
        registry = await Registry.open(url_of(file))
        await registry.create_token("acme", "")
        await registry.close()
    before = _content(file)
    with pytest.raises(ConflictError, match="9999") as caught:
        await Registry.open(url_of(file))
    assert caught.value.hint
    assert _content(file) == before
    assert _backups(file) == []


def test_a_command_refuses_a_newer_database_in_one_sentence(file: Path) -> None:
    _load(file, _RELEASED[-1])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    command = [sys.executable, "-m", "ballpoint.cli", "token", "list", "--data", str(file.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "9999" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise OSError('the disk is gone')"], ids=["killed", "failed"]
)
async def test_an_interrupted_migration_has_not_taken_place(
    released: str, file: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _content(file)
    command = [sys.executable, "-c", _OPEN, url_of(file), str(_future(tmp_path, then=end))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert _content(file) == before
    assert [_content(backup) for backup in _backups(file)] == [before]

    await (await Registry.open(url_of(file))).close()  # this program, or the one of before, goes on
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    await (await Registry.open(url_of(file))).close()  # and the later one finishes
    assert _version(file) == "9999"
    assert _content(_backups(file)[0]) == before  # this program's own upgrade left one, too


async def test_a_backup_that_was_cut_off_is_made_anew(
    released: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _content(file)
    partial = file.with_name(f".{file.name}.before-{released}-upgrade.new")
    partial.write_bytes(file.read_bytes()[:5000])
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    await (await Registry.open(url_of(file))).close()
    assert not partial.exists()
    assert [_content(backup) for backup in _backups(file)] == [before]


async def test_without_a_backup_there_is_no_upgrade(
    released: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _content(file)
    file.with_name(f"{file.name}.before-{released}-upgrade").mkdir()
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    with pytest.raises(UnavailableError):
        await Registry.open(url_of(file))
    assert _content(file) == before


async def test_the_backup_is_durable_before_the_migration(
    released: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[str]]] = []

    def fsync(path: Path) -> None:
        fsync_directory(path)
        seen.append((_version(file), [backup.name for backup in _backups(file)]))

    monkeypatch.setattr("ballpoint.registry.database.fsync_directory", fsync)
    monkeypatch.setattr(database, "_MIGRATIONS", _future(tmp_path))
    await (await Registry.open(url_of(file))).close()
    assert seen == [(released, [f"{file.name}.before-{released}-upgrade"])]
