"""The log of one volume as one process sees it: read, taken over, written, trimmed (docs/volume-format.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError, CorruptError, FencedError, InternalError, NotFoundError
from ballpoint.store.settle import create_settled
from ballpoint.store.store import LIST_MAX, Store
from ballpoint.volume.log.ahead import Ahead
from ballpoint.volume.log.blob import Blob, Reference
from ballpoint.volume.log.changes import Changes
from ballpoint.volume.log.commit import Closed, Commit, Kind, Previous, State, decode_commit, encode_commit
from ballpoint.volume.log.envelope import digest_of
from ballpoint.volume.log.keys import NUMBER_MAX, CommitName, PackName, commits_prefix, parse_commit
from ballpoint.volume.log.pack import PackBuilder

# A late writer must find them for ever.
_STAY: Final = frozenset({"seal", "delete", "abandoned"})
_DEAD: Final = frozenset({"delete", "abandoned"})
# Of a log's newest commits, for reading ahead: more than there are between two that name everything.
_LISTED: Final = 100
_NOTHING: Final = Closed(0, 0)
_EVERYTHING: Final = Closed(NUMBER_MAX, NUMBER_MAX)


@dataclass
class View:
    """What a volume is, after its log was read up to `head`.

    Attributes:
        lineage: the volume's.
        head: the newest commit; digest: the hash of its envelope.
        put_id: of the newest commit, which no other commit has.
        kind: of the newest commit.
        time: of the newest commit, in milliseconds since 1970 by its writer's clock; for people.
        last: the newest commit that is no seal: by its epoch is known who wrote the volume last.
        disk: the newest commit that changes the disk, or names everything.
        complete: the newest commit that names everything; state: what it names. None where it is closed for good.
        changes: of the disk since then, oldest first.
        settings: of the sprite, the newest.
        trashed: as in State, the newest.
        closed: up to which pack of the volume all are referred to, or garbage.
        count: commits until now.
    """

    lineage: UUID
    head: CommitName
    digest: bytes
    put_id: bytes
    kind: Kind
    time: int
    last: CommitName
    disk: CommitName
    complete: CommitName | None = None
    state: State | None = None
    changes: list[Changes] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    trashed: int | None = None
    closed: Closed = _NOTHING
    count: int = 0

    @classmethod
    def of(cls, first: Commit, digest: bytes) -> View:
        """The volume after `first`, a commit that names everything or closes the volume for good.

        Args:
            digest: the hash of its envelope.
        """
        view = cls(first.lineage, first.name, digest, first.put_id, first.kind, first.time, first.name, first.name)
        view.apply(first, digest)
        return view

    @property
    def dead(self) -> bool:
        """Whether the volume is closed for good."""
        return self.kind in _DEAD

    @property
    def next(self) -> CommitName:
        """Where the next commit goes; after a seal, a new epoch begins."""
        if self.kind == "seal":
            return CommitName(self.head.volume, self.head.epoch + 1, 1)
        return CommitName(self.head.volume, self.head.epoch, self.head.number + 1)

    def apply(self, commit: Commit, digest: bytes) -> None:
        """Go on to the commit after `head`."""
        self.head, self.digest, self.put_id = commit.name, digest, commit.put_id
        self.kind, self.time = commit.kind, commit.time
        if commit.kind != "seal":
            self.last = commit.name
        if commit.kind == "data" or commit.state is not None:
            self.disk = commit.name
        self.count += 1
        self.closed = max(self.closed, commit.closed)
        if commit.state is not None:
            self.complete, self.state = commit.name, commit.state
            self.changes = []
            self.settings, self.trashed, self.count = commit.state.settings, commit.state.trashed, commit.state.count
        elif commit.kind == "seal":
            self.closed = Closed(commit.name.epoch, NUMBER_MAX)
        elif commit.kind == "data":
            self.changes.append(commit.changes)
        elif commit.kind == "settings":
            assert commit.settings is not None
            self.settings = commit.settings
        elif commit.kind in ("trash", "untrash"):
            self.trashed = commit.time if commit.kind == "trash" else None
        elif commit.kind in _DEAD:
            self.closed = _EVERYTHING
            self.complete, self.state, self.changes = None, None, []


async def read(store: Store, volume: UUID) -> View | None:
    """Read a volume's log: from its head down to a commit that names everything. None where it has no commit.

    Of one that is closed for good only that is read, and nothing below needs to be there.

    Raises:
        CorruptError: a commit is damaged, or gone although the log has not changed since.
        ConflictError: one was made by a later version.
    """
    trouble: tuple[CommitName, CommitName] | None = None
    while True:
        page = await store.list(commits_prefix(volume), limit=_LISTED)
        if not page:
            return None
        listed = [parse_commit(item.key) for item in page]
        head = listed[0]
        found = await _chain(Ahead(store, listed), head)
        if isinstance(found, CommitName):
            # It was trimmed between the listing and now, and the log has another head; or it is lost.
            if trouble == (head, found):
                raise CorruptError(
                    f"{found.key} is not there, and {head.key} needs it", hint="look at the store and its copies"
                )
            trouble = (head, found)
            continue
        first, *others = reversed(found)
        view = View.of(*first)
        for each in others:
            view.apply(*each)
        return view


class OutdatedError(ConflictError):
    """The log has gone on since it was read, and what it named then is not there any more: read it again."""


async def missing(store: Store, view: View, pack: PackName, touched: str) -> CorruptError | OutdatedError:
    """The error that says why a pack is not there that `view` reaches: the log has gone on since, or it is lost.

    Args:
        touched: what cannot be read without it.
    """
    now = await read(store, view.head.volume)
    if now is not None and now.digest != view.digest:
        return OutdatedError(f"the log of volume {view.head.volume} has gone on, and {pack.key} is not in it any more")
    return CorruptError(f"{pack.key} is not there; {touched} cannot be read", hint="look at the store and its copies")


async def _chain(commits: Ahead, head: CommitName) -> list[tuple[Commit, bytes]] | CommitName:
    """The commits from `head` down to one that names everything, with their hashes; or the name of one that is gone."""
    chain: list[tuple[Commit, bytes]] = []
    name, expected = head, b""
    while True:
        data = await commits.get(name)
        if data is None or (expected and digest_of(data) != expected):
            return name
        commit = decode_commit(data, name)
        chain.append((commit, digest_of(data)))
        if commit.state is not None or commit.kind in _DEAD:
            return chain
        assert commit.previous is not None
        expected = commit.previous.digest
        name = CommitName(name.volume, commit.previous.epoch, commit.previous.number)


async def begin(
    store: Store,
    volume: UUID,
    lineage: UUID,
    state: State,
    *,
    writer: str,
    closed: Closed = _NOTHING,
    clock: Clock = SYSTEM_CLOCK,
) -> Writer | None:
    """Write a volume's first commit. Whoever makes it is the writer of epoch 1, and needs not take over.

    Its member record is there already (`fork.join`), and what `state` refers to is stored.

    Args:
        state: the whole volume; its count is 1.
        writer: who this is, for people.
        closed: the last pack of the volume that was stored for this commit.

    Returns:
        None where somebody was first: then the volume is to be taken over, if it is not closed for good.

    Raises:
        UnknownOutcomeError: it may be there now, or come later: take the volume over.
    """
    name = CommitName(volume, 1, 1)
    commit = Commit(
        name=name,
        lineage=lineage,
        put_id=ids.new_put_id(),
        writer=writer,
        time=milliseconds(clock),
        previous=None,
        kind="root",
        closed=closed,
        changes=Changes(name),
        state=state,
    )
    data = encode_commit(commit)
    if not await create_settled(store, name.key, data, clock=clock):
        return None
    return Writer(store, View.of(commit, digest_of(data)), writer, clock)


class Writer:
    """The one process that may write a volume's log, until another takes it over. Made by `begin` and `take_over`.

    Attributes:
        view: the volume after the last commit that is known to be there; its head's name, put-id and hash are there.
        epoch: of its commits and packs.
    """

    def __init__(self, store: Store, view: View, writer: str, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._one = asyncio.Lock()
        self._pending: tuple[Commit, bytes] | None = None
        self._fenced = False
        self._rests = False
        self._known: dict[CommitName, bool] = {}
        self.view = view
        self.epoch = view.next.epoch
        # Above those that were stored before `begin`; a seal closes every pack of an older epoch.
        self._uploads = view.closed.upload if view.closed.epoch == self.epoch else 0

    @classmethod
    async def take_over(cls, store: Store, volume: UUID, *, writer: str, clock: Clock = SYSTEM_CLOCK) -> Writer | None:
        """Seal what is there: whoever wrote until now can write no more.

        A crash before the seal leaves nothing, after it an epoch without commits.

        Args:
            writer: who this is, for people.

        Returns:
            None where the volume has no log, or is closed for good.

        Raises:
            UnknownOutcomeError: the seal may be there now, or come later.
            CorruptError, ConflictError: as `read`.
        """
        while True:
            view = await read(store, volume)
            if view is None or view.dead:
                return None
            seal = _commit(view, "seal", writer, clock, closed=view.closed)
            data = encode_commit(seal)
            if not await create_settled(store, seal.name.key, data, clock=clock):
                continue  # somebody else was first
            (highest,) = await store.list(commits_prefix(volume), limit=1)
            if highest.key != seal.name.key:
                continue  # it stands where a commit was trimmed, and seals nothing
            view.apply(seal, digest_of(data))
            return cls(store, view, writer, clock)

    def new_pack(self) -> PackBuilder:
        """A pack to be filled and stored. Each is above all earlier ones of the epoch, as `closed` demands."""
        self._uploads += 1
        name = PackName(self.view.head.volume, self.epoch, self._uploads, ids.new_put_id())
        return PackBuilder(name, self.view.lineage)

    async def commit(
        self,
        kind: Kind,
        *,
        closed: Closed | None = None,
        blocks: Iterable[tuple[int, Reference | Blob | None]] = (),
        settings: dict[str, Any] | None = None,
        state: State | None = None,
    ) -> CommitName:
        """Write the next commit. What it refers to is stored already.

        Args:
            closed: up to which pack of this volume all are referred to by now, or garbage; None: as before.
            blocks: changes of the disk, for `data`: as `Changes.of`.
            settings: for `settings`.
            state: for commits that name everything; its `count` is of this commit.

        Raises:
            FencedError: another process has taken the volume over; nothing of this process will ever be in its log.
            UnknownOutcomeError: it may be there now, or come later; the next call finds out before it writes.
        """
        async with self._one:
            await self._settle()
            name = self.view.next
            commit = _commit(
                self.view,
                kind,
                self._writer,
                self._clock,
                closed=closed or self.view.closed,
                changes=Changes.of(name, blocks),
                settings=settings,
                state=state,
            )
            self._pending = commit, encode_commit(commit)
            await self._settle()
            return name

    async def settle(self) -> None:
        """Find out what became of a commit whose outcome is not known. Errors as `commit`."""
        async with self._one:
            await self._settle()

    def rest(self) -> None:
        """Let go of the blocks that are inline in commits, which are up to 16 MiB until the next complete commit.

        Whoever stores the map of the volume calls `recall` first. Idempotent.
        """
        self.view.changes = [changes.without_inline() for changes in self.view.changes]
        self._rests = True

    async def recall(self) -> None:
        """Have again what `rest` let go of: the log is read once more. Idempotent.

        Raises:
            FencedError: another process has written it.
            CorruptError: it ends before the last commit of this one; others as `read`.
        """
        async with self._one:
            await self._settle()
            if not self._rests or not self.view.changes:
                self._rests = False
                return
            view = await read(self._store, self.view.head.volume)
            if view is not None and view.next > self.view.next:
                raise FencedError(f"volume {self.view.head.volume} has another writer")
            if view is None or view.digest != self.view.digest:
                raise CorruptError(f"{self.view.head.key} is not there", hint="look at the store and its copies")
            self.view.changes, self._rests = view.changes, False

    async def _settle(self) -> None:
        if self._fenced:
            raise FencedError(f"volume {self.view.head.volume} has another writer")
        if self._pending is None:
            return
        commit, data = self._pending
        if not await create_settled(self._store, commit.name.key, data, clock=self._clock):
            self._fenced = True
            raise FencedError(
                f"volume {commit.name.volume} has another writer", hint="what is local and not committed is kept aside"
            )
        self._pending = None
        self._known[commit.name] = commit.kind in _STAY
        self.view.apply(commit, digest_of(data))

    async def trim(self) -> int:
        """Delete commits that no reader needs any more. Idempotent; a crash leaves some of them.

        Returns:
            How many were deleted.

        Raises:
            UnknownOutcomeError: some may be there still.
        """
        if self.view.complete is None:
            raise InternalError("a volume that is closed for good is trimmed by whoever collects its garbage")
        return await trim(self._store, self.view.complete, self._known)


async def trim(store: Store, below: CommitName, known: dict[CommitName, bool]) -> int:
    """Delete the commits below one that names everything, or closes the volume for good. Idempotent.

    Args:
        known: of commits that need not be read for that, whether they stay; more are added to it.

    Returns:
        How many were deleted.

    Raises:
        UnknownOutcomeError: some may be there still.
    """
    prefix, after = commits_prefix(below.volume), below.key
    deleted = 0
    while page := await store.list(prefix, after=after):
        names = [parse_commit(item.key) for item in page]
        doomed = [name for name in names if not await _stays(store, name, known)]
        await store.delete([name.key for name in doomed])
        for name in doomed:
            known.pop(name, None)  # a seal that comes late may take its place
        deleted += len(doomed)
        after = page[-1].key
        if len(page) < LIST_MAX:
            break
    return deleted


async def _stays(store: Store, name: CommitName, known: dict[CommitName, bool]) -> bool:
    if name not in known:
        try:
            known[name] = decode_commit(await store.get(name.key), name).kind in _STAY
        except NotFoundError:
            return True  # gone already
    return known[name]


def _commit(
    view: View,
    kind: Kind,
    writer: str,
    clock: Clock,
    *,
    closed: Closed,
    changes: Changes | None = None,
    settings: dict[str, Any] | None = None,
    state: State | None = None,
) -> Commit:
    name = view.next
    return Commit(
        name=name,
        lineage=view.lineage,
        put_id=ids.new_put_id(),
        writer=writer,
        time=milliseconds(clock),
        previous=Previous(view.head.epoch, view.head.number, view.digest),
        kind=kind,
        closed=closed,
        changes=changes or Changes(name),
        settings=settings,
        state=state,
    )


def milliseconds(clock: Clock) -> int:
    """The time, as commits and members have it."""
    return round(clock.now().timestamp() * 1000)
