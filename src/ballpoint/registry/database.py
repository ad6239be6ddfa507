"""The registry's database: opened, migrated, and used one transaction at a time.

SQLite by default; any SQLAlchemy URL of a database with transactions will do. A transaction runs in a worker thread, so
one costs one hop out of the event loop, however many statements it has.

Whatever the database cannot do now (it is locked for too long, its disk is full or gone) is an UnavailableError, a
damaged file a CorruptError; in both cases the transaction has not taken place.

What every request asks for is remembered until anybody, in this process or another, has committed anything. For those
who remember it further on (the edges), each transaction of ours that may write is counted beside the file: before it
can commit, and once it has ended.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, UnavailableError
from ballpoint.host import process
from ballpoint.host.changes import Changes
from ballpoint.host.files import fsync_directory

T = TypeVar("T")

_BUSY_SECONDS, _AGAIN_SECONDS = 10.0, 0.01
_REMEMBERED_MAX = 10_000
_REFRESHED_MAX = 32
_MIGRATIONS = Path(__file__).with_name("migrations")


class Database:
    """An open registry database at the newest version.

    Attributes:
        counted: what is committed to it, by whichever of our processes, is counted at `changes_of` its file.
    """

    def __init__(self, engine: Engine, watch: sqlite3.Connection | None, changes: Changes | None) -> None:
        self._engine = engine
        self._watch = watch
        self._changes = changes
        self.counted = changes is not None
        self._remembered: dict[Hashable, Any] = {}
        self._asked: OrderedDict[Hashable, Callable[[Connection], Any]] = OrderedDict()
        self._remembered_at: int | None = None
        self._reading = engine.execution_options(read_only=True)
        # One writer at a time is SQLite's rule anyway; one thread keeps the order of calls. Readers have their own, so
        # that a read never stands behind the disk.
        self._writer = ThreadPoolExecutor(1, "registry-writer")
        self._reader = ThreadPoolExecutor(1, "registry-reader")

    @classmethod
    def open(cls, url: str) -> Database:
        """Open and migrate the database at `url`; a SQLite file is backed up before each migration.

        Raises:
            ConflictError: it was written by a newer version.
        """
        with _errors_told():
            engine = _engine(url)
            try:
                _migrate(engine)
                watch = _watch(engine.url)
                changes = _changes(engine.url)
            except BaseException:
                engine.dispose()
                raise
        database = cls(engine, watch, changes)
        try:
            database._change(lambda _: None)  # a migration may have been one, and what a crash cut off has ended
        except BaseException:
            database.close()
            raise
        return database

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction: committed when it returns, rolled back when it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._change, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which changes nothing, on what was committed before; waits for no writer."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._transact, self._reading, work)

    async def recall(self, key: Hashable, work: Callable[[Connection], T]) -> T:
        """`read`, or what it gave before under `key` where nothing at all has been committed since.

        So an answer is never older than the call. The key must say all that `work` depends on; nobody may change what
        it gives. What it raises is not remembered.
        """
        version = self._version()
        if version is None:
            return await self.read(work)
        if version != self._remembered_at:
            self._remembered.clear()
            self._remembered_at = version
        elif key in self._remembered:
            known: T = self._remembered[key]
            return known
        found = await self.read(work)
        # Read after the version: at worst it is newer than that, and is then forgotten at the next look.
        if version == self._remembered_at:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[key] = found
        self._asked.pop(key, None)
        self._asked[key] = work
        if len(self._asked) > _REFRESHED_MAX:
            self._asked.popitem(last=False)
        return found

    async def refresh(self) -> None:
        """Recall what was looked up last, so that it need not be looked up once it is wanted."""
        for key, work in list(self._asked.items()):
            with suppress(BallpointError):  # whoever wants it is told
                await self.recall(key, work)

    def _version(self) -> int | None:
        """A number that changes with every commit of any connection; None where it cannot be told now.

        sqlite.org/pragma.html#pragma_data_version: it is of worth to one connection that itself writes nothing. Some
        microseconds, as it looks into shared memory; it waits for no lock.
        """
        if self._watch is None:
            return None
        try:
            ((version,),) = self._watch.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:
            return None  # the transaction that is then made says what is wrong
        return int(version)

    def _change(self, work: Callable[[Connection], T]) -> T:
        number: int | None = None

        def counted(connection: Connection) -> T:
            nonlocal number
            if self._changes is not None:
                number = self._changes.begin()  # others wait until this transaction has ended
            return work(connection)

        try:
            return self._transact(self._engine, counted)
        finally:
            if self._changes is not None and number is not None:
                self._changes.end(number)

    @staticmethod
    def _transact(engine: Engine, work: Callable[[Connection], T]) -> T:
        with _errors_told(), engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        self._writer.shutdown(wait=True)
        self._reader.shutdown(wait=True)
        if self._watch is not None:
            self._watch.close()
        self._engine.dispose()
        if self._changes is not None:
            self._changes.close()


@contextmanager
def _errors_told() -> Iterator[None]:
    """Errors of the database as ours; those of a constraint are left to who knows what it means."""
    try:
        yield
    except (OperationalError, sqlite3.OperationalError, OSError) as error:
        cause = getattr(error, "orig", error)
        raise UnavailableError(f"the registry's database cannot be used now: {cause}") from error
    except DatabaseError as error:
        if type(error.orig) is not sqlite3.DatabaseError:  # SQLITE_CORRUPT and SQLITE_NOTADB have no class of their own
            raise
        raise CorruptError(
            f"the registry's database is damaged: {error.orig}", hint="stop the node and restore a backup of the file"
        ) from error


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)
    file = _file(make_url(url))
    if file is not None:
        # It holds environments with their secrets. SQLite gives its other files the mode of this one.
        file.touch(mode=0o600)
        file.chmod(0o600)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, and not by the driver
        _keep_a_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # At once for writing: a reader that turns writer later may find that it cannot (SQLITE_BUSY_SNAPSHOT).
        reads = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Set the journal mode. Of several who open a new file at once, SQLite refuses some without letting them wait."""
    deadline = SYSTEM_CLOCK.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or SYSTEM_CLOCK.monotonic() > deadline:
                raise
            process.pause(_AGAIN_SECONDS)
        else:
            return


def _file(url: URL) -> Path | None:
    """The file of a SQLite database; None for others, which have their own backups."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def _watch(url: URL) -> sqlite3.Connection | None:
    """A connection that only sees whether others commit."""
    file = _file(url)
    return None if file is None else sqlite3.connect(file, timeout=0.0, isolation_level=None, check_same_thread=False)


def url_of(file: Path) -> str:
    """SQLAlchemy URL of a SQLite database."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def changes_of(file: Path) -> Path:
    """Where changes of the database `file` are counted."""
    return file.with_name(f"{file.name}-changes")


def _changes(url: URL) -> Changes | None:
    file = _file(url)
    if file is None:
        return None
    return Changes(changes_of(file), counts=True)


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
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
    """Copy a SQLite file beside itself, whole and durable or not at all."""
    file = _file(engine.url)
    if file is None:
        return
    target = file.with_name(f"{file.name}.before-{version}-upgrade")
    partial = file.with_name(f".{target.name}.new")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
    partial.rename(target)
    fsync_directory(target.parent)
