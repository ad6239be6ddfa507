"""How a volume's log begins: a member of a lineage, then its first commit."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from ballpoint.core import ids, steps
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError, NotFoundError
from ballpoint.store.settle import create_settled
from ballpoint.store.store import Store
from ballpoint.volume.log.blob import Reference, encode_blob
from ballpoint.volume.log.commit import Checkpoint, Closed, State
from ballpoint.volume.log.keys import MemberName, PackName
from ballpoint.volume.log.log import OutdatedError, View, Writer, begin, milliseconds, missing, read
from ballpoint.volume.log.map import Map
from ballpoint.volume.log.mapped import PackGoneError
from ballpoint.volume.log.member import Member, Source, decode_member, encode_member
from ballpoint.volume.log.pack import PackBuilder
from ballpoint.volume.log.reach import Reach

_JOINED = steps.declare("sync: the volume is a member of its lineage")


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


async def fork(
    store: Store,
    source: UUID,
    checkpoint: str,
    volume: UUID,
    *,
    settings: dict[str, Any],
    writer: str,
    clock: Clock = SYSTEM_CLOCK,
) -> Writer | None:
    """Begin the log of a fork, with a disk as it was at a checkpoint, of which no byte is stored anew.

    A crash half-way leaves a member without a log; call again, or `collect` closes it for good some days later.

    Args:
        source: the volume that has the checkpoint.
        checkpoint: its id.
        settings: the fork's.
        writer: who this is, for people.

    Returns:
        None where the fork has a log: take it over, if it is not closed for good.

    Raises:
        NotFoundError: the source or the checkpoint is not there (any more).
        OutdatedError: while the fork's member was made, the source moved the checkpoint into other packs. The fork
            cannot refer to the old ones: begin anew as another volume, or let this one begin with blocks of its own.
        UnknownOutcomeError: something may be there now, or come later; call again.
    """
    view, found_in = await _checkpoint(store, source, checkpoint)
    assert view.state is not None
    origin = Source(volume=source, checkpoint=checkpoint, root=found_in.root)
    member = await join(store, MemberName(view.lineage, volume), origin, clock=clock)
    assert member.source is not None
    root = member.source.root  # of an earlier call, perhaps: that is what is kept
    if not await _still_reached(store, source, root):
        raise OutdatedError(
            f"volume {volume} cannot begin: its source {source} does not reach all of {checkpoint} as it was any more",
            hint="make the fork anew",
        )
    state = State(
        root=root,
        checkpoints=(),
        image=found_in.image,
        size=view.state.size,
        settings=settings,
        trashed=None,
        count=1,
    )
    return await begin(store, volume, view.lineage, state, writer=writer, clock=clock)


async def _checkpoint(store: Store, source: UUID, id: str) -> tuple[View, Checkpoint]:
    view = await read(store, source)
    if view is None or view.state is None:
        raise NotFoundError(f"the store has no volume {source}")
    for each in view.state.checkpoints:
        if each.id == id:
            return view, each
    raise NotFoundError(f"volume {source} has no checkpoint {id} in the store")


async def _still_reached(store: Store, source: UUID, root: Reference) -> bool:
    """Whether the source reaches every pack of a map that is not its own any more, perhaps.

    That the checkpoint lives says nothing: it may have been moved into other packs, and the old ones go.
    """
    ours = Reach(store)
    while (view := await read(store, source)) is not None and view.state is not None:
        if root in (view.state.root, *(each.root for each in view.state.checkpoints)):
            return True
        try:
            await ours.add(root)
        except PackGoneError:
            return False
        theirs = Reach(store)
        try:
            await theirs.add_volume(view)
        except PackGoneError as gone:
            error = await missing(store, view, gone.pack, f"volume {source}")
            if isinstance(error, OutdatedError):
                continue
            raise error from gone
        return theirs >= ours
    return False


async def join(store: Store, name: MemberName, source: Source | None, *, clock: Clock = SYSTEM_CLOCK) -> Member:
    """Make a volume a member of its lineage, unless it is one.

    Returns:
        The member as it is there: with what `source` it was made first.

    Raises:
        ConflictError: it is there and has another origin.
        UnknownOutcomeError: it may be there now, or come later; call again.
    """
    made = Member(name=name, put_id=ids.new_put_id(), time=milliseconds(clock), source=source)
    data = encode_member(made)
    while not await create_settled(store, name.key, data, clock=clock):
        try:
            made = decode_member(await store.get(name.key), name)
        except NotFoundError:
            continue  # removed meanwhile, because the volume is closed for good; its log says so
        break
    steps.reach(_JOINED)
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
