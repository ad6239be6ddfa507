"""The log of a volume is begun, or taken over, by the node that has its disk."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

from ballpoint.core import ids, steps
from ballpoint.core.clock import Clock
from ballpoint.core.errors import FencedError, NotFoundError, UnavailableError
from ballpoint.store.store import Store
from ballpoint.volume.log.fork import fork, found
from ballpoint.volume.log.keys import CommitName
from ballpoint.volume.log.log import OutdatedError, View, Writer, read
from ballpoint.volume.record import Origin, Record, read_record, settings_hash
from ballpoint.volume.sync.local import Local

log = logging.getLogger(__name__)

_BEGUN = steps.declare("sync: the log has begun")
_TAKEN = steps.declare("sync: the log is taken over")


async def open_log(store: Store, local: Local, settings: dict[str, Any], *, writer_name: str, clock: Clock) -> Writer:
    """Begin the log of a volume, or take it over. A process does so once for each volume.

    Args:
        settings: the sprite's, as they are now.
        writer_name: the node's in logs, for people.

    Raises:
        FencedError: another node has written it.
        UnavailableError: the store does not answer, or lacks as yet what the volume is a fork of.
    """
    writer = await take_over(store, local, writer_name=writer_name, clock=clock)
    return writer or await _begin(store, local, settings, writer_name, clock)


async def take_over(store: Store, local: Local, *, writer_name: str, clock: Clock) -> Writer | None:
    """Go on with the log that an earlier process of this node has begun. None where none has. Errors as `open_log`."""
    record = local.record
    if not record.epoch:
        return None
    # Before it is sealed: where this disk is the outdated one, whoever writes the volume now goes on undisturbed.
    require_own(record, await read(store, record.volume))
    writer = await Writer.take_over(store, record.volume, writer=writer_name, clock=clock)
    if writer is None:
        return None
    steps.reach(_TAKEN)
    require_own(record, writer.view)
    await local.note(epoch=writer.epoch, number=0, origin=None)
    return writer


def require_own(record: Record, view: View | None) -> None:
    """See that a log is this node's.

    Raises:
        FencedError: the log has commits that are not this node's.
    """
    if view is not None and (view.last.epoch, view.last.number) > (record.epoch, record.number):
        raise FencedError(
            f"volume {record.volume} was written by another node",
            hint="what is here and was not in the store is kept aside",
        )


async def _begin(store: Store, local: Local, settings: dict[str, Any], writer_name: str, clock: Clock) -> Writer:
    origin = local.record.origin
    try:
        return await _begin_as(store, local, origin, settings, writer_name, clock)
    except (NotFoundError, OutdatedError) as error:
        if origin is None:
            raise
        if _is_coming(local, origin):
            raise UnavailableError(
                f"volume {local.record.volume} is a fork of a checkpoint that is not in the store yet"
            ) from error
        log.warning("volume %s is saved as no fork: %s", local.volume_id, error)
        await _rename(local)
        return await _begin_as(store, local, None, settings, writer_name, clock)


async def _begin_as(
    store: Store, local: Local, origin: Origin | None, settings: dict[str, Any], writer_name: str, clock: Clock
) -> Writer:
    record, first = local.record, CommitName(local.record.volume, 1, 1)
    base = None if origin is None else await asyncio.to_thread(local.base, first, origin.sequence)
    # Before anything of it is in the store: a log that a later process of this node finds there is its own.
    await local.note(epoch=first.epoch, number=first.number, base=None, coming=base)
    named: Any = {"settings": settings, "writer": writer_name, "clock": clock}
    if origin is None:
        writer = await found(store, record.volume, record.lineage, image=record.image, size=record.size, **named)
    else:
        writer = await fork(store, origin.volume, origin.checkpoint, record.volume, **named)
    steps.reach(_BEGUN)
    if writer is None:
        view = await read(store, record.volume)
        if view is not None and view.dead:
            await _rename(local)
        raise UnavailableError(f"volume {record.volume} has a log by now, or had one", hint="the next try goes on")
    await local.note(origin=None, settings=settings_hash(settings))
    return writer


def _is_coming(local: Local, origin: Origin) -> bool:
    """Whether the checkpoint that a fork was made of is on its way into the store."""
    try:
        return read_record(local.pool.directory(str(origin.volume))).is_coming(origin.checkpoint)
    except NotFoundError:
        return False


async def _rename(local: Local) -> None:
    """Let it be another volume in the store, of a lineage of its own, with all blocks its own: it loses nothing.

    The name that it had is used up: a log that is closed for good is never opened again.
    """
    volume, lineage = UUID(ids.new_uuid()), UUID(ids.new_uuid())
    await local.note(volume=volume, lineage=lineage, epoch=0, number=0, base=None, coming=None, origin=None)
