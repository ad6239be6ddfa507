"""serve."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from ballpoint.cli.host.options import config_from, node_options
from ballpoint.core.errors import InvalidError
from ballpoint.host import logfile


@click.command()
@node_options
@click.option(
    "--log-file", type=click.Path(path_type=Path), help="Append standard error to FILE; a full one becomes FILE.1."
)
def serve(log_file: Path | None, **options: Any) -> int:
    """Run a node in the foreground until SIGTERM; its sprites go on running."""
    from ballpoint.node import supervisor

    if log_file is not None:
        _append_errors_to(log_file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return supervisor.serve(config_from(options), log_file)


def _append_errors_to(log_file: Path) -> None:
    """Standard error itself, which a crash and every child write to."""
    try:
        fd = logfile.open_log(log_file)
    except OSError as error:
        raise InvalidError(f"cannot write {log_file}: {error.strerror}") from error
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)
