"""Names of the log's objects, and the keys they are stored under."""

from __future__ import annotations

import re
from typing import Annotated, Final
from uuid import UUID

import msgspec

from ballpoint.core.errors import CorruptError, InternalError

# An epoch, a number or an upload has 16 digits in a key: then keys are in the order of the numbers.
NUMBER_MAX: Final = 10**16 - 1
ID_BYTES: Final = 16

Number = Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_COMMIT = re.compile(rf"volumes/({_UUID})/commits/([0-9]{{16}})-([0-9]{{16}})")
_PACK = re.compile(rf"volumes/({_UUID})/packs/([0-9]{{16}})-([0-9]{{16}})-([0-9a-f]{{32}})")
_MEMBER = re.compile(rf"lineages/({_UUID})/members/({_UUID})")


class CommitName(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A commit's place in the log of its volume; names of one volume are ordered as the log is."""

    volume: UUID
    epoch: Number
    number: Number

    @property
    def key(self) -> str:
        return f"{commits_prefix(self.volume)}{inv(self.epoch)}-{inv(self.number)}"


class PackName(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A pack; names of one volume are ordered as the packs were uploaded.

    Attributes:
        upload: counts the packs of an epoch.
        id: 128 random bits.
    """

    volume: UUID
    epoch: Number
    upload: Number
    id: Id

    @property
    def key(self) -> str:
        return f"{packs_prefix(self.volume)}{_digits(self.epoch)}-{_digits(self.upload)}-{self.id.hex()}"


class MemberName(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The record that says that a volume belongs to a lineage."""

    lineage: UUID
    volume: UUID

    @property
    def key(self) -> str:
        return f"{members_prefix(self.lineage)}{self.volume}"


def inv(number: int) -> str:
    """The 16 digits that put `number` before all lower ones.

    Args:
        number: 0 to NUMBER_MAX.
    """
    return _digits(NUMBER_MAX - number)


def commits_prefix(volume: UUID) -> str:
    """What the keys of a volume's commits begin with; the first below it is the head of the log."""
    return f"volumes/{volume}/commits/"


def packs_prefix(volume: UUID) -> str:
    """What the keys of a volume's packs begin with."""
    return f"volumes/{volume}/packs/"


def members_prefix(lineage: UUID) -> str:
    """What the keys of a lineage's members begin with."""
    return f"lineages/{lineage}/members/"


def parse_commit(key: str) -> CommitName:
    """The commit that `key` names.

    Raises:
        CorruptError: it names none.
    """
    volume, epoch, number = _match(_COMMIT, key, "commit")
    return CommitName(UUID(volume), _counted(NUMBER_MAX - int(epoch), key), _counted(NUMBER_MAX - int(number), key))


def parse_pack(key: str) -> PackName:
    """The pack that `key` names.

    Raises:
        CorruptError: it names none.
    """
    volume, epoch, upload, identity = _match(_PACK, key, "pack")
    return PackName(UUID(volume), _counted(int(epoch), key), _counted(int(upload), key), bytes.fromhex(identity))


def parse_member(key: str) -> MemberName:
    """The member that `key` names.

    Raises:
        CorruptError: it names none.
    """
    lineage, volume = _match(_MEMBER, key, "member")
    return MemberName(UUID(lineage), UUID(volume))


def _digits(number: int) -> str:
    if not 0 <= number <= NUMBER_MAX:
        raise InternalError(f"{number} does not fit into the key of an object")
    return f"{number:016d}"


def _match(pattern: re.Pattern[str], key: str, kind: str) -> tuple[str, ...]:
    if not (match := pattern.fullmatch(key)):
        raise _foreign(key, f"no {kind}")
    return match.groups()


def _counted(number: int, key: str) -> int:
    if number < 1:
        raise _foreign(key, "of number 0, and numbers begin at 1")
    return number


def _foreign(key: str, what: str) -> CorruptError:
    return CorruptError(
        f"the store's object {key[:200]!r} is {what}",
        hint="somebody else writes into this place; give Ballpoint one of its own",
    )
