"""The envelope of every commit, pack and member: what it is, its body, its header, and a hash of all of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from ballpoint.core.errors import ConflictError, CorruptError, InternalError

Kind = Literal[b"C", b"P", b"M"]
COMMIT: Final[Kind] = b"C"
PACK: Final[Kind] = b"P"
MEMBER: Final[Kind] = b"M"

MAGIC: Final = b"BALLPT"
VERSION: Final = 1
DIGEST_BYTES: Final = 32

_PREFIX: Final = struct.Struct("<6s c B I")
# Where a body begins, in bytes from the start of the object.
BODY_START: Final = _PREFIX.size

_NAMES: Final[dict[bytes, str]] = {COMMIT: "commit", PACK: "pack", MEMBER: "member"}

_ENCODER: Final = msgspec.msgpack.Encoder(uuid_format="bytes")

T = TypeVar("T", bound=msgspec.Struct)


class Opened(NamedTuple):
    """What was in an envelope: everything in it has been checked against its hash.

    Attributes:
        header: one MessagePack map, not looked into yet.
        digest: the envelope's hash: no other object has it.
    """

    header: memoryview
    body: memoryview
    digest: bytes


def seal(
    kind: Kind, header: T, body: Sequence[bytes | bytearray | memoryview], decoder: msgspec.msgpack.Decoder[T]
) -> bytes:
    """The bytes of an object.

    Args:
        body: pieces of the body, in order.
        decoder: what a reader will expect of the header.

    Raises:
        InternalError: no reader would take this header.
    """
    encoded = _ENCODER.encode(header)
    try:
        # Types are not checked where a header is made, and what is stored under a create-only name stays.
        decoder.decode(encoded)
    except msgspec.DecodeError as error:
        raise InternalError(f"the header of a {_NAMES[kind]} would not be read: {error}") from error
    whole = b"".join([_PREFIX.pack(MAGIC, kind, VERSION, len(encoded)), *body, encoded])
    return whole + blake3(whole).digest()


def unseal(kind: Kind, data: bytes, key: str) -> Opened:
    """What is in an object.

    Args:
        kind: what the object must be.
        data: all of it.
        key: its key, for errors.

    Raises:
        CorruptError: it is damaged or something else.
        ConflictError: it is whole, and made by a later version.
    """
    if len(data) < BODY_START + DIGEST_BYTES:
        raise damaged(key, f"it has {len(data)} bytes, fewer than any")
    view = memoryview(data)
    magic, found, version, length = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise damaged(key, "it does not begin as an object of Ballpoint")
    end = len(data) - DIGEST_BYTES
    digest = blake3(view[:end]).digest()
    if digest != data[end:]:
        raise damaged(key, f"its {len(data)} bytes are not those that were written, or not all of them")
    if version > VERSION:
        raise ConflictError(
            f"{key} was made by a later version of Ballpoint (format {version}, this one knows {VERSION})",
            hint="upgrade this node; nothing was changed",
        )
    if version != VERSION:
        raise damaged(key, f"there is no format {version}")
    if found != kind:
        raise damaged(key, f"it is a {_NAMES.get(found, 'thing of unknown kind')}, and not a {_NAMES[kind]}")
    if length > end - BODY_START:
        raise damaged(key, f"its header is said to have {length} bytes, and there are {end - BODY_START}")
    return Opened(view[end - length : end], view[BODY_START : end - length], digest)


def digest_of(data: bytes) -> bytes:
    """The hash that an object carries: 32 bytes by which a commit is known to the one behind it."""
    return data[-DIGEST_BYTES:]


def read_header(decoder: msgspec.msgpack.Decoder[T], header: memoryview, key: str) -> T:
    """A header's fields; those that are not known here are passed over.

    Raises:
        CorruptError: it is not what `decoder` expects.
    """
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(key, f"its header cannot be read: {error}") from error


def damaged(key: str, what: str) -> CorruptError:
    """The error that says that the object `key` cannot be used, and why."""
    return CorruptError(f"{key} is damaged: {what}", hint="nothing of it was used; look at the store and its copies")
