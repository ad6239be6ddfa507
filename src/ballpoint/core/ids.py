"""Identifiers and secrets. The only place that draws random numbers."""

from __future__ import annotations

import re
import secrets
import uuid

from ballpoint.core.errors import InvalidError

# A name is a DNS label; with "-<org>" behind it, it must stay within the 63 octets of RFC 1035 section 2.3.4.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
NAME_MAX = 48
RESERVED_NAMES = frozenset({"api", "www", "auth"})
INSTANCE_ID_LENGTH = 8


def new_uuid() -> str:
    """A random UUID (RFC 9562, version 4) in its 36-character form."""
    return str(uuid.uuid4())


def new_secret() -> str:
    """256 random bits as 43 URL-safe characters: a token's value or a nonce."""
    return secrets.token_urlsafe(32)


def new_put_id() -> bytes:
    """128 random bits, which tell a commit from any other that was tried under its name."""
    return secrets.token_bytes(16)


def random_below(bound: int) -> int:
    """A random number from 0 on, below `bound`."""
    return secrets.randbelow(bound)


def new_instance_id() -> str:
    """Eight random hexadecimal digits: short, because an interface name has room for 15 characters (IFNAMSIZ)."""
    return secrets.token_hex(INSTANCE_ID_LENGTH // 2)


def check_name(name: str) -> str:
    """Return `name` if it may name a sprite.

    Raises:
        InvalidError: it is not a lower-case DNS label of at most 48 characters, or is reserved.
    """
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name[:80]!r} is not a sprite name",
            hint=f"use 1-{NAME_MAX} lower-case letters, digits and inner hyphens",
            code="invalid_name",
        )
    if name in RESERVED_NAMES:
        raise InvalidError(f"the name {name!r} is reserved", hint="choose another name", code="invalid_name")
    return name
