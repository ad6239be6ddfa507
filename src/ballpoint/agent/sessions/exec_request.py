"""The query of an exec request (contract 2.2 and 3.1), read into a `Command`."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from ballpoint.agent.sessions.session import Command
from ballpoint.core.duration import parse_duration
from ballpoint.core.errors import InvalidError

_ROWS, _COLS = 24, 80
_SIZE_MAX = 10_000
_FIELDS_MAX = 20_000
_MAX_RUN_SECONDS = 10.0  # without a terminal; with one, for ever

_OFFSET = re.compile(r"[0-9]{1,18}")
_TRUE, _FALSE = {"true", "1"}, {"false", "0", ""}


def attached_id(query: str) -> str | None:
    """The session that an exec request attaches to by the old parameter `id`; None where it names a command instead."""
    fields = dict(reversed(_pairs(query)))
    return fields.get("id") if not (fields.get("cmd") or fields.get("path")) else None


def parse_since(query: str) -> tuple[int | None, int | None] | None:
    """From which offsets of stdout and stderr on a session is to be seen; None where nothing is said.

    Of each, None is its present end. `since=OUT` is stderr from its beginning: rather twice than not at all.

    Raises:
        InvalidError: it is something else.
    """
    value = dict(reversed(_pairs(query))).get("since")
    if value is None:
        return None
    parts = value.split(",")
    if not 1 <= len(parts) <= 2 or not all(part == "end" or _OFFSET.fullmatch(part) for part in parts):
        raise InvalidError(
            f"since={value[:64]!r} is no offset", hint="bytes of stdout, or of both: since=0, since=1000,20, since=end"
        )
    out, err = (None if part == "end" else int(part) for part in (*parts, "0")[:2])
    return out, (None if value == "end" else err)


def parse_command(query: str, *, tty_allowed: bool, stdin_default: bool | None) -> Command:
    """Read the query string of an exec request.

    Args:
        tty_allowed: False for exec over HTTP, which has no terminal.
        stdin_default: what a missing `stdin` means; None makes it follow `tty`.

    Raises:
        InvalidError: a value is malformed; nothing has been started.
    """
    return command_of(_pairs(query), tty_allowed=tty_allowed, stdin_default=stdin_default)


def command_of(pairs: list[tuple[str, str]], *, tty_allowed: bool, stdin_default: bool | None) -> Command:
    """As `parse_command`, of the fields of a query."""
    single = dict(reversed(pairs))
    argv = tuple(value for name, value in pairs if name == "cmd")
    env = {}
    for name, value in pairs:
        if name == "env":
            key, equals, content = value.partition("=")
            if not equals or not key:
                raise InvalidError(f"{value[:64]!r} is not an environment variable", hint="env=NAME=VALUE")
            env[key] = content
    for text in (*argv, single.get("path", ""), single.get("dir", ""), *env, *env.values()):
        if "\0" in text:
            raise InvalidError("a NUL byte cannot be part of a command, a directory or a variable")
    if argv and not argv[0] and not single.get("path"):
        raise InvalidError("the command is empty", hint="cmd=PROGRAM, repeated for each argument")
    tty = _boolean(single, "tty", False)
    if tty and not tty_allowed:
        raise InvalidError("exec over HTTP has no terminal", hint="use the WebSocket")
    limit = single.get("max_run_after_disconnect")
    seconds = parse_duration(limit) if limit else (0.0 if tty else _MAX_RUN_SECONDS)
    return Command(
        argv=argv,
        path=single.get("path") or None,
        env=env,
        directory=single.get("dir") or None,
        tty=tty,
        rows=_size(single, "rows", _ROWS),
        cols=_size(single, "cols", _COLS),
        stdin=_boolean(single, "stdin", tty if stdin_default is None else stdin_default),
        max_run=seconds or None,
    )


def check_texts(pairs: list[tuple[str, str]]) -> None:
    """Refuse, with InvalidError, what no query could say: a lone surrogate, which an escape in JSON can spell."""
    for text in (each for pair in pairs for each in pair):
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidError(f"{text[:64]!a} is no text") from error


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="surrogateescape")
    except ValueError as error:
        raise InvalidError("the query has too many fields", hint=f"at most {_FIELDS_MAX}") from error


def _boolean(fields: dict[str, str], name: str, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise InvalidError(f"{name}={value[:32]!r} is neither true nor false")


def _size(fields: dict[str, str], name: str, default: int) -> int:
    value = fields.get(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10) or not 0 < int(value) <= _SIZE_MAX:
        raise InvalidError(f"{name}={value[:32]!r} is not a terminal size")
    return int(value)
