"""Durations as clients write them: those of Go, or bare numbers of seconds."""

from __future__ import annotations

import re

from ballpoint.core.errors import InvalidError

# time.ParseDuration of Go: numbers with units, without a sign here.
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
DURATION_MAX = 64
# For those who check a text beforehand.
DURATION = f"({_NUMBER.pattern}|({_PART.pattern})+)"


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1m0s`, or of a bare number.

    Raises:
        InvalidError: it is neither.
    """
    if _NUMBER.fullmatch(text):
        return float(text)
    seconds, at = 0.0, 0
    while len(text) <= DURATION_MAX and at < len(text) and (part := _PART.match(text, at)):
        seconds += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if at == 0 or at < len(text):
        raise InvalidError(f"{text[:DURATION_MAX]!r} is not a duration", hint="for example 10s, 1m30s or 0")
    return seconds
