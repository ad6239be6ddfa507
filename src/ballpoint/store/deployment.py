"""Whose a store is: the one object `deployment`, made by whoever uses the store first, and never changed.

A store holds the disks of one deployment. Nodes of two would take each other's disks for garbage.
"""

from __future__ import annotations

import msgspec

from ballpoint.core import ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError
from ballpoint.store.settle import create_settled
from ballpoint.store.store import Store

KEY = "deployment"
FORMAT = 1


class Deployment(msgspec.Struct, frozen=True):
    """Content of the object, as JSON. Unknown keys are left alone.

    Attributes:
        id: a random UUID.
        created: RFC 3339; for people.
    """

    id: str
    created: str
    format: int = FORMAT


class _Format(msgspec.Struct, frozen=True):
    """What is read of it first."""

    format: int


def new_deployment(clock: Clock = SYSTEM_CLOCK) -> Deployment:
    """One that no store knows yet."""
    return Deployment(ids.new_uuid(), rfc3339(clock.now()))


async def read_deployment(store: Store) -> Deployment | None:
    """Whose the store is; None: nobody's.

    Raises:
        ConflictError: a later version of this program made it.
        CorruptError: the object is damaged.
        UnavailableError: the store does not answer.
    """
    try:
        data = await store.get(KEY)
    except NotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found > FORMAT:
            raise ConflictError(
                f"the store has the format {found}, and this version knows {FORMAT} at most",
                hint="use the later version that made it",
            )
        return msgspec.json.decode(data, type=Deployment)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"the object {KEY!r} of the store is damaged: {error}",
            hint="a node that uses the store has its content in DATA/store.json",
        ) from error


async def claim(store: Store, deployment: Deployment) -> None:
    """Make the store `deployment`'s, unless it is already. Idempotent.

    Raises:
        ConflictError: it is another's; or it holds disks, and nothing says whose.
        CorruptError: the object is damaged.
        UnavailableError: the store does not answer, or refuses.
    """
    found = await read_deployment(store)
    if found is None:
        if await store.list("lineages/", limit=1) or await store.list("volumes/", limit=1):
            raise ConflictError(
                f"the store holds disks, but its object {KEY!r} is gone",
                hint="put it back from a backup, or name another store",
            )
        if await create_settled(store, KEY, msgspec.json.encode(deployment)):
            return
        found = await read_deployment(store)
    if found != deployment:
        raise ConflictError(
            "the store is in use by another deployment, or by an earlier life of this one",
            hint="name another store; or fill an empty data directory from this one: ballpoint recover",
        )
