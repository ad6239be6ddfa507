"""The query of an exec request (contract 2.2 and 3.1), read into a `Command`."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from ballpoint.agent.sessions.session import Command
from ballpoint.core.errors import InvalidError

_ROWS, _COLS = 24, 80
_SIZE_MAX = 10_000
_FIELDS_MAX = 20_000
_MAX_RUN_SECONDS = 10.0  # without a terminal; with one, for ever

# time.ParseDuration of Go: numbers with units, without a sign here.
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_TRUE, _FALSE = {"true", "1"}, {"false", "0", ""}


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1m0s`, or of a bare number.

    Raises:
        InvalidError: it is neither.
    """
    if _NUMBER.fullmatch(text):
        return float(text)
    seconds, at = 0.0, 0
    while at < len(text) and (part := _PART.match(text, at)):
        seconds += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if at == 0 or at < len(text) or len(text) > 64:
        raise InvalidError(f"{text[:64]!r} is not a duration", hint="for example 10s, 1m30s or 0")
    return seconds


def parse_command(query: str, *, tty_allowed: bool, stdin_default: bool | None) -> Command:
    """Read the query string of an exec request.

    Args:
        tty_allowed: False for exec over HTTP, which has no terminal.
        stdin_default: what a missing `stdin` means; None makes it follow `tty`.

    Raises:
        InvalidError: a value is malformed; nothing has been started.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="surrogateescape")
    except ValueError as error:
        raise InvalidError("the query has too many fields", hint=f"at most {_FIELDS_MAX}") from error
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
