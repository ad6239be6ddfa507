"""What a sprite says in texts and codes. It may be hostile: what makes no sense is an error, and no trace."""

from __future__ import annotations

import json
from typing import Any

from ballpoint.core.errors import UnavailableError


def object_of(data: str | bytes) -> dict[str, Any]:
    """A text as the object it must be. Raises UnavailableError where it is none."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _nonsense() from error
    if not isinstance(said, dict):
        raise _nonsense()
    return said


def number_of(said: dict[str, Any], name: str) -> int:
    """A whole number of it. Raises UnavailableError where there is none."""
    value = said.get(name)
    if type(value) is not int:
        raise _nonsense()
    return value


def exit_code_of(message: bytes) -> int:
    """The code that a message of an end carries behind its first byte. Raises UnavailableError where there is none."""
    if len(message) < 2:
        raise _nonsense()
    return message[1]


def _nonsense() -> UnavailableError:
    return UnavailableError("the sprite sent what is no answer", hint="ballpoint restart gives it a fresh instance")
