"""How a volume's log begins: a member of a lineage, then its first commit."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError
from ballpoint.store.settle import create_settled
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import encode_blob
from ballpoint.volume.log.commit import Closed, State
from ballpoint.volume.log.keys import MemberName, PackName
from ballpoint.volume.log.log import Writer, begin, milliseconds
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.member import Member, Source, decode_member, encode_member
from ballpoint.volume.log.pack import PackBuilder


async def found(
    store: Store,
    volume: UUID,
    lineage: UUID,
    *,
    image: str,
    size: int,
    settings: dict[str, Any],
    writer: str,
    clock: Clock = SYSTEM_CLOCK,
) -> Writer | None:
    """Begin the log of a volume that is no fork, with a disk of holes.

    A crash half-way leaves a member without a log; call again, or `collect` closes it for good some days later.

    Args:
        image, size, settings: as in State.
        writer: who this is, for people.

    Returns:
        None where it has a log: take it over, if it is not closed for good.

    Raises:
        UnknownOutcomeError: something may be there now, or come later; call again.
    """
    await join(store, MemberName(lineage, volume), None, clock=clock)
    pack = PackBuilder(PackName(volume, 1, 1, ids.new_put_id()), lineage)
    root = pack.add(encode_blob(Map().encode_root()), "root")
    await store.put(pack.name.key, pack.close())
    state = State(root=root, checkpoints=(), image=image, size=size, settings=settings, trashed=None, count=1)
    return await begin(store, volume, lineage, state, writer=writer, closed=Closed(1, 1), clock=clock)


async def join(store: Store, name: MemberName, source: Source | None, *, clock: Clock = SYSTEM_CLOCK) -> Member:
    """Make a volume a member of its lineage, unless it is one.

    Returns:
        The member as it is there: with what `source` it was made first.

    Raises:
        ConflictError: it is there and has another origin.
        UnknownOutcomeError: it may be there now, or come later; call again.
    """
    made = Member(name=name, put_id=ids.new_put_id(), time=milliseconds(clock), source=source)
    if not await create_settled(store, name.key, encode_member(made), clock=clock):
        made = decode_member(await store.get(name.key), name)
    if _origin(made.source) != _origin(source):
        raise ConflictError(
            f"volume {name.volume} is in the store already, and not {_describe(source)}",
            hint="a volume's id is never used again",
        )
    return made


def _origin(source: Source | None) -> tuple[UUID, str] | None:
    return (source.volume, source.checkpoint) if source else None


def _describe(source: Source | None) -> str:
    return f"as a fork of {source.checkpoint} of volume {source.volume}" if source else "as a volume of its own"
