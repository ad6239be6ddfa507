"""What is in a store, without looking at every object: its lineages, their members, volumes that are no members."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from ballpoint.core.errors import CorruptError
from ballpoint.store.store import Store, list_all
from ballpoint.volume.log.keys import MemberName, members_prefix, parse_member

LINEAGES: Final = "lineages/"
VOLUMES: Final = "volumes/"
_AFTER_SLASH: Final = "0"  # the character after `/`: behind all keys of a directory
_UUID_LENGTH: Final = 36


async def lineages(store: Store) -> AsyncIterator[UUID]:
    """All lineages, one request for each.

    Raises:
        CorruptError: something else is in their place.
    """
    async for name in _directories(store, LINEAGES):
        yield name


async def volumes(store: Store) -> AsyncIterator[UUID]:
    """All volumes that have objects, members or not, one request for each. Errors as `lineages`."""
    async for name in _directories(store, VOLUMES):
        yield name


async def members(store: Store, lineage: UUID) -> list[MemberName]:
    """The members of a lineage. Errors as `lineages`."""
    return [parse_member(item.key) for item in await list_all(store, members_prefix(lineage))]


async def _directories(store: Store, prefix: str) -> AsyncIterator[UUID]:
    after = ""
    while page := await store.list(prefix, after=after, limit=1):
        name = page[0].key[len(prefix) : len(prefix) + _UUID_LENGTH]
        try:
            yield UUID(name)
        except ValueError as error:
            raise CorruptError(f"the store's object {page[0].key!r} is not Ballpoint's") from error
        after = f"{prefix}{name}{_AFTER_SLASH}"
