"""Commits: the records of a volume's log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from ballpoint.core.errors import InternalError
from ballpoint.volume.log import envelope
from ballpoint.volume.log.blob import Reference
from ballpoint.volume.log.changes import Changes
from ballpoint.volume.log.envelope import COMMIT, DIGEST_BYTES, damaged
from ballpoint.volume.log.keys import NUMBER_MAX, CommitName, Id, Number, PackName

Kind = Literal[
    "data",
    "checkpoint",
    "forget",
    "restore",
    "settings",
    "compact",
    "root",
    "seal",
    "trash",
    "untrash",
    "delete",
    "abandoned",
]
_COMPLETE: Final = frozenset({"checkpoint", "forget", "restore", "compact", "root"})

Count = Annotated[int, msgspec.Meta(ge=0)]
_UpTo = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Previous(msgspec.Struct, frozen=True, array_like=True):
    """The commit before.

    Attributes:
        digest: its envelope's hash.
    """

    epoch: Number
    number: Number
    digest: _Digest


class Closed(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Up to which pack of the volume all are referred to, or garbage; (0, 0): none."""

    epoch: _UpTo
    upload: _UpTo


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A state of the disk that is kept.

    Attributes:
        id: its name.
        time: milliseconds since 1970, by the clock of who made it.
        comment: the user's.
        auto: nobody asked for it.
        image: digest of the standard image below the disk.
        root: of its map.
    """

    id: str
    time: int
    comment: str
    auto: bool
    image: str
    root: Reference


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All there is of a volume.

    Attributes:
        root: of its map.
        checkpoints: oldest first.
        image: digest of the standard image below the disk.
        size: apparent size of the disk in bytes.
        settings: of the sprite; the log does not look into them.
        trashed: when it was put into the trash, in milliseconds since 1970.
        count: commits of the volume until now, this one among them.
        next: number of the checkpoint that is asked for next: an id is given once.
    """

    root: Reference
    checkpoints: tuple[Checkpoint, ...]
    image: str
    size: Count
    settings: dict[str, Any]
    trashed: int | None
    count: Number
    next: Count = 0


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A record of a volume's log.

    Attributes:
        name: its place in the log.
        lineage: the volume's.
        put_id: 16 random bytes; no other commit has them.
        writer: which node, for people.
        time: milliseconds since 1970 by the writer's clock; never for order.
        previous: None in a volume's first.
        closed: of a `seal`, `delete` or `abandoned`, which close more than they say, as it was before.
        changes: of the disk; in `data` only.
        settings: all of them, in `settings` only.
        state: in complete commits, and only there.
    """

    name: CommitName
    lineage: UUID
    put_id: bytes
    writer: str
    time: int
    previous: Previous | None
    kind: Kind
    closed: Closed
    changes: Changes
    settings: dict[str, Any] | None = None
    state: State | None = None


class _Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    volume: UUID
    lineage: UUID
    epoch: Number
    number: Number
    put_id: Id
    writer: str
    time: int
    previous: Previous | None
    kind: Kind
    closed: Closed
    changes: Count
    packs: tuple[PackName, ...]
    settings: dict[str, Any] | None = None
    state: State | None = None


_DECODER: Final = msgspec.msgpack.Decoder(_Header)


def is_complete(kind: Kind, previous: Previous | None) -> bool:
    """Whether such a commit names everything there is of its volume."""
    return kind in _COMPLETE or (previous is None and kind != "abandoned")


def encode_commit(commit: Commit) -> bytes:
    """The object that is stored under the commit's key.

    Raises:
        InternalError: no commit may be like this.
    """
    if problem := _contradiction(commit):
        raise InternalError(f"a commit cannot be written as {commit.name.key}: {problem}")
    header = _Header(
        volume=commit.name.volume,
        lineage=commit.lineage,
        epoch=commit.name.epoch,
        number=commit.name.number,
        put_id=commit.put_id,
        writer=commit.writer,
        time=commit.time,
        previous=commit.previous,
        kind=commit.kind,
        closed=commit.closed,
        changes=len(commit.changes),
        packs=commit.changes.packs,
        settings=commit.settings,
        state=commit.state,
    )
    return envelope.seal(COMMIT, header, [commit.changes.entries, commit.changes.inline], _DECODER)


def decode_commit(data: bytes, name: CommitName) -> Commit:
    """The commit in `data`.

    Args:
        name: where it was found.

    Raises:
        CorruptError: it is damaged, or another one.
        ConflictError: it was made by a later version.
    """
    opened = envelope.unseal(COMMIT, data, name.key)
    header = envelope.read_header(_DECODER, opened.header, name.key)
    said = CommitName(header.volume, header.epoch, header.number)
    if said != name:
        raise damaged(name.key, f"it is the commit {said.key}")
    commit = Commit(
        name=name,
        lineage=header.lineage,
        put_id=header.put_id,
        writer=header.writer,
        time=header.time,
        previous=header.previous,
        kind=header.kind,
        closed=header.closed,
        changes=Changes.read(name, header.changes, header.packs, opened.body),
        settings=header.settings,
        state=header.state,
    )
    if problem := _contradiction(commit):
        raise damaged(name.key, problem)
    return commit


def _contradiction(commit: Commit) -> str | None:
    """What in a commit contradicts the rules that every reader relies on."""
    name, previous, complete = commit.name, commit.previous, is_complete(commit.kind, commit.previous)
    if commit.changes.commit != name:
        return f"its changes are those of {commit.changes.commit.key}"
    if (previous is None) != ((name.epoch, name.number) == (1, 1)):
        return "the first commit of a volume, and no other, is (1, 1)"
    if previous is not None and not _follows(name, previous):
        return f"it cannot follow ({previous.epoch}, {previous.number})"
    if complete != (commit.state is not None):
        return f"a commit `{commit.kind}` here {'names' if complete else 'does not name'} the whole state"
    if commit.changes and (complete or commit.kind != "data"):
        return f"a commit `{commit.kind}` here changes no blocks"
    if (commit.settings is not None) != (commit.kind == "settings" and not complete):
        return f"a commit `{commit.kind}` here {'lacks its' if commit.settings is None else 'has no'} settings"
    return None


def _follows(name: CommitName, previous: Previous) -> bool:
    if name.number == 1:
        return previous.epoch == name.epoch - 1
    return (previous.epoch, previous.number) == (name.epoch, name.number - 1)
