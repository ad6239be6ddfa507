"""The node's store: shown to be this deployment's before anything is read or written, and known to answer or not.

DATA/store.json remembers whose the store is, so that neither a wrong URL nor a lost bucket is taken for an empty store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import BallpointError, ConflictError, CorruptError, UnavailableError
from ballpoint.host.files import write_atomically
from ballpoint.store.deployment import Deployment, claim, new_deployment, read_deployment
from ballpoint.store.probe import probe
from ballpoint.store.store import LIST_MAX, Items, Store
from ballpoint.store.url import check_url, open_store, redacted

log = logging.getLogger(__name__)

T = TypeVar("T")

_FILE = "store.json"
# Below the data directory while it is being filled from the store: no node may start there.
RECOVERING = "recovering"
_FORMAT = 1
# What a start waits for a store that the node has used before: its sprites need none to run.
_START_SECONDS = 5.0


class Memory(msgspec.Struct, frozen=True):
    """Content of DATA/store.json.

    Attributes:
        deployment: whose the store is.
        url: of the store that was tried and found good; "" while none was.
        settled: the store says so, too. Without, a crash may have come before or after it was told.
    """

    deployment: Deployment
    url: str = ""
    settled: bool = False
    format: int = _FORMAT


def read_memory(data: Path) -> Memory | None:
    """What the node in `data` remembers of its store; None where it never used one.

    Raises:
        ConflictError: a later version wrote it.
        CorruptError: the file is damaged.
    """
    file = data / _FILE
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if int(msgspec.json.decode(text, type=dict)["format"]) > _FORMAT:
            raise ConflictError(f"a later version wrote {file}", hint="use that version")
        return msgspec.json.decode(text, type=Memory)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            f"{file} is damaged: {error}", hint="the store's object `deployment` has what belongs there: docs/store.md"
        ) from error


def write_memory(data: Path, memory: Memory) -> None:
    """Remember it; durable when this returns."""
    write_atomically(data / _FILE, msgspec.json.encode(memory), mode=0o600)


class Storage:
    """The node's store, as a `Store`: before its first operation it is looked whose the store is.

    Attributes:
        away_since: when the store ceased to answer; None while it answers, as far as anybody asked.
        trouble: what it said, or did not say, when it was asked last; None likewise.
    """

    def __init__(self, url: str, memory: Memory, clock: Clock = SYSTEM_CLOCK) -> None:
        self._url = url
        self._name = redacted(url)
        self._memory = memory
        self._clock = clock
        self._store: Store | None = None
        self._ours = False
        self._looking = asyncio.Lock()
        self.away_since: datetime | None = None
        self.trouble: str | None = None

    @classmethod
    async def open(cls, config: NodeConfig, clock: Clock = SYSTEM_CLOCK) -> Storage:
        """The store that `config` names.

        One that the node in `config.data` never used must answer, is tried, and becomes this deployment's. One that it
        used before may be away: then the node starts without, and finds out at the first use whose it is.

        Raises:
            InvalidError: the URL is wrong, or the store does not do what it must.
            ConflictError: the store is another deployment's; or it is empty, and was not; or of a later version; or the
                data directory is being filled from it.
            CorruptError: what says whose it is, there or here, is damaged.
            UnavailableError: a store that was never used does not answer, or cannot be written to.
        """
        url = check_url(config.store_url)
        if (config.data / RECOVERING).exists():
            raise ConflictError(
                f"a recovery into {config.data} was interrupted",
                hint=f"ballpoint recover --data {config.data} --store {url}",
            )
        memory = await asyncio.to_thread(read_memory, config.data)
        known = memory is not None and memory.settled and memory.url == url
        if memory is None:
            memory = Memory(new_deployment(clock))
            # Before the store is told: a crash between the two must not make a stranger of its owner.
            await asyncio.to_thread(write_memory, config.data, memory)
        storage = cls(url, memory, clock)
        try:
            if known:
                await storage._look_soon()
            else:
                await storage._begin()
                done = msgspec.structs.replace(memory, url=url, settled=True)
                await asyncio.to_thread(write_memory, config.data, done)
        except BaseException:
            await storage.close()
            raise
        return storage

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        store = await self._checked()
        return await self._heard(store.get(key, start, length))

    async def put(self, key: str, data: bytes) -> None:
        store = await self._checked()
        await self._heard(store.put(key, data))

    async def create(self, key: str, data: bytes) -> bool:
        store = await self._checked()
        return await self._heard(store.create(key, data))

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_MAX) -> Items:
        store = await self._checked()
        return await self._heard(store.list(prefix, after=after, limit=limit))

    async def delete(self, keys: Collection[str]) -> None:
        store = await self._checked()
        await self._heard(store.delete(keys))

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def _begin(self) -> None:
        """Try a store that this node has not used, and make it this deployment's."""
        store = await self._opened()
        if self._memory.settled:
            await self._look(store)  # another URL must lead to the same store, or to one that was copied from it
            await probe(store)
        else:
            await probe(store)
            await claim(store, self._memory.deployment)
        self._ours = True

    async def _look_soon(self) -> None:
        """See whose the store is, if it says so soon."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._checked()
        except TimeoutError:
            self._away(f"it does not answer within {_START_SECONDS:g} s")
        except UnavailableError:
            pass  # `_heard` has said it

    async def _checked(self) -> Store:
        """The store, once it has said that it is this deployment's."""
        if not self._ours or self._store is None:
            async with self._looking:
                store = await self._opened()
                if not self._ours:
                    await self._look(store)
                    self._ours = True
                return store
        return self._store

    async def _opened(self) -> Store:
        if self._store is None:
            # A directory is made and written to.
            self._store = await self._heard(asyncio.to_thread(open_store, self._url))
        return self._store

    async def _look(self, store: Store) -> None:
        found = await self._heard(read_deployment(store))
        if found is None:
            raise ConflictError(
                f"the store {self._name} is empty, and the disks of this deployment are not in it",
                hint="correct --store, or bring back what was in it; to move to another, copy all objects there first",
            )
        if found.id != self._memory.deployment.id:
            raise ConflictError(
                f"the store {self._name} is another deployment's ({found.id})", hint="correct --store: docs/store.md"
            )

    async def _heard(self, call: Awaitable[T]) -> T:
        """Wait for `call`, and notice whether the store answered it."""
        try:
            result = await call
        except UnavailableError as error:
            self._away(str(error))
            raise
        except BallpointError:
            self._answers()
            raise
        self._answers()
        return result

    def _away(self, why: str) -> None:
        if self.away_since is None:
            self.away_since = self._clock.now()
            log.warning("the store %s does not answer; what sprites write stays on this host: %s", self._name, why)
        self.trouble = why

    def _answers(self) -> None:
        if self.away_since is not None:
            away = (self._clock.now() - self.away_since).total_seconds()
            log.warning("the store %s answers again, after %.0f s", self._name, away)
        self.away_since = self.trouble = None
