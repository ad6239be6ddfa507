"""What a node keeps beside a disk: the record of its checkpoints, and of how far its log has come.

It lies in the pool's own file system, beside the snapshots it names, and is replaced as a whole: a database elsewhere
would not be ordered with them (docs/volume-layout.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from blake3 import blake3

from ballpoint.core.errors import ConflictError, CorruptError, NotFoundError
from ballpoint.host.files import write_atomically, write_new

_NAME: Final = "record.json"
# A higher one says that a later version of this program must be asked.
_FORMAT: Final = 1


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot that the log's newest state of the disk was made from.

    Attributes:
        sequence: of the snapshot.
        inode, generation: of its file: another one of that name is no base.
        epoch, number: the commit.
    """

    sequence: int
    inode: int
    generation: int
    epoch: int
    number: int


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint.

    Attributes:
        id: `v0`, `v1`, ... in the order of creation, or `auto-...`.
        time: milliseconds since 1970.
        comment: the user's.
        auto: nobody asked for it.
        image: digest of the standard image below the disk.
        sequence: of its snapshot; None where that is only in the store.
        durable: it is in the log.
        source: the checkpoint that was made or restored before it; None where there was none.
    """

    id: str
    time: int
    comment: str
    auto: bool
    image: str
    sequence: int | None
    durable: bool
    source: str | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that has been done here and is not in the log yet.

    Attributes:
        kind: `checkpoint`: one was made; `restore`: the disk became one; `forget`: one was deleted.
        id: of the checkpoint.
        sequence: of its snapshot, for `checkpoint` and `restore`.
        mtime_ns: when the disk was last written before a `checkpoint`, as `snapshot_mtime_ns`.
        time: of a `checkpoint`, in milliseconds since 1970.
        inode: of the image that a `restore` makes the disk: it has not been done where the disk is another.
        former: what the record had for `current`, `restored` and `image` before a `restore`.
    """

    kind: Literal["checkpoint", "restore", "forget"]
    id: str
    sequence: int = 0
    mtime_ns: int = 0
    time: int = 0
    inode: int = 0
    former: tuple[str | None, str | None, str] | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a fork was made from, until its log begins.

    Attributes:
        volume: in the log.
        checkpoint: its id.
        sequence: of the fork's own snapshot of it.
    """

    volume: UUID
    checkpoint: str
    sequence: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one volume.

    Attributes:
        volume: its name in the log.
        lineage: its name in the store.
        size: apparent size of the disk in bytes.
        image: digest of the standard image below the disk.
        epoch, number: the last commit that this node may have made, noted before it is; 0 where the log has not begun.
            What comes after it in the log is another's.
        origin: of a fork whose log has not begun.
        sequence: the last one given to a snapshot.
        base: None where nothing is known of the disk's difference from the log.
        coming: the base, once a commit is in the log whose outcome is not known.
        snapshot_mtime_ns: when the disk was last written before the newest snapshot that is in the log; 0 where a later
            write may bear the same time.
        snapshot_time: when that was made, in milliseconds since 1970: up to then everything is in the store.
        settings: hash of the sprite's settings in the log, hexadecimal.
        checkpoints: oldest first.
        next: number of the next checkpoint that is asked for.
        current: id of the checkpoint that the disk was made or restored from last.
        restored: id of the checkpoint that the disk was restored from last.
        pending: what is not in the log yet, in order.
        discarded: the log may say that the volume is in the trash.
        bytes_written: what the disk took, when it last came into the log.
        bytes_stored: what was put into the store for it.
    """

    volume: UUID
    lineage: UUID
    size: int
    image: str
    epoch: int = 0
    number: int = 0
    origin: Origin | None = None
    sequence: int = 0
    base: Base | None = None
    coming: Base | None = None
    snapshot_mtime_ns: int = 0
    snapshot_time: int = 0
    settings: str = ""
    checkpoints: tuple[Kept, ...] = ()
    next: int = 0
    current: str | None = None
    restored: str | None = None
    pending: tuple[Operation, ...] = ()
    discarded: bool = False
    bytes_written: int = 0
    bytes_stored: int = 0

    @property
    def snapshots(self) -> set[int]:
        """The sequences of all snapshots that are needed."""
        found = {each.sequence for each in self.checkpoints if each.sequence is not None}
        found.update(each.sequence for each in self.pending if each.sequence)
        found.update(each.sequence for each in (self.base, self.coming) if each is not None)
        if self.origin is not None:
            found.add(self.origin.sequence)
        return found

    def checkpoint(self, checkpoint_id: str) -> Kept:
        """
        Raises:
            NotFoundError: there is none of that id.
        """
        for each in self.checkpoints:
            if each.id == checkpoint_id:
                return each
        raise NotFoundError(
            f"there is no checkpoint {checkpoint_id[:80]!r}", hint="checkpoint list shows those there are"
        )

    def is_coming(self, checkpoint_id: str) -> bool:
        """Whether a checkpoint is on its way into the store: it is here, and not there yet."""
        return any(each.id == checkpoint_id and not each.durable for each in self.checkpoints)

    def with_checkpoint(self, changed: Kept) -> Record:
        """This record with a checkpoint replaced by a changed one of the same id."""
        replaced = tuple(changed if each.id == changed.id else each for each in self.checkpoints)
        return msgspec.structs.replace(self, checkpoints=replaced)


class _Stored(msgspec.Struct, frozen=True):
    format: int
    record: msgspec.Raw


def read_record(directory: Path) -> Record:
    """The record of the volume in `directory`.

    Raises:
        NotFoundError: it has none.
        ConflictError: a later version of this program wrote it.
        CorruptError: it is damaged.
    """
    file = directory / _NAME
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
        if stored.format > _FORMAT:
            raise ConflictError(
                f"the record of volume {directory.name} has the format {stored.format}, and this version knows"
                f" {_FORMAT} at most",
                hint="start the later version that wrote it",
            )
        return _as_the_disk_is(msgspec.json.decode(stored.record, type=Record), directory)
    except FileNotFoundError as error:
        raise NotFoundError(f"volume {directory.name} has no record") from error
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptError(
            f"{file} is damaged: {error}", hint="docs/volume-layout.md says what belongs there"
        ) from error


def _as_the_disk_is(record: Record, directory: Path) -> Record:
    """The record without a restore that was cut off after it was noted, and before the disk was exchanged."""
    last = record.pending[-1] if record.pending else None
    if last is None or last.kind != "restore" or last.former is None:
        return record
    try:
        if (directory / "disk.img").stat().st_ino == last.inode:
            return record
    except FileNotFoundError:
        return record  # it is in the store, and came there after this
    current, restored, image = last.former
    return msgspec.structs.replace(
        record, pending=record.pending[:-1], current=current, restored=restored, image=image, snapshot_mtime_ns=0
    )


def write_record(directory: Path, record: Record) -> None:
    """Replace the record. Durable when it returns; a crash leaves the old one."""
    write_atomically(directory / _NAME, _encoded(record), 0o600)


def write_first_record(directory: Path, record: Record) -> None:
    """Give a record to a volume that is being made; it is durable with its directory."""
    write_new(directory / _NAME, _encoded(record), 0o600)


def _encoded(record: Record) -> bytes:
    return msgspec.json.encode(_Stored(_FORMAT, msgspec.Raw(msgspec.json.encode(record))))


def settings_hash(settings: dict[str, Any]) -> str:
    """By what `Record.settings` knows a sprite's settings."""
    return blake3(msgspec.json.encode(settings, order="sorted")).hexdigest()
