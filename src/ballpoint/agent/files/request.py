"""Requests about files, read into what the helper `files` is told (helpers/files.c)."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from ballpoint.agent.files.errors import FileError, shown
from ballpoint.agent.spawn_types import HOME
from ballpoint.core.errors import InvalidError

BODY_MAX = 64 * 1024
_FIELDS_MAX = 1000
_PATH_MAX = 4095  # limits.h, without its NUL
_PATTERN_MAX = 1024
_WATCHED_MAX = 64
_ID_MAX = 131_070  # as helpers/enter.h
# What is in a path and changes nothing of where it leads. A `.` at its end does: then it must be a directory.
_NOTHING = re.compile(r"/(?:\.?/)+")
_MODE = re.compile(r"(?:0o)?[0-7]{1,5}")
_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.ASCII | re.IGNORECASE)
_TRUE, _FALSE = {"true", "1"}, {"false", "0", ""}


@dataclass(frozen=True)
class Operation:
    """What a helper shall do.

    Attributes:
        arguments: its verb and what follows.
        path: what it is about, as it is shown.
        user: whose rights it has.
    """

    arguments: tuple[bytes, ...]
    path: str
    user: str


class Fields:
    """What a request says, in its query or in a JSON object. Everything that is not understood is InvalidError."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    @property
    def user(self) -> str:
        return "root" if self.boolean("asRoot") else "sprite"

    @property
    def about(self) -> str:
        """The path it is about, for an error that comes before it is understood."""
        given = self._fields.get("path") or self._fields.get("source")
        return given.encode("utf-8", "replace").decode()[:_PATH_MAX] if isinstance(given, str) else ""

    def given(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def text(self, name: str) -> str:
        """Empty where it is missing."""
        value = self._fields.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InvalidError(f"{name} is not text")
        if "\0" in value:
            raise InvalidError(f"{name} has a NUL byte")
        return value

    def path(self, name: str = "path") -> bytes:
        """An absolute path: a relative one begins at `workingDir`, and that at the user's home."""
        path = self.text(name)
        if not path:
            raise InvalidError(f"{name} is missing", hint=f"{name}=PATH")
        return self._absolute(path, name)

    def paths(self, name: str) -> list[bytes]:
        given = self._fields.get(name)
        if not isinstance(given, list) or not 0 < len(given) <= _WATCHED_MAX:
            raise InvalidError(f"{name} is not a list of paths", hint=f"1 to {_WATCHED_MAX} of them")
        return [Fields({**self._fields, name: each}).path(name) for each in given]

    def _absolute(self, path: str, name: str) -> bytes:
        directory = self.text("workingDir") or HOME
        if not directory.startswith("/"):
            directory = f"{HOME}/{directory}"
        absolute = path if path.startswith("/") else f"{directory.rstrip('/')}/{path}"
        absolute = _NOTHING.sub("/", absolute)
        encoded = _bytes(absolute, name)
        if len(encoded) > _PATH_MAX:
            raise FileError(errno.ENAMETOOLONG, shown(encoded))
        return encoded

    def boolean(self, *names: str) -> bool:
        """Whether one of `names` is true; false where none is there."""
        return any([self._boolean(name) for name in names])

    def _boolean(self, name: str, default: bool = False) -> bool:
        value = self._fields.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise InvalidError(f"{name} is neither true nor false")

    def unless_false(self, name: str) -> bool:
        return self._boolean(name, True)

    def mode(self, default: str | None = None) -> bytes:
        """Octal digits, as chmod(1) reads them."""
        text = self.text("mode") or default
        if text is None or not _MODE.fullmatch(text) or int(text.removeprefix("0o"), 8) > 0o7777:
            raise InvalidError("mode is no octal number of permissions", hint='for example "0644"')
        return text.removeprefix("0o").encode()

    def owner(self, name: str) -> bytes:
        """A number or a name of a user or group; `-` where it is missing."""
        value = self._fields.get(name)
        if value is None or value == "":
            return b"-"
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        text = value if isinstance(value, str) else ""
        number = text.isascii() and text.isdigit()
        if number and (len(text) > 9 or int(text) > _ID_MAX):
            raise InvalidError(f"{name} is not an id of this sprite", hint=f"0 to {_ID_MAX}")
        if not number and (not re.fullmatch(r"[^\s:/\0]{1,256}", text) or text.startswith("-")):
            raise InvalidError(f"{name} is neither a number nor a name")
        return _bytes(text, name)

    def pattern(self) -> bytes:
        pattern = _bytes(self.text("pattern"), "pattern")
        if len(pattern) > _PATTERN_MAX:
            raise InvalidError("pattern is too long", hint=f"at most {_PATTERN_MAX} bytes")
        return pattern


def _bytes(text: str, name: str) -> bytes:
    """As percent-encoding or JSON gives it; bytes that are no UTF-8 are escaped in `text` (PEP 383)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidError(f"{name} is no text", hint="half a surrogate pair") from error


def fields_of_query(query: str) -> Fields:
    """Of a field that is given twice, the first counts."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="surrogateescape")
    except ValueError as error:
        raise InvalidError("the query has too many fields", hint=f"at most {_FIELDS_MAX}") from error
    return Fields(dict(reversed(pairs)))


def fields_of_body(body: bytes) -> Fields:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # deep nesting is found out by the latter
        raise InvalidError("the body is no JSON") from error
    if not isinstance(content, dict):
        raise InvalidError("the body is no JSON object")
    return Fields(content)


def read_operation(fields: Fields, range_field: str | None) -> Operation:
    """Args: range_field: of the request; several ranges, and what is none, mean the whole file (RFC 9110 14.2)."""
    first = last = b"-"
    if range_field is not None and (found := _RANGE.fullmatch(range_field)):
        low, high = found[1], found[2]
        if (low or high) and not (low and high and int(low) > int(high)):
            first, last = (low or "-").encode(), (high or "-").encode()
    return _operation(fields, b"read", fields.path(), first, last)


def write_operation(fields: Fields) -> Operation:
    parents = fields.boolean("mkdirParents", "mkdir")
    sync = fields.unless_false("sync")
    return _operation(fields, b"write", fields.path(), fields.mode("0644"), _flag(parents), _flag(sync))


def list_operation(fields: Fields) -> Operation:
    path = _without_dot(fields.path())
    return _operation(fields, b"list", path, _flag(fields.boolean("recursive")), fields.pattern())


def delete_operation(fields: Fields) -> Operation:
    return _operation(fields, b"delete", fields.path(), _flag(fields.boolean("recursive")))


def rename_operation(fields: Fields) -> Operation:
    return _operation(fields, b"rename", fields.path("source"), fields.path("dest"))


def copy_operation(fields: Fields) -> Operation:
    flags = _flag(fields.boolean("recursive")), _flag(fields.boolean("preserveAttrs"))
    return _operation(fields, b"copy", fields.path("source"), fields.path("dest"), *flags)


def chmod_operation(fields: Fields) -> Operation:
    return _operation(fields, b"chmod", fields.path(), fields.mode(), _flag(fields.boolean("recursive")))


def chown_operation(fields: Fields) -> Operation:
    owners = fields.owner("uid"), fields.owner("gid")
    if owners == (b"-", b"-"):
        raise InvalidError("neither uid nor gid is there", hint="a number or a name")
    return _operation(fields, b"chown", fields.path(), *owners, _flag(fields.boolean("recursive")))


def watch_operation(fields: Fields) -> Operation:
    paths = [_without_dot(path) for path in fields.paths("paths")]
    arguments = (b"watch", _flag(fields.boolean("recursive")), *paths)
    return Operation(arguments, shown(paths[0]), fields.user)


def _operation(fields: Fields, verb: bytes, path: bytes, *arguments: bytes) -> Operation:
    return Operation((verb, path, *arguments), shown(path), fields.user)


def _without_dot(path: bytes) -> bytes:
    """The same directory by a path that others can be appended to."""
    return path[:-1] if path.endswith(b"/.") else path


def _flag(value: bool) -> bytes:
    return b"1" if value else b"0"
