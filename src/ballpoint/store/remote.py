"""A store in a bucket of S3, GCS or Azure, or of what speaks as they do.

obstore makes each request once: its own retries are off (store.url), because a create that is sent again finds what the
first one made and takes it for another's. Whatever is idempotent is repeated here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import NoReturn, TypeVar

import obstore
from obstore.store import ObjectStore

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import InvalidError, NotFoundError, UnavailableError
from ballpoint.store.store import LIST_MAX, Item, Items, UnknownOutcomeError, check_key
from ballpoint.store.trouble import FAILURES, NO_ANSWER, Trouble, trouble_of

T = TypeVar("T")

# A call's deadline, and what it is longer by for each byte that it moves: 1 MiB/s is a poor line.
SECONDS = 60.0
_SLOWEST = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


class RemoteStore:
    """A store below a prefix of a bucket."""

    def __init__(
        self,
        objects: ObjectStore,
        name: str,
        prefix: str = "",
        *,
        seconds: float = SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            objects: obstore's store, without retries.
            name: what messages call it; must hold no secret.
            prefix: what all keys begin with in the bucket: a key, or "".
            seconds: a call's deadline; one of much data has more.
        """
        self._objects = objects
        self._name = name
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._seconds = seconds
        self._clock = clock

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)

        async def get() -> bytes:
            try:
                return await self._get(path, start, length)
            except FAILURES as failure:
                trouble = trouble_of(failure)
                if trouble.not_found:
                    raise NotFoundError(f"the store has no {key}") from None
                if trouble.status == 416:
                    # Of an empty object there is no range at all, not even one that begins at 0.
                    if start == 0:
                        return b""
                    raise InvalidError(f"{key} has no byte at {start}") from None
                raise

        return await self._repeat(get, f"get {key}", length or 0)

    async def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        # In parts, an object would be three requests at least, and what a crash leaves of it would be paid for.
        await self._repeat(
            lambda: obstore.put_async(self._objects, path, data, use_multipart=False),
            f"put {key}",
            len(data),
            changes=True,
        )

    async def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        trouble, pause = NO_ANSWER, _FIRST_PAUSE
        try:
            async with asyncio.timeout(self._deadline(len(data))):
                while True:
                    try:
                        await obstore.put_async(self._objects, path, data, mode="create", use_multipart=False)
                        return True
                    except FAILURES as failure:
                        trouble = trouble_of(failure)
                    if trouble.exists:
                        return False
                    if trouble.status != 409:
                        break
                    # Somebody creates or deletes it right now. Ours was not carried out, and may be sent again.
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            trouble = NO_ANSWER
        self._fail(f"create {key}", trouble, unknown=trouble.open)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        return await self._repeat(lambda: self._list(prefix, after, min(limit, LIST_MAX)), f"list {prefix}")

    async def delete(self, keys: Collection[str]) -> None:
        paths = [self._path(key) for key in keys]
        if paths:
            await self._repeat(lambda: self._delete(paths), f"delete {len(paths)} objects", changes=True)

    async def close(self) -> None:
        """Nothing is to be done: connections end with their last user, or when they have been idle for a while."""

    async def _get(self, path: str, start: int, length: int | None) -> bytes:
        if length == 0:
            # HTTP has no empty range, and an answer to HEAD has no body to tell a missing bucket from a missing object.
            await obstore.get_range_async(self._objects, path, start=start, length=1)
            return b""
        if length is not None:
            return bytes(await obstore.get_range_async(self._objects, path, start=start, length=length))
        options: obstore.GetOptions | None = {"range": {"offset": start}} if start else None
        result = await obstore.get_async(self._objects, path, options=options)
        return bytes(await result.bytes_async())

    async def _list(self, prefix: str, after: str, limit: int) -> Items:
        # obstore's prefixes are of whole segments; ours are not.
        directory = f"{self._prefix}{prefix}".rpartition("/")[0]
        # obstore drops a slash at the end, and then SeaweedFS goes on after all that is below it.
        offset = f"{self._prefix}{after}" if after and not after.endswith("/") else None
        found: Items = []
        if limit < 1:
            return found
        last = ""
        async for chunk in obstore.list(self._objects, directory or None, offset=offset, chunk_size=limit):
            for meta in chunk:
                key = meta["path"].removeprefix(self._prefix)
                if key <= last:
                    # Going on after the last key of such a page would pass over others in silence.
                    raise InvalidError(
                        f"{self._name} lists {key} after {last}", hint="a store must list keys in the order of bytes"
                    )
                last = key
                if key > prefix and not key.startswith(prefix):
                    return found
                if key.startswith(prefix) and key > after:
                    found.append(Item(key, meta["size"]))
                    if len(found) == limit:
                        return found
        return found

    async def _delete(self, paths: Collection[str]) -> None:
        try:
            await obstore.delete_async(self._objects, [*paths])
        except FileNotFoundError as failure:
            if not trouble_of(failure).not_found:
                raise
            # GCS and Azure say so of an object that is not there, and the others may not have been tried then.
            for path in paths:
                try:
                    await obstore.delete_async(self._objects, path)
                except FileNotFoundError as single:
                    if not trouble_of(single).not_found:
                        raise

    async def _repeat(self, work: Callable[[], Awaitable[T]], what: str, size: int = 0, *, changes: bool = False) -> T:
        """Do `work`, which is idempotent, until it is done, within one deadline."""
        trouble, pause, unknown = NO_ANSWER, _FIRST_PAUSE, False
        deadline = self._deadline(size)
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        # A connection that died without a word must not have the whole time.
                        async with asyncio.timeout(deadline / 3):
                            return await work()
                    except TimeoutError:
                        trouble = NO_ANSWER
                    except FAILURES as failure:
                        trouble = trouble_of(failure)
                    unknown = unknown or (changes and trouble.open)
                    if not trouble.passing:
                        break
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            unknown = changes
        self._fail(what, trouble, unknown=unknown)

    def _deadline(self, size: int) -> float:
        return self._seconds + size / _SLOWEST

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _fail(self, what: str, trouble: Trouble, *, unknown: bool) -> NoReturn:
        kind = UnknownOutcomeError if unknown else InvalidError if trouble.wrong else UnavailableError
        # Without its cause, which quotes the server, as servers do signatures.
        raise kind(f"{self._name}: {what}: {trouble.reason}", hint=trouble.hint) from None
