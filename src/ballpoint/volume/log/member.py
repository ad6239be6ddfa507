"""Members: the records that say that a volume belongs to a lineage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from ballpoint.volume.log import envelope
from ballpoint.volume.log.blob import Reference
from ballpoint.volume.log.envelope import MEMBER, damaged
from ballpoint.volume.log.keys import Id, MemberName


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a fork began with.

    Attributes:
        volume: of which it is a fork.
        checkpoint: id of the one it was made from.
        root: of that one's map; until the fork has committed, this keeps its packs.
    """

    volume: UUID
    checkpoint: str
    root: Reference


@dataclass(frozen=True, kw_only=True)
class Member:
    """That a volume belongs to a lineage.

    Attributes:
        put_id: 16 random bytes; no other member has them.
        time: milliseconds since 1970 by the writer's clock, for people.
        source: None where it is no fork.
    """

    name: MemberName
    put_id: bytes
    time: int
    source: Source | None = None


class _Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    volume: UUID
    lineage: UUID
    put_id: Id
    time: int
    source: UUID | None = None
    checkpoint: str | None = None
    root: Reference | None = None


_DECODER: Final = msgspec.msgpack.Decoder(_Header)


def encode_member(member: Member) -> bytes:
    """The object that is stored under the member's key."""
    source = member.source
    header = _Header(
        volume=member.name.volume,
        lineage=member.name.lineage,
        put_id=member.put_id,
        time=member.time,
        source=source.volume if source else None,
        checkpoint=source.checkpoint if source else None,
        root=source.root if source else None,
    )
    return envelope.seal(MEMBER, header, [], _DECODER)


def decode_member(data: bytes, name: MemberName) -> Member:
    """The member in `data`.

    Args:
        name: where it was found.

    Raises:
        CorruptError: it is damaged, or another one.
        ConflictError: it was made by a later version.
    """
    opened = envelope.unseal(MEMBER, data, name.key)
    header = envelope.read_header(_DECODER, opened.header, name.key)
    said = MemberName(header.lineage, header.volume)
    if said != name:
        raise damaged(name.key, f"it is the member {said.key}")
    if opened.body:
        raise damaged(name.key, f"a member has no body, and this one has {len(opened.body)} bytes")
    return Member(name=name, put_id=header.put_id, time=header.time, source=_source(header, name.key))


def _source(header: _Header, key: str) -> Source | None:
    if header.source is None and header.checkpoint is None and header.root is None:
        return None
    if header.source is None or header.checkpoint is None or header.root is None:
        raise damaged(key, "it names a fork's source, checkpoint and root only in part")
    return Source(volume=header.source, checkpoint=header.checkpoint, root=header.root)
