"""Host-wide numbered slots: each instance of every node has one, and its addresses and user ids follow from it.

A slot is a symbolic link `slots/<number>` whose target is the owner's name. Making a link is atomic and brings its
content along, so a crash leaves a slot taken by a named owner or free, never half.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec

from ballpoint.core.config import RUN_ROOT
from ballpoint.core.errors import NO_CAPACITY, UnavailableError

COUNT = 2048
DIRECTORY = "slots"  # below the run root

# The table of user ids that systemd keeps (UIDS-GIDS) leaves 524,288-1,879,048,191 to containers of others and
# nothing from 0x70000000 on; 2,048 slots end below 2^31, which some tools take for a signed number.
UID_FIRST = 0x70000000
UID_STRIDE = 131072


class Slot(msgspec.Struct, frozen=True):
    """A number no other instance of this host has, and the first of the user ids that go with it."""

    number: int
    uid_base: int


def slot(number: int) -> Slot:
    """The slot with `number`, taken or not."""
    return Slot(number, UID_FIRST + number * UID_STRIDE)


def acquire(owner: str, root: Path = RUN_ROOT) -> Slot:
    """Take the lowest free slot.

    Args:
        owner: `<node id>/<instance id>`; a second call takes a second slot.

    Raises:
        UnavailableError: all are taken.
    """
    directory = root / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    taken = {path.name for path in directory.iterdir()}
    for number in itertools.filterfalse(lambda number: str(number) in taken, range(COUNT)):
        try:
            (directory / str(number)).symlink_to(owner)
        except FileExistsError:
            continue
        return slot(number)
    raise UnavailableError(
        f"all {COUNT} instance slots of this host are taken", hint="destroy some sprites", code=NO_CAPACITY
    )


def release(number: int, owner: str, root: Path = RUN_ROOT) -> bool:
    """Free slot `number`. Returns False where `owner` does not hold it."""
    path = root / DIRECTORY / str(number)
    if _owner(path) != owner:
        return False
    path.unlink()
    return True


def owned_by(prefix: str, root: Path = RUN_ROOT) -> dict[int, str]:
    """The slots whose owner begins with `prefix`, as number -> owner; `<node id>/` gives all of a node."""
    directory = root / DIRECTORY
    if not directory.is_dir():
        return {}
    owners = {int(path.name): _owner(path) for path in directory.iterdir()}
    return {number: owner for number, owner in sorted(owners.items()) if owner is not None and owner.startswith(prefix)}


def _owner(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return None
