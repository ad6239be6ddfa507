"""A store in a directory: an object is a file, made whole under another name and then linked.

link(2) is create-if-absent on every Linux file system, and no reader sees half a file. A crash leaves files in `.new`,
which is no key; they go when they are a day old.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import InvalidError, NotFoundError, UnavailableError
from ballpoint.host.files import fsync_directory
from ballpoint.store.store import LIST_MAX, Item, Items, UnknownOutcomeError, check_key

T = TypeVar("T")

_NEW = ".new"
_LEFTOVER_SECONDS = 86400.0
_THREADS = 8
# A disk that does not answer in this time is not answering.
_SECONDS = 60.0


class DirectoryStore:
    """A store below `root`, which may be used by many processes of one host."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            UnavailableError: the directory cannot be made or written to.
        """
        self._root = root
        self._threads = ThreadPoolExecutor(_THREADS, "store")
        try:
            _make_directory(root / _NEW)
            self._sweep()
        except OSError as error:
            raise UnavailableError(f"the store in {root} cannot be used: {error.strerror}") from error

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return await self._run(lambda: self._get(key, start, length))

    async def put(self, key: str, data: bytes) -> None:
        await self._run(lambda: self._create(key, data), changes=True)

    async def create(self, key: str, data: bytes) -> bool:
        return await self._run(lambda: self._create(key, data), changes=True)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        return await self._run(lambda: self._list(prefix, after, min(limit, LIST_MAX)))

    async def delete(self, keys: Collection[str]) -> None:
        await self._run(lambda: self._delete(keys), changes=True)

    async def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], *, changes: bool = False) -> T:
        """Run `work` in a thread; one that a disk holds is left to itself."""
        try:
            async with asyncio.timeout(_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            kind = UnknownOutcomeError if changes else UnavailableError
            raise kind(f"the store in {self._root} does not answer within {_SECONDS:g} s") from error
        except OSError as error:
            # A change may be seen by now, and not be durable.
            kind = UnknownOutcomeError if changes else UnavailableError
            raise kind(f"the store in {self._root}: {error.strerror}", hint="look at its disk") from error

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"the store has no {key}") from error
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise NotFoundError(f"the store has no {key}")
            size = status.st_size
            if start > 0 and start >= size:
                raise InvalidError(f"{key} has {size} bytes, and none at {start}")
            wanted = size - start if length is None else min(length, size - start)
            pieces = []
            while wanted > 0 and (piece := os.pread(fd, wanted, start)):
                pieces.append(piece)
                start, wanted = start + len(piece), wanted - len(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)

    def _create(self, key: str, data: bytes) -> bool:
        target = self._path(key)
        new = self._root / _NEW / ids.new_uuid()
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                _make_directory(target.parent)
                os.link(new, target)
            except NotADirectoryError as error:
                raise InvalidError(f"the store has an object above {key}") from error
            except FileExistsError as error:
                if target.is_dir():
                    raise InvalidError(f"the store has objects below {key}") from error
                # Whoever made it may not have made it durable yet, and our caller relies on it.
                fsync_directory(target.parent)
                return False
            fsync_directory(target.parent)
            return True
        finally:
            new.unlink()

    def _list(self, prefix: str, after: str, limit: int) -> Items:
        found: Items = []
        for key, path in self._walk(self._root, "", prefix, after):
            if len(found) == limit:
                break
            with suppress(FileNotFoundError):  # deleted right now
                found.append(Item(key, path.stat().st_size))
        return found

    def _walk(self, directory: Path, above: str, prefix: str, after: str) -> Iterator[tuple[str, Path]]:
        """Keys below `directory` in the order of their bytes, in which `a-b` comes before `a/b`."""
        try:
            entries = sorted((f"{entry.name}/" if entry.is_dir() else entry.name) for entry in os.scandir(directory))
        except FileNotFoundError:
            return
        for name in entries:
            key = above + name
            if name.startswith(".") or not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if name.endswith("/"):
                if not after or key > after or after.startswith(key):
                    yield from self._walk(directory / name, key, prefix, after)
            elif key.startswith(prefix) and key > after:
                yield key, directory / name

    def _delete(self, keys: Collection[str]) -> None:
        directories = set()
        for key in keys:
            path = self._path(key)
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                directories.add(path.parent)
        for directory in directories:
            fsync_directory(directory)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _sweep(self) -> None:
        now = SYSTEM_CLOCK.now().timestamp()
        for path in (self._root / _NEW).iterdir():
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()


def _make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, each durable before what is in it."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fsync_directory(path.parent)
