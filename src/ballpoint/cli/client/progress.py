"""Progress where a person would wait: on standard error, and only where that is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ballpoint.cli import columns

# What is faster needs no sign that it goes on; and the library that draws one takes its time to load.
_PATIENCE_SECONDS = 0.4


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what` and that time passes until the end of the block. Gives the function that says something else."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    def shown(words: str) -> str:
        from rich.markup import escape

        return escape(columns.printable(words))

    lock = threading.Lock()
    status: Any = None
    text, ended = what, False

    def begin() -> None:
        nonlocal status
        from rich.console import Console

        with lock:
            if not ended:
                status = Console(stderr=True).status(shown(text))
                status.start()

    def say(now: str) -> None:
        nonlocal text
        with lock:
            text = now
            if status is not None:
                status.update(shown(now))

    timer = threading.Timer(_PATIENCE_SECONDS, begin)
    timer.daemon = True
    timer.start()
    try:
        yield say
    finally:
        timer.cancel()
        with lock:
            ended = True
            if status is not None:
                status.stop()


@contextmanager
def transferring(total: int | None) -> Iterator[Callable[[str, int], None]]:
    """A bar over `total` bytes, None where nobody knows. Gives the function that is told of each file's bytes."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    parts = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda name, count: bar.update(task, advance=count, description=columns.printable(name))
