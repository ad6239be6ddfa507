"""The registry's database: opened, migrated, and used one transaction at a time.

SQLite by default; any SQLAlchemy URL of a database with transactions will do. A transaction runs in a worker thread, so
one costs one hop out of the event loop, however many statements it has.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url

from ballpoint.core.errors import ConflictError

T = TypeVar("T")

_BUSY_SECONDS = 10.0


class Database:
    """An open registry database at the newest version."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # One writer at a time is SQLite's rule anyway; one thread keeps the order of calls.
        self._worker = ThreadPoolExecutor(1, "registry")

    @classmethod
    def open(cls, url: str) -> Database:
        """Open and migrate the database at `url`; a SQLite file is backed up before each migration.

        Raises:
            ConflictError: it was written by a newer version.
        """
        engine = _engine(url)
        try:
            _migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction: committed when it returns, rolled back when it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self.run_now, work)

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """`run` in the calling thread."""
        with self._engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self._engine.dispose()


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, and not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # At once for writing: a reader that turns writer later may find that it cannot (SQLITE_BUSY_SNAPSHOT).
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    script = ScriptDirectory.from_config(config)
    known, head = {revision.revision for revision in script.walk_revisions()}, script.get_current_head()
    # The lock of this transaction keeps a second process from migrating at the same time.
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise ConflictError(
                f"the registry is of version {current}, and this program knows versions up to {head}",
                hint="start the newer program that wrote it, or restore the backup beside it",
            )
        if current == head:
            return
        if current is not None:
            _back_up(engine, current)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _back_up(engine: Engine, version: str) -> None:
    """Copy a SQLite file beside itself, whole or not at all; other databases have their own backups."""
    file = engine.url.database
    if engine.url.get_backend_name() != "sqlite" or not file or file == ":memory:":
        return
    target = Path(f"{file}.before-{version}-upgrade")
    partial = target.with_name(f".{target.name}.new")
    partial.unlink(missing_ok=True)
    with sqlite3.connect(file) as source, sqlite3.connect(partial) as copy:
        source.backup(copy)
    copy.close()
    source.close()
    partial.rename(target)
