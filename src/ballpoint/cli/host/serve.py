"""serve."""

from __future__ import annotations

import logging
from typing import Any

import click

from ballpoint.cli.host.options import config_from, node_options


@click.command()
@node_options
def serve(**options: Any) -> int:
    """Run a node in the foreground until SIGTERM; its sprites go on running."""
    from ballpoint.node import supervisor

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return supervisor.serve(config_from(options))
