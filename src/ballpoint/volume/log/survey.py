"""What is in a store, without looking at every object: its lineages, their members, volumes that are no members."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

from ballpoint.core.errors import CorruptError
from ballpoint.store.store import LIST_MAX, Store, list_all
from ballpoint.volume.log.keys import MemberName, members_prefix, parse_member

LINEAGES: Final = "lineages/"
VOLUMES: Final = "volumes/"
_AFTER_SLASH: Final = "0"  # the character after `/`: behind all keys of a directory
_UUID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HINT: Final = "somebody else writes into this place; give Ballpoint one of its own"


Foreign = Callable[[CorruptError], None]


def refuse(error: CorruptError) -> None:
    """Do not go on where there is something that is not Ballpoint's."""
    raise error


async def lineages(store: Store, foreign: Foreign = refuse) -> AsyncIterator[UUID]:
    """All lineages, each once: one request for a thousand of their members.

    Args:
        foreign: is told of what else is in their place, and is passed over then.

    Raises:
        CorruptError: as `foreign` does.
        UnavailableError: the store does not answer.
    """
    after, last = "", None
    while page := await store.list(LINEAGES, after=after):
        for item in page:
            try:
                lineage = parse_member(item.key).lineage
            except CorruptError as error:
                foreign(error)
                continue
            if lineage != last:
                yield lineage
            last = lineage
        after = page[-1].key
        if len(page) < LIST_MAX:
            break


async def volumes(store: Store, foreign: Foreign = refuse) -> AsyncIterator[UUID]:
    """All volumes that have objects, members or not, one request for each. As `lineages`."""
    after = ""
    while page := await store.list(VOLUMES, after=after, limit=1):
        name, slash, _ = page[0].key.removeprefix(VOLUMES).partition("/")
        after = f"{VOLUMES}{name}{_AFTER_SLASH}" if slash else page[0].key
        if slash and _UUID.fullmatch(name):
            yield UUID(name)
        else:
            foreign(CorruptError(f"the store's object {page[0].key!r} is not Ballpoint's", hint=_HINT))


async def members(store: Store, lineage: UUID, foreign: Foreign = refuse) -> list[MemberName]:
    """The members of a lineage. As `lineages`."""
    names = []
    for item in await list_all(store, members_prefix(lineage)):
        try:
            names.append(parse_member(item.key))
        except CorruptError as error:
            foreign(error)
    return names
