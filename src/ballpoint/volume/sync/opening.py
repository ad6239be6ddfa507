"""The log of a volume is begun, or taken over, by the node that has its disk."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from ballpoint.core import ids, steps
from ballpoint.core.clock import Clock
from ballpoint.core.errors import FencedError, NotFoundError, UnavailableError
from ballpoint.store.store import Store
from ballpoint.volume.log.fork import fork, found
from ballpoint.volume.log.log import OutdatedError, Writer, read
from ballpoint.volume.record import Origin, settings_hash
from ballpoint.volume.sync.local import Local

_BEGUN = steps.declare("sync: the log has begun")


async def open_log(store: Store, local: Local, settings: dict[str, Any], *, writer_name: str, clock: Clock) -> Writer:
    """Begin the log of a volume, or take it over. A process does so once for each volume.

    Args:
        settings: the sprite's, as they are now.
        writer_name: the node's in logs, for people.

    Raises:
        FencedError: another node has written it.
        UnavailableError: the store does not answer, or lacks as yet what the volume is a fork of.
    """
    record = local.record
    writer = None
    if record.epoch:
        writer = await Writer.take_over(store, record.volume, writer=writer_name, clock=clock)
    if writer is None:
        writer = await _begin(store, local, settings, writer_name, clock)
    elif writer.view.last.epoch > record.epoch:
        raise FencedError(
            f"volume {record.volume} was written by another node",
            hint="what is here and was not in the store is kept aside",
        )
    else:
        # The log of a fork may have begun without its origin being forgotten.
        base, origin = record.base, record.origin
        if origin is not None and (writer.view.disk.epoch, writer.view.disk.number) == (1, 1):
            base = await asyncio.to_thread(local.base, writer.view, origin.sequence)
        await local.note(epoch=writer.epoch, base=base, origin=None)
    return writer


async def _begin(store: Store, local: Local, settings: dict[str, Any], writer_name: str, clock: Clock) -> Writer:
    record, origin = local.record, local.record.origin
    # Before anything of it is in the store: a log that a later process of this node finds there is its own.
    await local.note(epoch=1)
    if origin is None:
        writer = await found(
            store,
            record.volume,
            record.lineage,
            image=record.image,
            size=record.size,
            settings=settings,
            writer=writer_name,
            clock=clock,
        )
    else:
        writer = await _begin_fork(store, local, origin, settings, writer_name, clock)
    steps.reach(_BEGUN)
    if writer is None:
        view = await read(store, record.volume)
        if view is not None and view.dead:
            await _rename(local)
        raise UnavailableError(f"volume {record.volume} has a log by now, or had one", hint="the next try goes on")
    base = None if origin is None else await asyncio.to_thread(local.base, writer.view, origin.sequence)
    await local.note(base=base, origin=None, settings=settings_hash(settings))
    return writer


async def _begin_fork(
    store: Store, local: Local, origin: Origin, settings: dict[str, Any], writer_name: str, clock: Clock
) -> Writer | None:
    try:
        return await fork(
            store,
            origin.volume,
            origin.checkpoint,
            local.record.volume,
            settings=settings,
            writer=writer_name,
            clock=clock,
        )
    except NotFoundError as error:
        raise UnavailableError(
            f"volume {local.record.volume} is a fork of a checkpoint that is not in the store yet"
        ) from error
    except OutdatedError:
        await _rename(local)
        raise


async def _rename(local: Local) -> None:
    """Let it be another volume in the store, of a lineage of its own, with all blocks its own: it loses nothing.

    The name that it had is used up: a log that is closed for good is never opened again.
    """
    await local.note(volume=UUID(ids.new_uuid()), lineage=UUID(ids.new_uuid()), epoch=0, base=None, origin=None)
