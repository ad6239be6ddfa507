"""Settings of the host that its nodes share: changed while one of them runs, then put back as they were found.

Kept in a directory below the run root, which goes at a reboot as the settings do: `found.json` (what was there before
the first holder) and an empty file per holder. A lock orders the holders. A crash at any point is mended by the next
`hold` or `drop`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballpoint.host import files

_FOUND, _LOCK = "found.json", "lock"


def hold(directory: Path, holder: str, find: Callable[[], Any], change: Callable[[], None]) -> None:
    """Hold the setting for `holder`. Idempotent.

    Args:
        directory: the setting's own.
        find: gives what is set now, as JSON takes it.
        change: sets what the holders need; it may be set already.
    """
    with _locked(directory):
        found = directory / _FOUND
        if not found.exists():
            files.write_atomically(found, json.dumps(find()).encode())
        (directory / holder).touch()
        change()


def before(directory: Path) -> Any:
    """What was set before the first holder. FileNotFoundError where nobody holds the setting."""
    return json.loads((directory / _FOUND).read_bytes())


def drop(directory: Path, holder: str, put_back: Callable[[Any], None]) -> bool:
    """End what `hold` began; the last holder puts back what was found. Returns False where `holder` held nothing."""
    with _locked(directory):
        held = (directory / holder).exists()
        (directory / holder).unlink(missing_ok=True)
        found = directory / _FOUND
        if found.exists() and not [path for path in directory.iterdir() if path.name not in (_FOUND, _LOCK)]:
            put_back(json.loads(found.read_bytes()))
            found.unlink()
        return held


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with files.flocked(directory / _LOCK):
        yield
