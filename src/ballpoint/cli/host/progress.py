"""Progress of an image build: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ballpoint.image.build import Progress


@contextmanager
def showing(name: str) -> Iterator[Callable[[Progress], None]]:
    """Gives the function that reports; the bar is gone afterwards."""
    if not sys.stderr.isatty():
        last = ""

        def line(progress: Progress) -> None:
            nonlocal last
            if progress.step != last:
                last = progress.step
                click.echo(f"ballpoint: {name}: {progress.fraction:4.0%} {progress.step}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda progress: bar.update(task, completed=progress.fraction, description=f"{name}: {progress.step}")
